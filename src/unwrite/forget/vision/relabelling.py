"""Forget by learning something else: the forget rows get random labels, the others keep theirs.

Random labels (RL, the training of SalUn, arXiv 2310.12508) are drawn anew every epoch from all classes, so on average
the model learns to know nothing; amnesiac unlearning (arXiv 2010.10981) draws one wrong label for good. Pseudo-labels (PL, a
baseline of arXiv 2503.06991, code unlearn/PL.py) are the classes to be kept that the model before likes best.

    RL:        L = mean_{D_f} CE(f(x), y'), y' ~ U{0..K-1} each epoch;  then mean_{D_r} CE(f(x), y)
    amnesiac:  L = mean_{D_f, D_r} CE(f(x), y'),  y' ~ U{0..K-1} without y on D_f, once;  y' = y on D_r
    PL:        L = mean_{D_f} CE(f(x), y'),  y' = argmax_c f_o(x)_c over the classes of D_r
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...data.images.images import Images, first_few
from ...errors import DataError
from ...models.curvature import evaluating
from ...models.vision_layout import logits_of
from ..base import Objective
from ..engine.images.batch import PairedImages, add_losses
from ..engine.images.classes import need_classes, whole_classes
from ..engine.images.random_labels import RandomRelabelling, wrong_labels
from ..engine.images.work import ImageWork
from ..engine.loss import Loss
from ..engine.phase import Phase

__all__ = ["Amnesiac", "PseudoLabel", "RandomLabel"]


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


@dataclass(frozen=True, kw_only=True)
class PseudoLabel(Objective[ImageWork]):
    """Forget rows of whole classes alone, each with the class to be kept that the model before liked best for it.

    Answers change at once, and the features that make them need not: what such a training leaves known, CKA shows.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {"learning_rate": 0.01, "num_train_epochs": 5}

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        labels = need_classes(self, forget)
        if not whole_classes(forget, retain):
            kept = need_classes(self, retain)
            both = [forget.classes[int(c)] for c in labels.unique() if bool((kept == c).any())]
            raise DataError(
                f"PseudoLabel forgets whole classes, and the retain set still has rows of {first_few(both)}. Split by class, "
                "or take another method."
            )

    def loss(self, batch: PairedImages) -> Loss:
        """Cross-entropy of the forget rows with their pseudo-labels."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on forget rows."""
        return [Phase("forget", self.loss, forget=self.relabelled(work))]

    def relabelled(self, work: ImageWork) -> Images:
        """The forget rows with labels of retain classes, by the model as it is."""
        labels = []
        closed = list(whole_classes(work.forget, work.retained))
        with evaluating(work.model), torch.no_grad():
            for pixels, _target, _index in work.batches(work.forget, 256):
                logits = logits_of(work.model, pixels).clone()
                logits[:, closed] = -torch.inf
                labels.append(logits.argmax(1).cpu())
        work.cost.add(len(work.forget))
        return replace(work.forget, labels=torch.cat(labels))
