"""Whether anything moved: the forget rows' figures against the model before, row by row, and against the retrained one.

What counts is how the forget rows moved from the model before, against how far the retrained model is from it. A shift
has a 95 % interval over rows; where that holds zero, the figures don't bear a sentence about forgetting, and where
nothing moved, no feature or attack may claim that something was forgotten in one place and not in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...scoring.intervals import mean_interval
from ..base import Headline
from .report import NOT_HASHED, Report

__all__ = ["Forgotten", "Shift", "forgotten", "same_model", "shift"]

Forgotten = Literal["nothing", "unclear", "something", "no room", "unknown"]
WORTH_TELLING = 0.05  # of the scale, or of a figure without one: less is no fall to speak of


@dataclass(frozen=True)
class Shift:
    """A mean difference over the same rows of two models, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """The interval doesn't hold zero."""
        return self.low > 0 or self.high < 0


def shift(report: Report, name: str, of: str, against: str) -> Shift | None:
    """How much more of a metric one role has than another, paired by row; None where rows can't be paired."""
    pair = [report.columns.get(role, {}).get(name) for role in (of, against)]
    if pair[0] is None or pair[1] is None or len(pair[0].per_example) != len(pair[1].per_example):
        return None
    both = zip(pair[0].per_example, pair[1].per_example, strict=True)
    apart = np.array([a - b for a, b in both if a is not None and b is not None], dtype=float)
    if not len(apart):
        return None
    return Shift(float(apart.mean()), *mean_interval(apart))


def same_model(report: Report) -> bool:
    """Whether the audited model is the model before, weight for weight."""
    hashes = [report.provenance.get(f"{role} model") for role in (report.main, "before")]
    return hashes[0] not in (None, NOT_HASHED) and hashes[0] == hashes[1]


def forgotten(report: Report, gone: Headline) -> Forgotten:
    """What the figures on forget rows can bear: whether they moved from the model before at all.

    "nothing": they did not, or hardly, where the retrained model's did. "unclear": the move may be chance.
    "no room": the retrained model answers as the model before. "unknown": there is no model before.
    """
    if same_model(report):
        return "nothing"
    moved = shift(report, gone.metric, report.main, "before")
    room = shift(report, gone.metric, "oracle", "before")
    if moved is None:
        return "unknown"
    if room is None:
        if max(abs(moved.low), abs(moved.high)) < _worth(report, gone):
            return "nothing"
        return "something" if moved.is_clear else "unclear"
    if not room.is_clear:
        return "something" if moved.is_clear and abs(moved.value) >= _worth(report, gone) else "no room"
    if moved.is_clear and abs(moved.value) >= 0.1 * abs(room.value):
        return "something"
    return "unclear" if max(abs(moved.low), abs(moved.high)) >= 0.5 * abs(room.value) else "nothing"


def _worth(report: Report, gone: Headline) -> float:
    """The least change worth telling."""
    full = gone.scale if gone.scale is not None else abs(report.value(gone.metric, "before") or 0.0)
    return WORTH_TELLING * full
