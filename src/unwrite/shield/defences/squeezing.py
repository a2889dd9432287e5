"""Squeeze out what people don't see: grey scale, JPEG, fewer bits, small filters.

Noise that protects is small, and rides on colours and on high frequencies. A picture stored with less of either has lost the noise
and still shows what it shows. (Image shortcut squeezing, ISS, arXiv 2301.13838, ICML 2023)

    luma = 0.299 R + 0.587 G + 0.114 B;   JPEG at quality 10, chroma at half resolution, as Pillow saves by default

The pictures are squeezed as they are stored, before crop and flip; clean test pictures are left alone unless `at_test` is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import DataError, notice
from ..base import need_choice, need_number
from ..engine.pictures import Shape
from ..engine.squeezed import grey, jpeg
from .base import Defence

__all__ = ["JPEG", "BitDepth", "Grey", "Smoothing"]


@dataclass(frozen=True, kw_only=True)
class Squeezing(Defence):
    """A defence that stores every picture with less in it. A subclass writes `squeezed`, which draws nothing.

    Args:
        at_test: whether clean test pictures are squeezed too.
    """

    at_test: bool = False

    def squeezed(self, pixels: Tensor) -> Tensor:
        """The pictures with less in them."""
        raise NotImplementedError

    def transform(self, pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        return self.squeezed(pixels)

    def seen_at_test(self, pixels: Tensor) -> Tensor:
        return self.squeezed(pixels) if self.at_test else pixels


@dataclass(frozen=True, kw_only=True)
class Grey(Squeezing):
    """Trains on grey pictures: three equal channels of rounded luma."""

    def check(self, shape: Shape) -> None:
        if shape[0] == 1:
            notice("the pictures are grey already, so greyscale is no defence there: its row is training as it is.")

    def squeezed(self, pixels: Tensor) -> Tensor:
        return grey(pixels)


@dataclass(frozen=True, kw_only=True)
class JPEG(Squeezing):
    """Trains on pictures compressed by JPEG, one at a time.

    Args:
        quality: from 1 to 100; 10 in the paper.
    """

    numbered = "quality"

    quality: int = 10

    def __post_init__(self) -> None:
        need_number("quality", self.quality, at_least=1, at_most=100, whole=True)

    def squeezed(self, pixels: Tensor) -> Tensor:
        return jpeg(pixels, self.quality)


@dataclass(frozen=True, kw_only=True)
class BitDepth(Squeezing):
    """Trains on pictures with fewer bits a value: the lower ones are set to 0.

    Args:
        bits: that are left of 8, from 1; 2 (ours).
    """

    numbered = "bits"

    bits: int = 2

    def __post_init__(self) -> None:
        need_number("bits", self.bits, at_least=1, at_most=8, whole=True)

    def squeezed(self, pixels: Tensor) -> Tensor:
        step = 2 ** (8 - self.bits)
        return torch.floor(torch.round(pixels * 255) / step) * step / 255


@dataclass(frozen=True, kw_only=True)
class Smoothing(Squeezing):
    """Trains on pictures under a 3 x 3 filter; beyond the edges the picture is mirrored.

    Args:
        kind: "mean", "median" or "gaussian".
        sigma: of the Gaussian in pixels, above 0 (ours; the official 0.1 leaves a picture as it is).
    """

    kind: Literal["mean", "median", "gaussian"] = "gaussian"
    sigma: float = 1.0

    def __post_init__(self) -> None:
        need_choice("kind", self.kind, ("mean", "median", "gaussian"))
        need_number("sigma", self.sigma, above=0)

    def check(self, shape: Shape) -> None:
        if min(shape[1:]) < 2:
            raise DataError(f"the pictures have {shape[2]}x{shape[1]} pixels, and a filter of 3 x 3 needs 2 a side.")

    def squeezed(self, pixels: Tensor) -> Tensor:
        rows, channels, height, width = pixels.shape
        padded = F.pad(pixels, (1, 1, 1, 1), mode="reflect")
        around = F.unfold(padded.flatten(0, 1)[:, None], 3)  # [rows channels, 9, height width]
        if self.kind == "median":
            smooth = around.median(1).values
        else:
            smooth = (self._weights().to(around)[:, None] * around).sum(1)
        return smooth.clamp(0, 1).reshape(rows, channels, height, width)

    def _weights(self) -> Tensor:
        """`[9]`, adding up to 1."""
        if self.kind == "mean":
            return torch.full((9,), 1 / 9)
        line = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) ** 2) / (2 * self.sigma**2))
        square = torch.outer(line, line).flatten()
        return (square / square.sum()).float()
