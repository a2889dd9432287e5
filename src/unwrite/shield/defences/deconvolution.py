"""Train against filters: each class's pictures are filtered by what the model finds hardest.

CUDA ties every class to a blur. Whoever trains here puts a filter of its own on each class, chosen at every step to raise the loss,
so that no filter can be relied on. (DAT, deconvolution-based adversarial training, in CUDA's official code, arXiv 2303.04278)

    w_c <- clamp(w_c) + step * grad_w CE(f(w_c * x), c),   train on the filtered pictures, each stretched to 0..1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import MethodError, setting
from ...models.vision_layout import logits_of
from ..base import need_number
from ..engine.surrogates import still
from .base import Defence, TrainingMoment, plain_loss

__all__ = ["DeconvolutionTraining", "stretched"]


@dataclass(frozen=True, kw_only=True)
class DeconvolutionTraining(Defence):
    """Trains on pictures under filters that raise the loss, one for each class of a batch.

    Args:
        kernel_size: pixels of a filter's side, odd.
        steps: of the ascent, at least 0.
        step_size: by which gradients of weights and bias are multiplied, at least 0.
        bound: weights and bias are kept within plus or minus this before each step, above 0.
    """

    kernel_size: int = 7
    steps: int = 10
    step_size: float = 0.1
    bound: float = 5.0

    def __post_init__(self) -> None:
        need_number("kernel_size", self.kernel_size, at_least=1, whole=True)
        if self.kernel_size % 2 == 0:
            raise MethodError(f"{setting('kernel_size')} is {self.kernel_size!r}; it must be odd, such as 7.")
        need_number("steps", self.steps, at_least=0, whole=True)
        need_number("step_size", self.step_size, at_least=0)
        need_number("bound", self.bound, above=0)

    def loss(self, model: nn.Module, pixels: Tensor, labels: Tensor, moment: TrainingMoment) -> Tensor:
        return plain_loss(model, self.filtered(model, pixels, labels, moment.generator), labels)

    def filtered(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures under the filters found for their classes, each stretched to 0..1."""
        present, which = labels.unique(return_inverse=True)
        weights, bias = (drawn.to(pixels) for drawn in self.drawn(len(present), generator))
        with still(model):
            weights, bias = self.ascended(model, pixels, labels, which, weights, bias)
        return stretched(self.applied(pixels, which, weights, bias))

    def drawn(self, filters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fresh filters `[filters, 1, k, k]` and biases `[filters]`, uniform within 1 / k as torch draws them for such a layer."""
        side = self.kernel_size
        weights, bias = (torch.rand(*shape, generator=generator) for shape in ((filters, 1, side, side), (filters,)))
        return (2 * weights - 1) / side, (2 * bias - 1) / side

    def ascended(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, which: Tensor, weights: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Filters and biases after their steps up the loss; the last step is not clamped, as in the official code.

        All classes share a forward. The model is in training mode, so that batch normalisation takes out a filter's scale as it
        will when the pictures are trained on.

        Args:
            which: `[rows]`, the place of each picture's filter.
            weights: `[filters, 1, k, k]`
            bias: `[filters]`
        """
        share = 1 / torch.bincount(which, minlength=len(weights)).clamp(min=1).to(pixels)[which]  # [rows]
        for _ in range(self.steps):
            both = [one.detach().clamp(-self.bound, self.bound).requires_grad_(True) for one in (weights, bias)]
            logits = logits_of(model, self.applied(pixels, which, *both))
            means = (share * F.cross_entropy(logits, labels, reduction="none")).sum()
            up = torch.autograd.grad(means, both)
            weights, bias = (one.detach() + self.step_size * by for one, by in zip(both, up, strict=True))
        return weights, bias

    def applied(self, pixels: Tensor, which: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        """Each channel through its picture's transposed convolution, at the picture's own size."""
        order = which.argsort(stable=True)
        counts = torch.bincount(which, minlength=len(weights)).tolist()
        results = []
        for number, some in enumerate(pixels[order].split(counts)):
            single = some.flatten(0, 1)[:, None]  # [rows channels, 1, height, width]
            filter_ = weights[number : number + 1], bias[number : number + 1]
            results.append(F.conv_transpose2d(single, *filter_, padding=self.kernel_size // 2).view_as(some))
        return torch.cat(results)[order.argsort()]


def stretched(pixels: Tensor) -> Tensor:
    """Each picture from its smallest value at 0 to its largest at 1; a flat one is black.

    Args:
        pixels: `[rows, channels, height, width]`
    """
    low = pixels.amin((1, 2, 3), keepdim=True)
    reach = pixels.amax((1, 2, 3), keepdim=True) - low
    return (pixels - low) / torch.where(reach > 0, reach, torch.ones_like(reach))
