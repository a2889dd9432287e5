"""P7: whether an attacker tells the forget rows from rows that were never seen, by Min-K%++ (arXiv 2404.02936)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..text.context import TextContext
from ..text.membership import Membership
from ..text.rows import rows_of
from .base import Probe, Values

__all__ = ["Familiar"]


@dataclass(frozen=True)
class Familiar(Probe):
    """P7: the share of holdout rows that look less seen than a forget row; its mean is the attack's AUC.

    Args:
        k: fraction of tokens of Min-K%++.
    """

    k: float = 0.2

    name: ClassVar[str] = "familiar"
    way: ClassVar[str] = "a membership attack"
    about: ClassVar[str] = "Whether forget rows still look like rows the model was trained on (Min-K%++)."
    weights: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("forget", "holdout")
    goes_first: ClassVar[bool] = True

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        attack = Membership("min_k++", self.k)
        forget = attack.values(context, rows_of(context.split, "forget"))
        holdout = np.asarray(attack.values(context, rows_of(context.split, "holdout")))
        return [float((holdout > one).mean() + (holdout == one).mean() / 2) for one in forget]
