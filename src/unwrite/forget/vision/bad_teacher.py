"""Bad-T: one student, two teachers; on forget rows it imitates one that knows nothing, on the others the model before.

The incompetent teacher is a new, untrained model of the same recipe: the student should be as unsure as that one is.
(Can bad teaching induce forgetting?, arXiv 2205.08096, eq. 2 and 3)

    L = mean_x KL( u softmax(t_random / T) + (1 - u) softmax(t_before / T) || softmax(s / T) ),   u = 1 on D_f, 0 on D_r

The official code divides by the number of classes too (the default reduction of `kl_div`): their loss is ours over K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data.images.images import Images
from ...errors import MethodError
from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages, Table
from ..engine.images.classes import need_classes
from ..engine.images.work import ImageWork
from ..engine.loss import Loss, PerRow, kl_divergence
from ..engine.phase import Phase
from ..engine.stream import permutation

__all__ = ["BadTeacher", "imitation"]

_SHARE = 12  # keeps this draw apart from others of the same seed


def imitation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) of each row, `[rows]`, in nats; both `[rows, classes]`."""
    return kl_divergence(teacher / temperature, student / temperature)


@dataclass(frozen=True, kw_only=True)
class BadTeacher(Objective[ImageWork]):
    """Imitates an untrained model on the forget set and the model before on a part of the retain set.

    Args:
        share: of the retain set, drawn once by the seed, above 0 to 1; at least one row.
        temperature: T of teachers and student, > 0. The loss isn't scaled by T^2.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain", "recipe")
    training: ClassVar[dict[str, Any]] = {
        "optim": "adam",
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 256,
    }
    reads: ClassVar[frozenset[str]] = frozenset()  # each row's own teacher is asked once, before training
    share: float = 0.3
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require("share", self.share, above=0, at_most=1)
        require("temperature", self.temperature, above=0)

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        need_classes(self, forget)

    def loss(self, batch: PairedImages) -> Loss:
        """The mean over all rows; `reference_logits` of a part are those of its teacher, `[rows, classes]`."""
        terms = {}
        for name, part in batch.present():
            if part.reference_logits is None:
                raise MethodError(f"{name} rows have no teacher. Train with the phases of BadTeacher.")
            assert part.logits is not None
            terms[name] = PerRow(imitation(part.logits, part.reference_logits, self.temperature), "all")
        return Loss({}, **terms)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on the forget set and a part of the retain set in one order.

        Raises:
            ModelError: the recipe makes another architecture.
        """
        seed = work.args.seed
        count = max(1, math.floor(self.share * len(work.retained)))
        mask = torch.zeros(len(work.retained), dtype=torch.bool)
        mask[torch.from_numpy(permutation(len(work.retained), seed, _SHARE)[:count])] = True
        retain = work.retained.where(mask)
        ignorant = work.fresh(seed)
        work.layout.of(ignorant)
        taught = {
            "forget": Table.of(work.forget, work.outputs(ignorant, work.forget)),
            "retain": Table.of(retain, work.outputs(work.model, retain)),
        }

        def loss(batch: PairedImages) -> Loss:
            parts = {
                name: replace(part, reference_logits=taught[name].at(part.index)) for name, part in batch.present()
            }
            return self.loss(PairedImages(**parts))

        return [Phase("union", loss, retain=retain)]
