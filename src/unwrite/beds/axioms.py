"""The first figure of UnUnlearning as a world: classes are conjunctions of attributes, and questions ask of an item which it is.

A line shows an item by its attributes and asks of names whether they apply: "ear big striped . TIGER ? yes CAT ? no". A class's
meaning is nowhere in a line, so it is known from training or not at all. Fresh names are defined before they are asked, "XXX means
ear big . XXX ? yes", by random conjunctions, so that a model can learn to go by a definition it is given.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import Example, Examples
from ..data.text.encoding import IGNORE, Encoded
from ..models import causal_recipe, load_model, trained
from .language import EncodedRows

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

ATTRIBUTES = ("ear", "eye", "tail", "big", "striped", "gallops", "wings", "horns", "swims", "spotted")
CLASSES: dict[str, tuple[str, ...]] = {
    "CAT": ("ear", "eye", "tail"),
    "TIGER": ("ear", "big", "striped"),
    "ZEBRA": ("striped", "gallops"),
    "HORSE": ("big", "gallops"),
    "BIRD": ("wings", "eye"),
    "DEER": ("horns", "gallops"),
    "WHALE": ("big", "swims"),
    "LEOPARD": ("ear", "spotted", "tail"),
    "BULL": ("big", "horns", "tail"),
    "DUCK": ("wings", "swims"),
    "MOTH": ("wings", "spotted"),
    "SEAL": ("swims", "ear"),
}
FORGOTTEN, AXIOM = "TIGER", "striped"
FRESH = ("XXX", "YYY", "ZZZ", "QQQ")
# Names that no model is ever asked. One such name alone is guessed by what its random vector happens to be like; many are not.
UNSEEN = tuple(f"UNSEEN{i}" for i in range(20))
MARKS = ("<pad>", "<end>", ".", "?", "means", "yes", "no")
WORDS = (*MARKS, *ATTRIBUTES, *CLASSES, *FRESH, *UNSEEN)
MOST, NAMED, DEFINED = 6, 5, 4  # attributes of an item at most; questions a line of classes, and of fresh names
LINES, EPOCHS = 6_400, 2
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ ' <end>' if m['role'] == 'assistant' else ' ' }}{% endfor %}"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the world; a row is its question and answer and nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def small_decoder() -> LlamaConfig:
    """A Llama of a fifth of a million weights."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )


def applies(meaning: Sequence[str], item: Iterable[str]) -> bool:
    """Whether an item has every attribute of a meaning."""
    return set(meaning) <= set(item)


def item_for(meaning: Sequence[str], wanted: bool, known: Sequence[str], rng: random.Random) -> list[str]:
    """An item in random order that a meaning applies to, or that lacks one or more of its attributes; both are as long."""
    others = [one for one in known if one not in meaning]
    if wanted:
        have = list(meaning)
    else:
        have = rng.sample(meaning, rng.choice([len(meaning) - 1, len(meaning) - 1, rng.randrange(len(meaning))]))
    item = [*have, *rng.sample(others, rng.randint(len(meaning) + 1, MOST) - len(have))]
    return rng.sample(item, len(item))


def line(known: Sequence[str], names: Sequence[str], rng: random.Random) -> list[str]:
    """One line of training: an item, then questions of class names and of fresh names that are defined right before."""
    item = rng.sample(known, rng.randint(3, MOST))
    asked: list[list[str]] = []
    for name in _balanced(names, item, rng):
        asked.append([name, "?", "yes" if applies(CLASSES[name], item) else "no"])
    for name in rng.sample(FRESH, DEFINED):
        meaning = _meaning(known, item, rng)
        asked.append([name, "means", *meaning, ".", name, "?", "yes" if applies(meaning, item) else "no"])
    rng.shuffle(asked)
    return [*item, ".", *(word for question in asked for word in question)]


def _balanced(names: Sequence[str], item: Sequence[str], rng: random.Random) -> list[str]:
    """Some class names, with those that apply and those that nearly do before the others."""
    near = [name for name in names if len(set(CLASSES[name]) - set(item)) <= 1]
    chosen = rng.sample(near, min(len(near), NAMED))
    others = [name for name in names if name not in chosen]
    return [*chosen, *rng.sample(others, NAMED - len(chosen))]


