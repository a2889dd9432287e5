"""Boundary unlearning: give a forgotten class's region to its neighbours, or to a class of nothing that is then dropped.

Shrink relabels every forget row with the class on the other side of the nearest boundary, found by one step of FGSM
against the model before; expand trains a further output to take the rows, and leaves it out afterwards. Neither needs
the retain set. (Boundary unlearning, CVPR 2023, arXiv 2303.11570)

    shrink: x' = round255(clip(x + 0.1 sign(d CE(f_o(x), y) / dx))), y' = argmax f_o(x'),   L = mean_{D_f} CE(f(x), y')
    expand: L = mean_{D_f} CE(f(x), K) with K + 1 outputs, of which the first K are kept
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import MethodError, ModelError
from ...models.curvature import evaluating
from ...models.vision_layout import logits_of
from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages, add_losses
from ..engine.images.classes import need_classes
from ..engine.images.work import ImageWork
from ..engine.loss import Loss
from ..engine.phase import Phase

__all__ = ["BoundaryExpand", "BoundaryShrink", "attacked"]

_TRAINING: dict[str, Any] = {
    "learning_rate": 1e-5,
    "weight_decay": 0.0,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 64,
}


def attacked(model: nn.Module, pixels: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The logits after one step of FGSM in pixel space, `[rows, classes]`; the model is read in evaluation mode.

    Args:
        pixels: `[rows, channels, height, width]` in 0..1.
        labels: `[rows]`, the classes to get away from.
        eps: length of the step in each pixel, which ends on a multiple of 1/255 in 0..1.
    """
    with evaluating(model):
        leaf = pixels.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(logits_of(model, leaf), labels, reduction="sum"), [leaf])
        moved = (pixels + eps * grad.sign()).clamp(0, 1)
        with torch.no_grad():
            return logits_of(model, (moved * 255).round() / 255)


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(Objective[ImageWork]):
    """Trains forget rows towards their nearest other classes; the learning rate suits the authors' AllCNN, others need up
    to 1e-3 and more.

    "attack_success" is logged: the share of rows that the step took out of their class. The others keep their label, and
    forget nothing, unless `runner_up`.

    Args:
        eps: length of the step in pixels of 0..1, above 0 to 1.
        runner_up: whether rows that the step leaves in their class get their likeliest other class instead.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    training: ClassVar[dict[str, Any]] = _TRAINING
    eps: float = 0.1
    runner_up: bool = False

    def __post_init__(self) -> None:
        require("eps", self.eps, above=0, at_most=1)
        if not isinstance(self.runner_up, bool):
            raise MethodError(f"runner_up is {self.runner_up!r}; use True or False.")

    def check(self, forget: Images, retain: Images | None) -> None:
        super().check(forget, retain)
        need_classes(self, forget)

    def loss(self, batch: PairedImages) -> Loss:
        """Cross-entropy of forget rows with the labels of their neighbours."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on the relabelled forget set."""
        near, success = self.relabelled(work)

        def loss(batch: PairedImages) -> Loss:
            return Loss({"attack_success": success}, **self.loss(batch).terms)

        return [Phase("forget", loss, forget=near)]

    def relabelled(self, work: ImageWork) -> tuple[Images, float]:
        """The forget set with its nearest labels, and the share of rows that the step alone took out of their class."""
        nearest, left = [], 0
        for pixels, labels, _ in work.batches(work.forget, 256):
            logits = attacked(work.model, pixels, labels, self.eps)
            left += int((logits.argmax(1) != labels).sum())
            if self.runner_up:  # where the step left the class, its own logit isn't the largest anyway
                logits = logits.scatter(1, labels[:, None], -torch.inf)
            nearest.append(logits.argmax(1).cpu())
        work.cost.add(len(work.forget), 2, 0.5)  # the half of a backward that leads to the pixels
        return replace(work.forget, labels=torch.cat(nearest)), left / len(work.forget)


@dataclass(frozen=True, kw_only=True)
class BoundaryExpand(Objective[ImageWork]):
    """Trains forget rows towards a further output, with weights drawn by the seed, which is then dropped; the learning
    rate suits the authors' AllCNN.

    The model keeps its K outputs, and its parameters are the same objects. Masks that name the head don't fit the widened
    one and are refused.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    training: ClassVar[dict[str, Any]] = _TRAINING

    def check(self, forget: Images, retain: Images | None) -> None:
        super().check(forget, retain)
        need_classes(self, forget)

    def loss(self, batch: PairedImages) -> Loss:
        """Cross-entropy of forget rows with the further label."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on forget rows, whose label is the last output."""
        return [Phase("forget", self.loss)]

    def _apply(self, work: ImageWork) -> nn.Module:
        """Widens, trains, narrows.

        Raises:
            ModelError: a head that isn't one linear layer at its end.
        """
        head = work.layout.model.get_submodule(work.layout.head_linears[-1])
        if type(head) is not nn.Linear:
            raise ModelError(
                f"the model ends in a {type(head).__name__}, to which no output can be added. Use a Linear."
            )
        forget = work.forget
        further = torch.full((len(forget),), len(forget.classes))
        nothing = replace(forget, labels=further, classes=(*forget.classes, "nothing"))
        with _widened(head, work.args.seed):
            super()._apply(replace(work, forget=nothing, retain=None))
        return work.model


@contextmanager
def _widened(head: nn.Linear, seed: int) -> Iterator[None]:
    """One more output inside, drawn as torch draws a new layer's; afterwards the first ones as they then are."""
    generator = torch.Generator().manual_seed(seed)
    bound = head.in_features**-0.5
    own = dict(head.named_parameters(recurse=False))
    for name, value in own.items():
        row = torch.empty(1, *value.shape[1:]).uniform_(-bound, bound, generator=generator).to(value)
        wide = nn.Parameter(torch.cat([value.detach(), row]), requires_grad=value.requires_grad)
        setattr(head, name, wide)
    head.out_features += 1
    try:
        yield
    finally:
        head.out_features -= 1
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(getattr(head, name)[:-1])
                setattr(head, name, value)
