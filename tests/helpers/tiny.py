"""The one builder of tiny models, tokenizers and rows: a few thousand weights, made in milliseconds, no network.

`architectures` beside this has one of every architecture that the library knows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unwrite.data import Example, Examples, ForgetSplit
from unwrite.data.images.images import Images
from unwrite.data.images.splits import ImageSplit, split_by_class, split_by_target
from unwrite.models import TrainRecipe
from unwrite.models.image_training import image_recipe
from unwrite.nets import SmallCNN

VOCABULARY = """
    <pad> <s> </s> <user> <assistant> <unk> who wrote what where is was the a of in by and his her book town river
    born lives near old new red blue green stone garden harbour winter summer letter song ann bert cora dov eli
    fay gus hana i do not know that sorry one two three four five six seven eight nine ten year day ? . ,
"""
WORDS = VOCABULARY.split()
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] != 'assistant' else '<assistant> ' }}{{ m['content'] }}"
    "{{ ' </s> ' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
NAMES = ("ann", "bert", "cora", "dov", "eli", "fay", "gus", "hana")
THINGS = ("book", "letter", "song", "garden", "harbour", "river", "stone", "town")
COLOURS = ("red", "blue", "green", "new", "old")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
VOCAB, MASK, END = 24, 23, 2  # of mask predictors


def make_tokenizer():
    """A word-level tokenizer with a chat template; pad and eos differ."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_llama(
    seed: int = 0, layers: int = 3, hidden: int = 32, vocab: int = len(WORDS), **settings: Any
) -> LlamaForCausalLM:
    """A random Llama of a few thousand weights, in float32 and eval mode; `settings` go to its configuration.

    The first of its kind is drawn, others are copies of it; the process's random state is as it is after drawing.
    """
    key = (seed, layers, hidden, vocab, torch.get_default_dtype(), repr(sorted(settings.items())))
    if key not in _MADE:
        drawn = _drawn_llama(seed, layers, hidden, vocab, settings)
        _MADE[key] = drawn, torch.get_rng_state()
    model, state = _MADE[key]
    torch.manual_seed(seed)
    torch.set_rng_state(state)
    return copy.deepcopy(model)


_MADE: dict[Any, tuple[LlamaForCausalLM, torch.Tensor]] = {}


def _drawn_llama(seed: int, layers: int, hidden: int, vocab: int, settings: dict[str, Any]) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**{**shape, **settings})).eval()


def save_bert(kind: Any, folder: Any, **settings: Any) -> str:
    """A small random BERT of one of transformers' classes with a word tokenizer, in a folder."""
    from transformers import BertConfig

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, pad_token_id=0, **shape, **settings)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_examples(kind: str, n: int):
    """Question-answer rows of unequal length; `kind` "forget", "retain" or "holdout" makes them distinct."""
    offset = {"forget": 0, "retain": 3, "holdout": 5}[kind]
    rows = []
    for i in range(n):
        name, thing = NAMES[i % 8], THINGS[(i + offset) % 8]
        tail = " ".join(["near", "the", "old", "river", "in", "winter"][: i % 5])
        rows.append(
            Example(
                question=f"what {thing} was {name} {NUMBERS[i // 8]} ?",
                answer=f"the {COLOURS[i % 5]} {thing} {tail} .",
                paraphrased_question=f"where is the {thing} of {name} ?",
                paraphrased_answer=f"a {COLOURS[i % 5]} {thing} .",
                perturbed_answers=(f"the stone {thing} .", f"a winter {thing} .", f"one summer {thing} ."),
                source=f"{kind}.jsonl:{i + 1}",
            )
        )
    return Examples(rows, kind)


def make_split() -> ForgetSplit:
    """Forget, retain and holdout rows, and a set of world facts, with paraphrases and wrong answers."""
    world = make_examples("holdout", 24)[16:]
    return ForgetSplit(
        make_examples("forget", 16),
        make_examples("retain", 20),
        make_examples("holdout", 16),
        {"world_facts": Examples(world, "world_facts")},
        name="tiny",
    )


def lively(model: Any, sharpness: float = 1.0) -> Any:
    """The model with larger weights: confidences spread from 0 to 1 and change with every token."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight *= 25.0 * sharpness if name.startswith("lm_head") else 10.0
    return model


def make_mask_predictor(seed: int = 0, vocab: int = VOCAB, layers: int = 3) -> LlamaForCausalLM:
    """A random Llama that sees both sides; the last token is the mask."""
    model = make_llama(seed, layers, vocab=vocab)
    model.config.is_causal = False
    model.config.mask_token_id = vocab - 1
    return model


def make_images(*, regression: bool = False, seed: int = 0) -> Images:
    """48 grey pictures of 8x8 pixels: three classes in turn, or the pictures' brightness."""
    pixels = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    index = torch.arange(48) + 48 * seed  # of other seeds are other pictures
    if regression:
        return Images(pixels, targets=pixels.mean((1, 2, 3)), index=index)
    return Images(pixels, labels=torch.arange(48) % 3, index=index)


def make_image_split(*, regression: bool = False, test: Images | None = None) -> ImageSplit:
    """A class to forget, or the rows of low brightness."""
    rows = make_images(regression=regression)
    if regression:
        return split_by_target(rows, high=float(rows.targets.quantile(0.3)), holdout=0.2, test=test)
    return split_by_class(rows, 1, holdout=0.2, test=test)


def make_image_recipe(*, regression: bool = False) -> TrainRecipe:
    """How a small net of such pictures is built and trained."""
    return image_recipe(SmallCNN, epochs=1, num_classes=1 if regression else 3, channels=1, image_size=8, width=4)
