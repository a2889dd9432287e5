"""Fisher forgetting: noise on every weight, the more of it, the less the weight matters to what is kept.

The noise hides what the weights still know of the forget set where the retain set doesn't mind.
(Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net", arXiv 1911.04933)

    theta_u ~ N(theta, alpha / F),   F_i = mean_{D_r} sum_y p(y|x) (d CE(f(x), y) / d theta_i)^2
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import MethodError
from ...models.curvature import evaluating, fisher, trainable
from ...models.vision_layout import logits_of
from ...runs import progress
from ..base import Edit
from ..engine.checks import require
from ..engine.images.classes import need_classes, whole_classes
from ..engine.images.work import ImageWork

__all__ = ["FisherForgetting", "noise"]

BATCH = 32  # rows; of mode "sample" the result depends on it in no way, of "repo" it is the official code's
MOST, MOST_IN_HEAD = 1e3, 1e2  # of 1 / F
WIDER = 10.0  # the variance of the head and of all vectors, by so much
CLASS_VARIANCE = 1e-4  # of the forgotten classes' rows of the head, before that


def noise(
    theta: Tensor, information: Tensor, alpha: float, *, head: bool = False, classes: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """(mean, variance) of a parameter after forgetting, both in its shape, float32 or wider.

    Args:
        theta: the parameter, any shape.
        information: F, in the same shape, >= 0.
        alpha: factor of the variance, >= 0.
        head: whether it is the last layer's weight or bias, whose first dimension is the class.
        classes: forgotten as a whole; their rows of the head get mean 0 and no variance of their own.
    """
    mean = theta.detach().to(information.dtype).clone()
    variance = (1 / (information + 1e-8)).clamp(max=MOST_IN_HEAD if head else MOST) * alpha
    if theta.dim() > 1:
        variance = variance.mean(1, keepdim=True).expand_as(theta).clone()
    if head and classes:
        mean[list(classes)] = 0
        variance[list(classes)] = CLASS_VARIANCE
    if head or theta.dim() == 1:
        variance = WIDER * variance
    return mean, variance


@dataclass(frozen=True, kw_only=True)
class FisherForgetting(Edit[ImageWork]):
    """Noise by the inverse Fisher information of the retain set; needs no gradient of the forget rows.

    Where the retain set has no row of the forgotten classes, their rows of the last layer are drawn anew around 0.
    Batch statistics stay as they are. The noise is drawn by the arguments' seed, in the order of the parameters.

    Args:
        alpha: factor of the variance, >= 0; 1e-8 to 1e-5, tuned per task. 0 changes nothing at all.
        mode: "sample" (every row's own gradients) or "repo": Unlearn-Sparse's, by the gradient of the mean over
            batches of 32 and the batch's mean p, which is another quantity.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    alpha: float = 1e-6
    mode: Literal["sample", "repo"] = "sample"

    def __post_init__(self) -> None:
        require("alpha", self.alpha, at_least=0)
        if self.mode not in ("sample", "repo"):
            raise MethodError(f"mode is {self.mode!r}; use 'sample' or 'repo'.")

    def check(self, forget: Images, retain: Images | None) -> None:
        super().check(forget, retain)
        need_classes(self, forget)

    @torch.no_grad()
    def _apply(self, work: ImageWork) -> nn.Module:
        head = set(_head(work))  # refuses a model that doesn't fit the data
        if self.alpha:
            information = self._information(work)
            classes = whole_classes(work.forget, work.retained)
            generator = torch.Generator().manual_seed(work.args.seed)
            for name, theta in trainable(work.model).items():
                mean, variance = noise(theta, information[name], self.alpha, head=id(theta) in head, classes=classes)
                drawn = torch.randn(theta.shape, generator=generator).to(mean)
                theta.copy_(mean + variance.sqrt() * drawn)
        return work.model.eval()

    def _information(self, work: ImageWork) -> dict[str, Tensor]:
        rows = work.batches(work.retained, BATCH)
        if self.mode == "repo":
            return _information_by_batch(work, rows)
        information = fisher(work.model, rows, lambda model, batch: logits_of(model, batch[0]))
        work.cost.forwards += information.cost
        return dict(information.tensors)


def _head(work: ImageWork) -> list[int]:
    """The ids of the last linear layer's parameters."""
    return [id(parameter) for parameter in work.layout.model.get_submodule(work.layout.head_linears[-1]).parameters()]


def _information_by_batch(work: ImageWork, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """mean_batches sum_y mean_rows p(y|x) (d mean_rows CE(f(x), y) / d theta)^2, by parameter name."""
    parameters = trainable(work.model)
    leaves = list(parameters.values())
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    count = 0
    with evaluating(work.model):
        for pixels, _target, _index in progress(batches, "information"):
            scores = logits_of(work.model, pixels).log_softmax(-1)
            share = scores.detach().exp().mean(0)  # [classes]
            for label in range(scores.shape[1]):
                grads = torch.autograd.grad(-scores[:, label].mean(), leaves, retain_graph=True, allow_unused=True)
                for total, grad in zip(totals, grads, strict=True):
                    if grad is not None:
                        total += share[label] * grad.square()
            work.cost.add(len(pixels), 1, scores.shape[1])
            count += 1
    return dict(zip(parameters, (total / count for total in totals), strict=True))
