"""Datamodel matching: predict what a model retrained without the forget set would say, then fine-tune the model to say it.

What each training row adds to each output is known beforehand, from a datamodel or an influence function, so no retrained
model is needed, and nothing is pushed further than a retrained model would be. (DMM, arXiv 2410.23232)

    t(x) = f(x; theta_0) - multiplier * sum_{i in F} beta_i(x),   theta <- argmin mean_x |f(x; theta) - t(x)|^2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...data.images.images import Images
from ...errors import MethodError
from ..engine.checks import require
from ..engine.images.attribution import Attributor, check_change
from ..engine.images.head_influence import HeadInfluence
from ..engine.images.matching import Matching
from ..engine.images.work import ImageWork

__all__ = ["DMM"]


@dataclass(frozen=True, kw_only=True)
class DMM(Matching):
    """Fine-tunes to the outputs that an attributor predicts without the forget set.

    Batch statistics move as in any training; `args={"mode": "eval"}` holds them.

    Args:
        attributor: what predicts the change: a datamodel (`fit_datamodel`) of this training set, or anything with its
            `change`; None for the influence of the last layer, which needs no other models.
        multiplier: of the predicted change, >= 0; 1, and 0 for no forgetting.
        forget_multiplier: see `Matching`; 5 for CIFAR-10.
    """

    training: ClassVar[dict[str, Any]] = {
        **Matching.training,
        "learning_rate": 1e-4,
        "num_train_epochs": 4,
        "per_device_train_batch_size": 512,
    }
    attributor: Attributor | None = None
    multiplier: float = 1.0
    forget_multiplier: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("multiplier", self.multiplier, at_least=0)
        if self.attributor is not None and not isinstance(self.attributor, Attributor):
            raise MethodError(
                f"attributor is {self.attributor!r:.60}, which has no change(work, rows). Fit a datamodel."
            )

    @property
    def chosen_attributor(self) -> Attributor:
        """What predicts the change."""
        return HeadInfluence() if self.attributor is None else self.attributor

    def targets(self, work: ImageWork, rows: Mapping[str, Images]) -> dict[str, Tensor]:
        """The outputs of the model before, in evaluation mode, and the predicted change."""
        found = {}
        for name, one in rows.items():
            logits = work.outputs(work.model, one)
            change = check_change(
                self.chosen_attributor.change(work, one), one, logits.shape[1], self.chosen_attributor
            )
            found[name] = logits + self.multiplier * change.to(logits)
        return found
