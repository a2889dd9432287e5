"""A small Llama with two skills and some texts, trained once: adding numbers digit by digit, and printing what stands in brackets.

    add 4 1 2 + 3 5 6      ->  7 6 8        three digits each, and no digit is carried
    print ( k f t b )      ->  k f t b

Numbers and letters are tokens of their own. Of the 166,375 sums and 456,976 calls that there are, the model sees a few thousand; those
that it is asked and probed with it never saw. The texts are the beginnings of facts about invented authors, and those that are measured are
among those it was trained on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING

import numpy as np

from ..data import Example, Examples
from ..data.text.authors import authors
from ..data.text.encoding import encode_all
from ..models import causal_recipe, load_model, trained
from .language import EncodedRows, small_config, small_tokenizer, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SKILLS = ("sums", "calls")
DIGITS, LETTERS = 3, 4
LAYERS, WIDTH = 3, 96
WORDS = 9  # of a text: short ones, so that no batch is mostly padding


def sums(count: int, seed: int) -> list[Example]:
    """Distinct sums without a carry."""
    draw, rows = np.random.default_rng([seed, 0]), dict[str, Example]()
    while len(rows) < count:
        first = draw.integers(0, 10, DIGITS)
        second = [int(draw.integers(0, 10 - one)) for one in first]
        question = f"add {' '.join(map(str, first))} + {' '.join(map(str, second))}"
        answer = " ".join(str(one + other) for one, other in zip(first, second, strict=True))
        rows[question] = Example(question=question, answer=answer)
    return [*rows.values()]


def calls(count: int, seed: int) -> list[Example]:
    """Distinct calls of print."""
    draw, rows = np.random.default_rng([seed, 1]), dict[str, Example]()
    while len(rows) < count:
        letters = " ".join(draw.choice([*ascii_lowercase], LETTERS))
        rows[f"print ( {letters} )"] = Example(question=f"print ( {letters} )", answer=letters)
    return [*rows.values()]


@dataclass(frozen=True)
class SkillBed:
    """A model with two skills.

    Args:
        tokenizer: its own.
        target: the folder of the model.
        train: how many rows of each skill it was trained on; these are the first of each skill's.
        probes, asked: how many rows of each skill there are to probe it with, and to ask it.
        texts: plain texts that it was trained on.
    """

    tokenizer: PreTrainedTokenizerBase
    target: Path
    train: int
    probes: int
    asked: int
    texts: Examples

    def load(self) -> PreTrainedModel:
        """A fresh copy of the model."""
        return load_model(self.target).eval()

    def _rows(self, skill: str, first: int, count: int, name: str) -> Examples:
        make = sums if skill == "sums" else calls
        return Examples(make(first + count, 0)[first:], f"{skill}, {name}")

    def probe_rows(self, skill: str) -> Examples:
        """What guards are made of: never trained on."""
        return self._rows(skill, self.train, self.probes, "probes")

    def asked_rows(self, skill: str) -> Examples:
        """What is measured: neither trained on nor probed with."""
        return self._rows(skill, self.train + self.probes, self.asked, "asked")


@lru_cache(maxsize=2)
def skill_bed(train: int = 4000, probes: int = 300, asked: int = 150, texts: int = 200, epochs: int = 12) -> SkillBed:
    """The bed; the first call trains its model, about four minutes on one core."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    facts = [row.answer.split()[:WORDS] for row in authors().retain or ()]
    plain = [Example(answer=" ".join(words)) for words in facts[:texts]]
    rows = [*sums(train, 0), *calls(train, 0), *plain]
    tokenizer = small_tokenizer(texts_of(rows), 768)
    data = EncodedRows(encode_all(rows, tokenizer))
    start = small_config(tokenizer, LAYERS, WIDTH)
    recipe = causal_recipe(start, epochs=epochs, lr=3e-3, batch_size=64, weight_decay=0.01)
    return SkillBed(
        tokenizer, trained(recipe, data, range(len(data)), 0), train, probes, asked, Examples(plain, "texts")
    )
