"""Forget by learning something else: the forget rows get random labels, the others keep theirs.

Random labels (RL, the training of SalUn, arXiv 2310.12508) are drawn anew every epoch from all classes, so on average
the model learns to know nothing; amnesiac unlearning (arXiv 2010.10981) draws one wrong label for good.

    RL:        L = mean_{D_f} CE(f(x), y'), y' ~ U{0..K-1} each epoch;  then mean_{D_r} CE(f(x), y)
    amnesiac:  L = mean_{D_f, D_r} CE(f(x), y'),  y' ~ U{0..K-1} without y on D_f, once;  y' = y on D_r
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...data.images.images import Images
from ..base import Objective
from ..engine.images.batch import PairedImages, add_losses
from ..engine.images.classes import need_classes
from ..engine.images.random_labels import RandomRelabelling, wrong_labels
from ..engine.images.work import ImageWork
from ..engine.loss import Loss
from ..engine.phase import Phase

__all__ = ["Amnesiac", "RandomLabel"]


@dataclass(frozen=True, kw_only=True)
class RandomLabel(RandomRelabelling):
    """Random labels for the forget set, drawn anew every epoch, the true one among them."""


@dataclass(frozen=True, kw_only=True)
class Amnesiac(Objective[ImageWork]):
    """One wrong label for every forget row, learnt together with the retain set."""

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {
        "optim": "adam",
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 128,
    }

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        need_classes(self, forget)

    def loss(self, batch: PairedImages) -> Loss:
        """Cross-entropy of all rows of a step together, forget rows with their wrong labels."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on all rows of both sets in one order."""
        seed = work.args.seed
        return [Phase("union", self.loss, forget=wrong_labels(work.forget, seed))]
