"""What the closed form is held against: one partner, wrong partners, data in the place of weights, and statistics taken anew.

Each of the first three is a `Combiner`, given as `UDFC(...).apply(model, combine=...)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import MethodError, setting
from .reconstruction import Combiner, Damage, LayerSite

__all__ = ["ChannelMerging", "ExchangedChannels", "LeastSquaresOnData", "reestimate_norms"]


@dataclass(frozen=True)
class ChannelMerging:
    """A pruned channel is one kept channel times a factor, that whose filter points the same way. (Neuron merging, NeurIPS 2020)

    The partner is nearest by cosine_weight * (1 - cosine) + (1 - cosine_weight) * how far the biases lie apart, that scaled to 0..1; the
    factor is the ratio of the filters' lengths. Rounding is not repaired.

    Args:
        cosine_weight: share of the cosine, 0 to 1; 0.85 in the published scripts.
        threshold: a partner of a smaller cosine is none; None takes any; 0.1 in the published scripts.
    """

    cosine_weight: float = 0.85
    threshold: float | None = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.cosine_weight <= 1:
            raise MethodError(f"{setting('cosine_weight')} is {self.cosine_weight}. Give a share from 0 to 1.")

    def __call__(self, damage: Damage) -> Tensor:
        """s, `[channels, kept]`, one number a pruned channel."""
        lengths = damage.filters.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        directions = damage.filters / lengths[:, None]
        cosine = directions @ directions[damage.kept].T
        ratio = lengths[:, None] / lengths[damage.kept]
        apart = (damage.biases[:, None] - ratio * damage.biases[damage.kept]).abs()
        low, high = apart.amin(1, keepdim=True), apart.amax(1, keepdim=True)
        apart = (apart - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        distance = self.cosine_weight * (1 - cosine) + (1 - self.cosine_weight) * apart
        partner = distance.argmin(1, keepdim=True)
        s = torch.zeros_like(ratio).scatter(1, partner, ratio.gather(1, partner))
        if self.threshold is not None:
            s[cosine.gather(1, partner)[:, 0] < self.threshold] = 0
        s[damage.kept] = 0
        return s


@dataclass(frozen=True)
class ExchangedChannels:
    """The right numbers at wrong channels: each combination's weights in a random order over the kept channels.

    Args:
        combine: makes the combinations.
        seed: of the orders.
    """

    combine: Combiner
    seed: int = 0

    def __call__(self, damage: Damage) -> Tensor:
        """s, `[channels, kept]`, as large and as many as the right ones."""
        s = self.combine(damage)
        order = torch.rand(s.shape, generator=torch.Generator().manual_seed(self.seed)).argsort(1)
        return s.gather(1, order.to(s.device))


@dataclass(frozen=True, eq=False)
class LeastSquaresOnData:
    """The best that data can do in the same place: what the consumer reads, regressed on what it reads of the kept channels.

    Args:
        pixels: `[rows, channels, height, width]`, pictures as the model takes them.
        ridge: relative to the mean square of a kept channel.
    """

    pixels: Tensor
    ridge: float = 1e-4

    @torch.no_grad()
    def __call__(self, damage: Damage) -> Tensor:
        """s, `[channels, kept]`, of least squared error on the pictures."""
        site = damage.site
        assert site is not None
        module: Any = site.model.get_submodule(site.layer.name)
        whole = self._read(site)
        before = module.weight.detach().clone()
        module.weight.copy_(site.weight)
        left = self._read(site)[:, damage.kept]  # [values, kept]
        module.weight.copy_(before)
        missing = whole - left @ damage.selection.T
        gram = left.T @ left
        gram.diagonal().add_(self.ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny))
        factor = torch.linalg.cholesky(gram)
        s = torch.cholesky_solve(left.T @ missing, factor).T
        own = torch.arange(len(damage.kept))
        inverse = torch.cholesky_inverse(factor)
        s[damage.kept] -= (s[damage.kept, own] / inverse.diagonal())[:, None] * inverse
        s[damage.kept, own] = 0
        return s

    def _read(self, site: LayerSite) -> Tensor:
        """What the consumer reads, float64 `[values, channels]`."""
        seen: list[Tensor] = []
        hook = site.model.get_submodule(site.layer.consumer).register_forward_pre_hook(
            lambda _, args: seen.append(args[0])
        )
        try:
            site.model(self.pixels)
        finally:
            hook.remove()
        inputs = seen[0].reshape(len(self.pixels), site.layer.channels, -1)
        return inputs.transpose(1, 2).flatten(0, 1).double()


def reestimate_norms(model: nn.Module, pixels: Tensor, batch_size: int = 64) -> nn.Module:
    """Takes the running statistics of every batch normalisation anew from pictures, in place; the model is in evaluation mode before and after.

    Args:
        pixels: `[rows, channels, height, width]`, pictures as the model takes them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad(), _averaging(norms):
        for batch in pixels.split(batch_size):
            model(batch)
    return model


@contextmanager
def _averaging(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """Inside, they take plain means over all batches, from nothing."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
