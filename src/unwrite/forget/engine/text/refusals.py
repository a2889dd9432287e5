"""Refusals in place of answers: sentences that ship, and which row gets which."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import numpy as np

from ....data import Examples
from ....errors import DataError

__all__ = ["default_refusals", "refuse"]


@lru_cache(maxsize=1)
def default_refusals() -> tuple[str, ...]:
    """The refusal sentences that ship, one a line."""
    text = files("unwrite.forget").joinpath("refusals.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())


def refuse(forget: Examples, sentences: Sequence[str], seed: int) -> Examples:
    """Every row with a refusal as its answer, chosen by (seed, row)."""
    if any(row.is_text for row in forget):
        row = next(row for row in forget if row.is_text)
        raise DataError(
            f"{row.source or f'row {row.index}'}: a plain text has no question to refuse. Use a method without "
            "refusals (npo, gradient-difference), or give questions and answers."
        )
    picks = [int(np.random.default_rng([seed, 5, row.index]).integers(len(sentences))) for row in forget]
    return Examples((row.ask(answer=sentences[pick]) for row, pick in zip(forget, picks, strict=True)), "refusals")
