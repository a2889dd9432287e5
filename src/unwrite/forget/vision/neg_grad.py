"""NegGrad+: fine-tune on the retain set while gradient ascent pushes the forget set away.

Every retain batch brings as many forget rows; the weight of the ascent is small, since it has no lower bound.
(A baseline of SCRUB, arXiv 2302.09880.)

    L = alpha * mean_{D_r} CE(f(x), y) - (1 - alpha) * mean_{D_f} CE(f(x), y)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages, outputs_loss
from ..engine.images.schedules import FINE_TUNING
from ..engine.images.work import ImageWork
from ..engine.loss import Loss, PerRow
from ..engine.phase import Phase

__all__ = ["NegGradPlus"]


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(Objective[ImageWork]):
    """Descent on retain and ascent on forget rows in one step; regressors by the absolute error.

    Args:
        alpha: weight of the retain term, 0 to 1, tuned between 0.95 and 0.9999; the forget term's is 1 - alpha. At 1 it is
            fine-tuning, and forget rows are not even looked at: they would move batch statistics.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = FINE_TUNING
    alpha: float = 0.95

    def __post_init__(self) -> None:
        require("alpha", self.alpha, at_least=0, at_most=1)

    def loss(self, batch: PairedImages) -> Loss:
        """batch.retain and, below alpha = 1, batch.forget; each term is averaged over its own rows."""
        terms = {"retain": PerRow(self.alpha * outputs_loss(batch["retain"]), "retain")}
        if batch.forget is not None:
            terms["forget"] = PerRow((self.alpha - 1) * outputs_loss(batch.forget), "forget")
        return Loss({}, **terms)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One pass over the retain set an epoch, forget rows beside it."""
        return [Phase("retain" if self.alpha == 1 else "covering", self.loss)]
