"""SalUn: unlearn with only those weights that the forget set's gradient marks as salient.

Weights outside the mask stay bit-identical, also under momentum and weight decay, so what the model is good at
otherwise is disturbed less. (SalUn, arXiv 2310.12508; the training is that on random labels, or any other.)

    m_i = 1 for the floor(s * P) largest |sum_batches d mean_batch CE(f(x), y) / d theta_i|  of all P weights together
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import MethodError
from ...models.curvature import importances
from ...models.vision_layout import logits_of
from ..base import Edit, Objective
from ..engine.checks import require
from ..engine.images.random_labels import RandomRelabelling
from ..engine.images.work import ImageWork
from ..engine.masking import KeepMask

if TYPE_CHECKING:
    from ...models import TrainRecipe

__all__ = ["SalUn", "Salient", "saliency", "top_share"]


def saliency(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """|sum over batches of the gradient of the batch's mean loss|, by parameter name; the model is read in evaluation mode.

    The sum is taken before the absolute value: batches whose gradients are opposite leave nothing.

    Args:
        batches: (pixels, target, index); cross-entropy for labels, the absolute error for regression targets.

    Raises:
        as `models.curvature.importances`.
    """

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        pixels, target, _ = batch
        logits = logits_of(model, pixels)
        if target.is_floating_point():
            return (logits[:, 0] - target).abs()
        return F.cross_entropy(logits, target, reduction="none")

    gradients = importances(model, batches, loss, of="gradient", over="sum")
    return {name: tensor.abs() for name, tensor in gradients.tensors.items()}


def top_share(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks that are true for exactly `floor(share * P)` of the P scores, the largest of all tensors together.

    Of equal scores, such as the zeros of dead units, the first are taken, in the order of the tensors.

    Args:
        scores: by name, >= 0.
        share: 0 to 1.
    """
    flat = torch.cat([tensor.flatten() for tensor in scores.values()])
    chosen = torch.sort(flat, descending=True, stable=True).indices[: math.floor(share * len(flat))]
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[chosen] = True
    parts = mask.split([tensor.numel() for tensor in scores.values()])
    return {name: part.view_as(tensor) for (name, tensor), part in zip(scores.items(), parts, strict=True)}


@dataclass(frozen=True, kw_only=True)
class SalUn(RandomRelabelling):
    """Random labels for the forget set, learnt by the salient weights alone.

    Args:
        share: of the weights that are trained, above 0 to 1; at 1 it is plain random labelling.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("share", self.share, above=0, at_most=1)

    def _apply(self, work: ImageWork) -> nn.Module:
        return super()._apply(_masked(work, self.share))


@dataclass(frozen=True, kw_only=True)
class Salient(Edit[ImageWork]):
    """Any objective, trained by the salient weights alone: gradient ascent, boundary shrinking, ...

    Args:
        inner: the objective; None for training on random labels, which makes it SalUn. Its own training arguments count.
        share: of the weights that are trained, above 0 to 1; at 1 it is the plain objective.
    """

    inner: Objective[ImageWork] | None = None
    share: float = 0.5
    forgets = ("images",)

    def __post_init__(self) -> None:
        require("share", self.share, above=0, at_most=1)
        if self.inner is not None and not isinstance(self.inner, Objective):
            raise MethodError(f"inner is {self.inner!r:.60}, not an objective. Give one such as GradientAscent().")

    @property
    def chosen(self) -> Objective[ImageWork]:
        """The objective that is trained."""
        return self.inner or RandomRelabelling()

    def defaults(self) -> Mapping[str, Any]:
        return self.chosen.defaults()

    def fitted(self, model: nn.Module) -> Self:
        return self if self.inner is None else replace(self, inner=self.inner.fitted(model))

    def check(self, forget: Images, retain: Images) -> None:
        self.chosen.check(forget, retain)

    def check_work(self, work: ImageWork) -> None:
        self.chosen.check_work(work)

    def _need(self, kind: str, retain: Sized | None, recipe: TrainRecipe | None) -> None:
        super()._need(kind, retain, recipe)
        self.chosen._need(kind, retain, recipe)

    def _apply(self, work: ImageWork) -> nn.Module:
        return self.chosen._apply(_masked(work, self.share))


def _masked(work: ImageWork, share: float) -> ImageWork:
    """The same work with the forget set's mask held, taken in batches of the training's size."""
    scores = saliency(work.model, work.batches(work.forget, work.args.per_device_train_batch_size))
    work.cost.add(len(work.forget), 1, 1)
    return replace(work, callbacks=[*work.callbacks, KeepMask(top_share(scores, share))])