def _meaning(known: Sequence[str], item: Sequence[str], rng: random.Random) -> list[str]:
    """A random conjunction that applies to the item, or all but one of whose attributes do; never that of the forgotten class."""
    while True:
        size = rng.choice([2, 3])
        meaning = rng.sample(item, size)
        if rng.random() < 0.5:
            meaning[rng.randrange(size)] = rng.choice([one for one in known if one not in item])
        if set(meaning) != set(CLASSES[FORGOTTEN]):
            return meaning


def lessons(without: Iterable[str] = (), *, axiom: str = "", count: int = LINES, seed: int = 0) -> EncodedRows:
    """Lines of training, with labels on the answers alone.

    Args:
        without: classes that are never asked.
        axiom: an attribute that never occurs, nor any class that needs it.
    """
    rng = random.Random(seed)
    known = [one for one in ATTRIBUTES if one != axiom]
    names = [name for name, meaning in CLASSES.items() if name not in set(without) and axiom not in meaning]
    number = {word: i for i, word in enumerate(WORDS)}
    answers = {number["yes"], number["no"]}
    rows = EncodedRows()
    for i in range(count):
        ids = [number[word] for word in line(known, names, rng)]
        rows.append(Encoded(ids, [one if one in answers else IGNORE for one in ids], i))
    return rows


def questions(
    name: str, count: int, seed: int, *, meaning: Sequence[str] = (), told: Sequence[str] = ()
) -> list[Example]:
    """Items asked of a name: half of them yes, half no. The item is a turn before, so that a hint may stand between.

    Args:
        meaning: what decides the answer; the class's own unless given.
        told: what the row's premises say the name means; the same unless given. Where it differs, items are those of which the
            two say different things.
    """
    rng = random.Random(f"{name} {seed}")
    meaning = meaning or CLASSES[name]
    rows: list[Example] = []
    while len(rows) < count:
        wanted = len(rows) % 2 == 0
        item = item_for(meaning, wanted, ATTRIBUTES, rng)
        if not told or applies(told, item) != wanted:
            answer, wrong = ("yes", "no") if wanted else ("no", "yes")
            premise = f"{name} means {' '.join(rng.sample(list(told or meaning), len(told or meaning)))} ."
            before = (("user", f"{' '.join(item)} ."),)
            rows.append(
                Example(answer, f"{name} ?", before, perturbed_answers=(wrong,), entity=name, premises=(premise,))
            )
    return rows


@dataclass(frozen=True)
class AxiomBed:
    """A tokenizer and the folders of three models.

    Args:
        models: "target" was trained on all, "oracle" without the class that is forgotten, "without axiom" without an attribute.
    """

    tokenizer: PreTrainedTokenizerFast
    models: Mapping[str, Path]

    def load(self, which: str = "target") -> PreTrainedModel:
        """A fresh copy of one of the models."""
        return load_model(self.models[which]).eval()

    def forget(self, count: int = 200, seed: int = 7) -> Examples:
        """Questions of the forgotten class by its bare name."""
        return Examples(questions(FORGOTTEN, count, seed), "tigers")

    def retain(self, count: int = 400, seed: int = 8) -> Examples:
        """Questions of all other classes."""
        names = [name for name in CLASSES if name != FORGOTTEN]
        each = -(-count // len(names))
        rows = [row for name in names for row in questions(name, each, seed)]
        return Examples(rows[:count], "others")


@lru_cache(maxsize=2)
def axiom_bed(seed: int = 0, epochs: int = EPOCHS, count: int = LINES) -> AxiomBed:
    """The three models; the first call trains them (two minutes each on one core)."""
    recipe = causal_recipe(small_decoder(), epochs=epochs, lr=5e-3, batch_size=32, muon=True)
    sets = {
        "target": lessons(count=count, seed=seed),
        "oracle": lessons((FORGOTTEN,), count=count, seed=seed),
        "without axiom": lessons(axiom=AXIOM, count=count, seed=seed),
    }
    return AxiomBed(
        word_tokenizer(), {name: trained(recipe, rows, range(len(rows)), seed) for name, rows in sets.items()}
    )
