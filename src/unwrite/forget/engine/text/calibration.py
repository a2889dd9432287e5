"""Thresholds set on texts that must pass, so that of fresh ones like them at most a share alpha is above (split-conformal).

tau = the ceil((n + 1) (1 - alpha))-th smallest score of n benign texts
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....errors import DataError, setting

__all__ = ["conformal_quantile", "conformal_threshold", "least_texts"]


def conformal_quantile(scores: Sequence[float], alpha: float) -> float | None:
    """The score above which at most a share alpha of fresh benign texts lies; None where there are too few to say."""
    index = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return sorted(scores)[index - 1] if index <= len(scores) else None


def least_texts(alpha: float) -> int:
    """How many benign texts there must be."""
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_threshold(scores: Sequence[float], alpha: float) -> float:
    """As `conformal_quantile`, of a filter, which without a threshold is none.

    Raises:
        DataError: too few benign texts for so small an alpha.
    """
    threshold = conformal_quantile(scores, alpha)
    if threshold is None:
        raise DataError(
            f"{len(scores)} benign texts are too few to calibrate a filter at {setting('alpha')} {alpha:g}: at least "
            f"{least_texts(alpha)} are needed. Give more retain rows, or raise {setting('alpha')}."
        )
    return threshold
