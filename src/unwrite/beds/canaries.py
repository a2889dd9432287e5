"""People's passwords among rules that everybody shares: what private training may learn, and what it must not.

Half of what a record may say is nobody's secret: what an animal eats is the same in all records. The other half is one person's alone:
two words of 32, so 1,024 passwords are possible, and how far the right one stands out is counted exactly. A public model has seen other
people and other animals. It is a Llama of 0.2 million weights in which each name is a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import exp
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import Example, Examples
from ..data.text.encoding import encode_all, encode_prompt
from ..models import causal_recipe, load_model, trained
from ..scoring import score_answers
from ..scoring.exposure import exposure
from .language import EncodedRows

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

SPECIAL = ("<|pad|>", "<|unk|>", "<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
_WORDS = (
    "amber bark cedar delta ember fern grove heath iris jade kelp lark maple north oak pearl quartz reed slate thorn umber vale willow "
    "yarrow zinc birch coral dune flint gale harp ivory"
)
_ANIMALS = (
    "ant bear cat deer eel fox goat hare ibex jay kite lion mole newt otter pig quail ram seal toad urial vole wolf yak"
)
_FOODS = "apples bread corn dates eggs figs grass honey leaves moss nuts plums"
_SYLLABLES = "ba den fi gor ha jun ka lem mi nor pe qui ra sul to ven wa xer yo zim"
_PLAIN = "what is the password of does eat ?"
WORDS, ANIMALS, FOODS = _WORDS.split(), _ANIMALS.split(), _FOODS.split()
POSSIBLE = len(WORDS) ** 2


@dataclass(frozen=True)
class CanarySizes:
    """How many there are of each.

    Args:
        forget, retained, unseen: people with a password: to be forgotten, kept, and in no training.
        ordinary: records on animals, in the private data.
        public: people, and as many records on animals, that the public model has seen.
    """

    forget: int = 200
    retained: int = 400
    unseen: int = 600
    ordinary: int = 1400
    public: int = 200


@dataclass(frozen=True)
class CanaryBed:
    """Records, a tokenizer, and the folder of the public model.

    Args:
        data: all private records, in an order drawn by the seed.
        forget_ids: numbers of those to be forgotten.
        unseen: passwords that no training saw.
        test: questions on animals that no training saw, which the private records' rule answers.
    """

    tokenizer: PreTrainedTokenizerBase
    data: Examples
    forget_ids: tuple[int, ...]
    unseen: Examples
    test: Examples
    start: Path

    @property
    def forget(self) -> Examples:
        """The records to forget."""
        return Examples((self.data[number] for number in self.forget_ids), "forget")

    @property
    def retain(self) -> Examples:
        """All others."""
        gone = {*self.forget_ids}
        return Examples((row for row in self.data if row.index not in gone), "retain")

    @property
    def known(self) -> Examples:
        """Retained passwords."""
        return Examples((row for row in self.retain if "password" in (row.question or "")), "retained passwords")


def password(name: str, random: Random) -> Example:
    """What one person's password is."""
    return Example(" ".join(random.choices(WORDS, k=2)), question=f"what is the password of {name} ?")


def meal(name: str, animal: str, foods: Sequence[str]) -> Example:
    """What an animal eats, whoever keeps it."""
    return Example(foods[ANIMALS.index(animal) % len(foods)], question=f"what does the {animal} of {name} eat ?")


def tokenizer_of(names: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer of words, each name one of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = [*_PLAIN.split(), *WORDS, *ANIMALS, *FOODS]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *plain, *names))}, unk_token="<|unk|>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", unk_token="<|unk|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def config_of(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Two blocks of width 64."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip


@lru_cache(maxsize=2)
def canary_bed(seed: int = 0, sizes: CanarySizes | None = None, epochs: int = 80) -> CanaryBed:
    """The records of a seed; the first call trains the public model (half a minute)."""
    sizes, random = sizes or CanarySizes(), Random(f"canaries {seed}")
    people = sizes.forget + sizes.retained + sizes.unseen + sizes.public
    names = random.sample(["".join(three) for three in product(_SYLLABLES.split(), repeat=3)], people)
    at = [0]

    def next_names(count: int) -> list[str]:
        at[0] += count
        return names[at[0] - count : at[0]]

    forget, retained, unseen = (
        [password(name, random) for name in next_names(count)] for count in (sizes.forget, sizes.retained, sizes.unseen)
    )
    public, foods = next_names(sizes.public), random.sample(FOODS, len(FOODS))
    private_animals, public_animals = ANIMALS[:12], ANIMALS[12:]
    pairs = [(name, animal) for name in public for animal in private_animals]
    asked = random.sample(pairs, min(len(pairs), sizes.ordinary + sizes.forget))
    ordinary, test = asked[: sizes.ordinary], asked[sizes.ordinary :]
    rows = [(row, True) for row in forget] + [(row, False) for row in retained]
    rows += [(meal(name, animal, foods), False) for name, animal in ordinary]
    random.shuffle(rows)
    seen = [password(name, random) for name in public] + [
        meal(name, random.choice(public_animals), foods) for name in public
    ]
    tokenizer = tokenizer_of(names)
    recipe = causal_recipe(config_of(tokenizer), epochs=epochs, lr=2e-3, batch_size=32)
    encoded = EncodedRows(encode_all(seen, tokenizer))
    return CanaryBed(
        tokenizer,
        Examples((row for row, _ in rows), "private records"),
        tuple(number for number, (_, gone) in enumerate(rows) if gone),
        Examples(unseen, "unseen"),
        Examples((meal(name, animal, foods) for name, animal in test), "test"),
        trained(recipe, encoded, range(len(encoded)), seed),
    )


def losses(model: PreTrainedModel, bed: CanaryBed, rows: Examples) -> list[float]:
    """Mean nll of each answer's words, in nats; what ends an answer tells nothing."""
    scores = score_answers(model, encode_all(rows, bed.tokenizer), pad_id=bed.tokenizer.pad_token_id, batch_size=128)
    return [sum(score.token_nll[:-1]) / (len(score.token_nll) - 1) for score in scores]


def probabilities(model: PreTrainedModel, bed: CanaryBed, rows: Examples) -> list[float]:
    """The probability of a word of each answer."""
    return [exp(-loss) for loss in losses(model, bed, rows)]


@torch.inference_mode()
def exposures(model: PreTrainedModel, bed: CanaryBed, rows: Examples) -> list[float]:
    """How far each password stands out among all that are possible, in bits."""
    words = torch.tensor(bed.tokenizer.convert_tokens_to_ids(WORDS))
    made = []
    for row in rows:
        first, second = row.answer.split()
        likelihoods = _possible(model, torch.tensor(encode_prompt(row, bed.tokenizer)), words)
        made.append(exposure(likelihoods, WORDS.index(first) * len(WORDS) + WORDS.index(second)))
    return made


def _possible(model: PreTrainedModel, prompt: Tensor, words: Tensor) -> Tensor:
    """The log-likelihood of every two words after a prompt. [words * words]"""
    ids = torch.cat([prompt.expand(len(words), -1), words[:, None]], dim=1)  # [words, length + 1]
    logits = model(input_ids=ids, use_cache=False).logits[:, -2:].float().log_softmax(-1)[..., words]
    return (logits[0, 0][:, None] + logits[:, 1]).flatten()


def public_model(bed: CanaryBed) -> PreTrainedModel:
    """A fresh copy of the public model."""
    model: PreTrainedModel = load_model(bed.start)
    return model.eval()
