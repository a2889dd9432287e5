"""The network that noise is made against: built from a seed, trained a step at a time, and frozen while noise is looked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import catalog
from ...errors import MethodError, ModelError, NotFinite, setting
from ...models.vision_layout import logits_of
from .pictures import Shape

__all__ = ["Surrogate", "built", "check_surrogate", "error_rate", "frozen", "signed_steps", "still", "training_step"]

Surrogate = Callable[..., nn.Module]
SMALLEST, LARGEST = 8, 32  # image sizes that the nets of the catalogue are made for


def check_surrogate(surrogate: object) -> None:
    """Refuses what builds no network.

    Raises:
        MethodError: an unknown name; neither a name nor a callable.
    """
    if isinstance(surrogate, str):
        catalog.net(surrogate)
    elif not callable(surrogate):
        raise MethodError(
            f"{setting('surrogate')} is {surrogate!r:.60}; give a net's name, or a function that builds one."
        )


def built(surrogate: str | Surrogate, classes: int, shape: Shape, seed: int) -> nn.Module:
    """A fresh network for pictures of this shape; the same for the same seed.

    Args:
        surrogate: a net of the catalogue, or a function of `num_classes`, `channels` and `image_size`.

    Raises:
        ModelError: it can't be built, or gives no logits `[rows, classes]` for such pictures.
    """
    channels, height, width = shape
    size = max(height, width)
    build: Surrogate
    if isinstance(surrogate, str):
        build, size = catalog.net(surrogate).load(), min(max(size, SMALLEST), LARGEST)
    else:
        build = surrogate
    torch.manual_seed(seed)
    model = build(num_classes=classes, channels=channels, image_size=size)
    with torch.no_grad(), frozen(model):
        logits = logits_of(model, torch.zeros(2, *shape))
    if logits.shape != (2, classes):
        raise ModelError(
            f"the surrogate {type(model).__name__} gives {list(logits.shape)} for two pictures of {classes} classes. It must give [2, {classes}]."
        )
    return model


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no weight takes a gradient and no running statistic moves; afterwards all is as it was."""
    modes = {module: module.training for module in model.modules()}
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, needed in needs:
            parameter.requires_grad_(needed)


@contextlib.contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Within the block no weight takes a gradient; modes stay, and running statistics are put back afterwards."""
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in needs:
            parameter.requires_grad_(needed)
        for buffer, value in before:
            buffer.copy_(value)


def training_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, pixels: Tensor, labels: Tensor, clip: float
) -> float:
    """One step of cross-entropy on a batch, gradients clipped to this norm; the loss before it.

    Args:
        pixels: `[rows, channels, height, width]`
        labels: `[rows]`

    Raises:
        NotFinite: the loss is no number.
    """
    model.train()
    loss = F.cross_entropy(logits_of(model, pixels), labels)
    if not torch.isfinite(loss):
        raise NotFinite(f"the surrogate's loss is {loss.item()}. Lower its learning rate.")
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return loss.item()


def signed_steps(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    ascend: bool = False,
    where: Tensor | None = None,
) -> Tensor:
    """Noise after some steps by the sign of the loss's gradient, each kept within the budget; not yet within 0..1 with the pixels.

        x' = clamp(x + d);  steps times:  d = clamp(x' -+ alpha sign(grad CE(x')) - x, -eps, eps),  x' = clamp(x + d)

    Args:
        model: frozen.
        pixels: `[rows, channels, height, width]` in 0..1.
        labels: `[rows]`
        noise: where to begin; as pixels.
        eps: the budget.
        alpha: the size of a step.
        ascend: raise the loss in place of lowering it.
        where: 1 for pixels that move and 0 for those that stay, as pixels; all move without.
    """
    perturbed = (pixels + noise).clamp(0, 1)
    for _ in range(steps):
        perturbed.requires_grad_(True)
        loss = F.cross_entropy(logits_of(model, perturbed), labels)
        (gradient,) = torch.autograd.grad(loss, perturbed)
        move = alpha * gradient.sign()
        if where is not None:
            move = move * where
        noise = (perturbed.detach() + (move if ascend else -move) - pixels).clamp(-eps, eps)
        perturbed = (pixels + noise).clamp(0, 1)
    return noise


@torch.no_grad()
def error_rate(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]] | Any) -> float:
    """The share of pictures that a network gets wrong, of batches (pixels, labels)."""
    wrong = rows = 0
    with frozen(model):
        for pixels, labels in batches:
            wrong += int((logits_of(model, pixels).argmax(1) != labels).sum())
            rows += len(labels)
    return wrong / rows
