"""Train on the worst pictures within a small distance of the ones given.

Each batch is first moved by projected gradient ascent on the model's loss, so that what a small noise says can't be relied on. (PGD,
Madry et al., arXiv 1706.06083; against protections as in Unlearnable Examples, arXiv 2101.04898)

    x' = proj_eps(x' + alpha * direction(grad CE(f(x'), y))), in 0..1;   train on x' alone

While a batch is moved the weights take no gradient and batch normalisation uses its running statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import MethodError, setting
from ..base import need_choice, need_number
from ..engine.surrogates import frozen
from .base import Defence, TrainingMoment, plain_loss

__all__ = ["AdversarialTraining", "worst_case"]

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Defence):
    """Trains on the worst case within eps of each picture.

    Args:
        eps: the largest change: of a pixel in 0..1, or of a picture's Euclidean length with norm "l2", at least 0.
        steps: of the ascent, at least 1.
        alpha: the size of a step, above 0; none for 2/255, and with norm "l2" for 1.5 eps / steps.
        norm: what eps bounds: "linf", a pixel; "l2", a picture.
        start: the noise it begins with: "normal", alpha times a standard normal; "uniform" in plus or minus eps, kept in 0..1.
    """

    eps: float = 8 / 255
    steps: int = 10
    alpha: float | None = None
    norm: Norm = "linf"
    start: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        need_choice("norm", self.norm, ("linf", "l2"))
        need_choice("start", self.start, ("normal", "uniform"))
        need_number("eps", self.eps, at_least=0)
        if self.norm == "linf" and self.eps > 1:
            raise MethodError(
                f"{setting('eps')} is {self.eps:g}, and pixels are in 0..1. For 8 levels of 255 give {8 / 255:.6g}."
            )
        need_number("steps", self.steps, at_least=1, whole=True)
        need_number("alpha", 1.0 if self.alpha is None else self.alpha, above=0)

    @classmethod
    def field_of_number(cls, number: int) -> dict[str, Any]:
        """In levels of 255: `at8` is eps 8/255."""
        return {"eps": number / 255}

    @property
    def step_size(self) -> float:
        """The size of a step."""
        if self.alpha is not None:
            return self.alpha
        return 2 / 255 if self.norm == "linf" else 1.5 * self.eps / self.steps

    def loss(self, model: nn.Module, pixels: Tensor, labels: Tensor, moment: TrainingMoment) -> Tensor:
        begin = self._begin(pixels, moment.generator)
        with frozen(model):
            moved = worst_case(
                model, pixels, labels, begin, eps=self.eps, alpha=self.step_size, steps=self.steps, norm=self.norm
            )
        return plain_loss(model, moved, labels)

    def _begin(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        if self.start == "uniform":
            noise = self.eps * (2 * torch.rand(pixels.shape, generator=generator) - 1)
            return (pixels + noise.to(pixels)).clamp(0, 1)
        return pixels + self.step_size * torch.randn(pixels.shape, generator=generator).to(pixels)


def worst_case(
    model: nn.Module, pixels: Tensor, labels: Tensor, begin: Tensor, *, eps: float, alpha: float, steps: int, norm: Norm
) -> Tensor:
    """Pictures after some steps up the loss, each step projected to eps of the ones given and then to 0..1.

    Args:
        model: frozen.
        pixels: `[rows, channels, height, width]`
        labels: `[rows]`
        begin: where the ascent starts; as pixels.
        alpha: the length of a step: of every pixel ("linf"), or of a picture ("l2").
    """
    moved = begin
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(plain_loss(model, moved, labels), moved)
        if norm == "linf":
            change = (moved.detach() + alpha * gradient.sign() - pixels).clamp(-eps, eps)
        else:
            change = moved.detach() + alpha * gradient / _lengths(gradient) - pixels
            change = change * (eps / _lengths(change)).clamp(max=1)
        moved = (pixels + change).clamp(0, 1)
    return moved.detach()


def _lengths(pixels: Tensor) -> Tensor:
    """`[rows, 1, 1, 1]`, each picture's Euclidean length, above 0."""
    return pixels.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
