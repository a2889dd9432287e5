"""Undo blurs by random sharpening, and drop the high frequencies in which they differ.

Every time a picture is drawn it is sharpened by another random kernel, so that its class's blur is never twice the same; then only
the lowest frequencies of its cosine transform are kept. (RSK + FF, arXiv 2411.01742)

    kernel = [[0, -n1, 0], [-n2, c, -n3], [0, -n4, 0]],   c ~ N(centre, spread),   n ~ N((c - 1) / 4, spread)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import need_number
from .base import Defence

__all__ = ["RandomSharpening", "low_frequencies"]


@dataclass(frozen=True, kw_only=True)
class RandomSharpening(Defence):
    """Trains on randomly sharpened pictures without their high frequencies.

    Args:
        centre: mean of the kernel's middle entry, at least 1: the more, the sharper; 1 is no sharpening but the spread's. 2.5 in
            the official code.
        spread: standard deviation of every entry, at least 0.
        share: of the rows and of the columns of frequencies that are kept, above 0 to 1; 0.3 in the paper for 32 pixels, and at
            least one row and column.
    """

    centre: float = 2.5
    spread: float = 0.1
    share: float = 0.3

    def __post_init__(self) -> None:
        need_number("centre", self.centre, at_least=1)
        need_number("spread", self.spread, at_least=0)
        need_number("share", self.share, above=0, at_most=1)

    def transform(self, pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        return low_frequencies(self.sharpened(pixels, generator), self.share)

    def sharpened(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Each picture under a kernel of its own, its edge repeated outwards, in 0..1."""
        rows, channels, height, width = pixels.shape
        kernels = self.kernels(rows, generator).to(pixels)
        padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate").reshape(1, rows * channels, height + 2, width + 2)
        weights = kernels[:, None].repeat_interleave(channels, 0)  # [rows channels, 1, 3, 3]
        return F.conv2d(padded, weights, groups=rows * channels).view_as(pixels).clamp(0, 1)

    def kernels(self, rows: int, generator: torch.Generator) -> Tensor:
        """`[rows, 3, 3]`; entries add up to 1 on average."""
        middle = self.centre + self.spread * torch.randn(rows, generator=generator)
        near = (middle[:, None] - 1) / 4 + self.spread * torch.randn(rows, 4, generator=generator)
        kernels = torch.zeros(rows, 9)
        kernels[:, 4] = middle
        kernels[:, [1, 3, 5, 7]] = -near
        return kernels.view(rows, 3, 3)


def low_frequencies(pixels: Tensor, share: float) -> Tensor:
    """Pictures from the lowest rows and columns of their cosine transform alone, in 0..1.

    Args:
        pixels: `[rows, channels, height, width]`
        share: of rows and columns kept.
    """
    if share == 1:
        return pixels
    down, across = (_low_pass(side, share).to(pixels) for side in pixels.shape[2:])
    return (down @ pixels @ across).clamp(0, 1)


def _low_pass(side: int, share: float) -> Tensor:
    """`[side, side]`, the projection on the lowest cosines: to the transform, most of it to 0, and back."""
    kept = max(1, math.floor(side * share + 1e-9))
    place = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(math.pi / side * (place[None] + 0.5) * torch.arange(kept, dtype=torch.float64)[:, None])
    basis = basis * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return (basis.T @ basis).float()
