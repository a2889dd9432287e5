"""How sure a figure is: 95 % intervals of means, ratios and shares over the rows they were measured on.

Rows are drawn again with replacement (the percentile bootstrap); a share has Wilson's interval, which has a width at none and at all.
The same seed draws the same rows, so that two figures of the same rows are compared draw by draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np

Interval = tuple[float, float]


def draws(rows: int, resamples: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Row numbers drawn with replacement. [resamples, rows]"""
    return np.random.default_rng(seed).integers(rows, size=(resamples, rows))


def ends(figures: np.ndarray[Any, Any]) -> Interval:
    """Where the middle 95 % of resampled figures begin and end."""
    low, high = np.quantile(figures, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: Sequence[float] | np.ndarray[Any, Any], resamples: int = 1000, seed: int = 0) -> Interval:
    """The interval of a mean over rows; of a mean difference where the values are differences by row."""
    array = np.asarray(values, dtype=float)
    return ends(array[draws(len(array), resamples, seed)].mean(1))


def ratio_interval(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], seed: int, resamples: int) -> Interval:
    """The interval of the sum of `theirs` over the sum of `ours`, drawn over rows and, within a row, over its repeats.

    Args:
        ours, theirs: [rows, repeats], the same rows in the same order.
    """
    generator = np.random.default_rng(seed)
    rows = generator.integers(ours.shape[0], size=(resamples, ours.shape[0], 1))
    repeats = generator.integers(ours.shape[1], size=(resamples, *ours.shape))
    return ends(theirs[rows, repeats].sum((1, 2)) / ours[rows, repeats].sum((1, 2)))


def wilson(hits: int, total: int) -> Interval:
    """Wilson's interval of a share; sensible at none and at all, where a bootstrap has no width."""
    z, p = 1.96, hits / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation as text."""
    return f"{fmean(values):.{digits}g} +- {pstdev(values):.2g}" if len(values) > 1 else f"{values[0]:.{digits}g}"
