"""Keys with a few channels that are far larger than the rest, as those of language models are, and what a round trip costs them.

Numbers of ordinary channels are normal. One channel in fifty has one sign throughout and twenty times the size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache.engine.hadamard import walsh_hadamard
from ..cache.engine.quantising import Quantiser

__all__ = ["KeyTrip", "outlier_keys"]

SHARE, SIZE, SPREAD = 0.02, 20.0, 0.3


def outlier_keys(seed: int, tokens: int = 256, channels: int = 512) -> Tensor:
    """Keys of the same channels, [tokens, channels]: the first half to calibrate on, the second to measure on."""
    random = torch.Generator().manual_seed(seed)
    keys = torch.randn(tokens, channels, generator=random)
    large = torch.randperm(channels, generator=random)[: round(SHARE * channels)]
    signs = 2.0 * torch.randint(0, 2, (len(large),), generator=random) - 1
    keys[:, large] = SIZE * (signs + SPREAD * torch.randn(tokens, len(large), generator=random))
    return keys


@dataclass(frozen=True)
class KeyTrip:
    """Keys into few bits and back.

    Args:
        rotated: numbers that are rotated together; 1 for none.
        reorder: whether channels are sorted by their sums over the first half.
        bits, clip, group: of the quantiser.
    """

    rotated: int = 1
    reorder: bool = False
    bits: int = 3
    clip: float = 1.0
    group: int = 128

    def errors(self, keys: Tensor, head_dim: int) -> Tensor:
        """Mean squared error of each head, [heads], on the second half of the keys."""
        half = len(keys) // 2
        channels = torch.arange(keys.shape[1])
        order = walsh_hadamard(keys[:half], self.rotated).sum(0).argsort() if self.reorder else channels
        quantiser = Quantiser(self.bits, self.group, self.clip)
        kept = quantiser.quantise(walsh_hadamard(keys[half:], self.rotated)[:, order])
        back = walsh_hadamard(quantiser.restore(kept)[:, order.argsort()], self.rotated)
        return (back - keys[half:]).square().mean(0).unflatten(0, (-1, head_dim)).mean(1)
