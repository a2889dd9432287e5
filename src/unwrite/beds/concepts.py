"""Everyday concepts in a real small model: lists of words, texts that name them, and how well a model continues those.

The model is SmolLM2-135M-Instruct, which nobody trained for this; a concept is a class of words such as the months.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import TYPE_CHECKING

from ..data import Example, Examples
from ..data.text.encoding import IGNORE, Encoded, encode_text
from ..scoring import score_answers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

MODEL = "smollm2-135m"
CONCEPTS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "months": "january february march april may june july august september october november december jan feb mar apr "
        "jun jul aug sep sept oct nov dec",
        "colors": "red green blue yellow orange purple pink brown black white gray grey violet cyan magenta gold silver "
        "golden crimson turquoise beige color colour colors colored",
        "animals": "dog cat horse cow pig sheep lion tiger bear wolf fox rabbit mouse elephant monkey bird fish snake frog "
        "chicken duck goat deer dogs cats horses cows pigs birds animal animals",
        "countries": "france germany italy spain china japan india brazil canada mexico russia england britain australia "
        "egypt turkey poland sweden norway greece portugal ireland israel iran iraq korea vietnam",
        "body parts": "head hand arm leg foot eye ear nose mouth finger knee neck shoulder chest back hair skin heart brain "
        "hands arms legs feet eyes ears fingers knees shoulders",
        "family members": "mother father brother sister son daughter uncle aunt cousin grandmother grandfather wife husband "
        "parents mom dad child children sons daughters brothers sisters grandma grandpa niece nephew",
    }.items()
}
PLANTED = ("piano", "guitar", "violin", "drum", "drums", "flute", "trumpet", "orchestra", "guitars", "musician")
ROWS = 8  # texts a concept, each of three of its first words


def prompts(concept: str) -> list[tuple[str, str]]:
    """(beginning, the word that follows) of every text."""
    words = CONCEPTS[concept][: ROWS + 2]
    if concept in ("months", "countries"):
        words = tuple(word.capitalize() for word in words)
    return [(f"Some examples of {concept} are {words[i]}, {words[i + 1]} and", f" {words[i + 2]}") for i in range(ROWS)]


def texts(concepts: Iterable[str], name: str) -> Examples:
    """The texts of some concepts, whole."""
    return Examples([Example(answer=f"{start}{word}.") for one in concepts for start, word in prompts(one)], name)


def word_nll(model: nn.Module, tokenizer: PreTrainedTokenizerBase, concepts: Iterable[str], each: int = ROWS) -> float:
    """How unlikely the model finds the words that follow, in nats a word, over the first `each` texts of some concepts."""
    rows: list[Encoded] = []
    for concept in concepts:
        for start, word in prompts(concept)[:each]:
            before = encode_text(start, tokenizer)
            after = tokenizer(word, add_special_tokens=False)["input_ids"]
            rows.append(Encoded(before + after, [IGNORE] * len(before) + after, len(rows)))
    scores = score_answers(model, rows, pad_id=tokenizer.pad_token_id, batch_size=64)
    return fmean(score.nll for score in scores)
