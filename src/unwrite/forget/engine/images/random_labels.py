"""Labels drawn at random, each a function of (seed, draw, row), and the training on them that several methods share.

forget first    every epoch all forget rows with new labels, then all retain rows   (SalUn's code on CIFAR-10, SVHN)
shuffled        every epoch both kinds in one order                                 (on CIFAR-100, Tiny-ImageNet)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ....data.images.images import Images
from ....errors import MethodError
from ...base import Objective
from ..loss import Loss
from ..phase import Phase
from .batch import PairedImages, add_losses
from .classes import need_classes
from .schedules import rounds
from .work import ImageWork

__all__ = ["Order", "RandomRelabelling", "any_labels", "wrong_labels"]

Order = Literal["forget first", "shuffled"]
_DRAW = 11  # keeps these draws apart from others of the same seed


def any_labels(rows: Images, seed: int, epoch: int) -> Images:
    """The rows with labels drawn uniformly from all K classes, the true one among them."""
    return replace(rows, labels=_drawn(rows, len(rows.classes), seed, epoch))


def wrong_labels(rows: Images, seed: int) -> Images:
    """The rows with labels drawn uniformly from the K - 1 classes that are not their own."""
    assert rows.labels is not None
    drawn = _drawn(rows, len(rows.classes) - 1, seed, 0)
    return replace(rows, labels=drawn + (drawn >= rows.labels))


def _drawn(rows: Images, below: int, seed: int, epoch: int) -> Tensor:
    """`[rows]`, 0 to `below - 1`: what a row gets doesn't depend on which others there are."""
    keys = [index % 2**64 for index in rows.index.tolist()]  # names may be negative, keys not
    return torch.tensor([int(np.random.default_rng([abs(seed), _DRAW, epoch, key]).integers(below)) for key in keys])


@dataclass(frozen=True, kw_only=True)
class RandomRelabelling(Objective[ImageWork]):
    """Forget rows with labels redrawn every epoch, retain rows with their own.

    Args:
        order: "forget first" or "shuffled", see the module.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {
        "learning_rate": 0.013,
        "num_train_epochs": 10,
        "per_device_train_batch_size": 256,
    }
    order: Order = "forget first"

    def __post_init__(self) -> None:
        if self.order not in ("forget first", "shuffled"):
            raise MethodError(f"order is {self.order!r}; use 'forget first' or 'shuffled'.")

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        need_classes(self, forget)

    def loss(self, batch: PairedImages) -> Loss:
        """Cross-entropy of all rows of a step, forget rows with their drawn labels."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """An epoch: one phase on both kinds, or one on forget and one on retain rows."""
        phases: list[Phase] = []
        for epoch, share in enumerate(rounds(work.args.num_train_epochs)):
            drawn = any_labels(work.forget, work.args.seed, epoch)
            if self.order == "shuffled":
                phases.append(Phase("union", self.loss, epochs=share, forget=drawn))
            else:
                phases.append(Phase("forget", self.loss, epochs=share, forget=drawn))
                phases.append(Phase("retain", self.loss, epochs=share))
        return phases
