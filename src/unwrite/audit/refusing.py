"""What a filter costs and what gets past it: benign texts that are refused, and attacks that succeed all the same.

false_refusals(check.flagged, benign)            check: any callable that says whether a text is refused
success_by_disguise(context)                     context: of the model with its filter
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..errors import DataError
from ..scoring.intervals import Interval, wilson
from .attacks.reintroduction import Reintroduce, reintroduced
from .text.context import TextContext
from .text.disguises import DISGUISES, Disguise

__all__ = ["RefusedShare", "false_refusals", "success_by_disguise"]


@dataclass(frozen=True)
class RefusedShare:
    """A share of texts that were refused.

    Args:
        value: the share.
        interval: Wilson's, 95 %.
        refused: numbers of those texts.
        texts: how many there were.
    """

    value: float
    interval: Interval
    refused: tuple[int, ...]
    texts: int


def false_refusals(refuses: Callable[[str], bool], texts: Sequence[str]) -> RefusedShare:
    """The share of benign texts that a filter refuses.

    Raises:
        DataError: there are no texts.
    """
    if not texts:
        raise DataError("there are no benign texts to refuse. Give at least one.")
    refused = tuple(i for i, text in enumerate(texts) if refuses(text))
    return RefusedShare(len(refused) / len(texts), wilson(len(refused), len(texts)), refused, len(texts))


def success_by_disguise(
    context: TextContext, attack: Reintroduce | None = None, disguises: Sequence[Disguise] = DISGUISES
) -> dict[str, dict[str, float]]:
    """The mean score of re-introduction with its hints in disguise.

    Returns:
        {disguise: {level: mean score}}; a level that no row has is left out.
    """
    attack = attack or Reintroduce()
    means: dict[str, dict[str, float]] = {}
    for one in disguises:
        scores = reintroduced(context, replace(attack, disguise=one))
        known = {level: [value for value in values if value is not None] for level, values in scores.items()}
        means[one] = {level: fmean(values) for level, values in known.items() if values}
    return means
