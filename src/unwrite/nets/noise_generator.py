"""A small residual network that draws one picture of noise from a fixed random input, the generator of image translation.

    conv7 - (conv3, stride 2) x n - residual blocks - (transposed conv3, stride 2) x n - conv7 - tanh

Batch normalisation is over the input at hand in every mode, for a generator of noise is trained on a single input and what it
draws of it is what is used: running statistics would draw another picture than the one that was trained.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError

__all__ = ["NoiseGenerator"]


class NoiseGenerator(nn.Module):
    """`[rows, channels, height, width]` to values in -1..1 of the same shape, each side at least 4 and above 2 ** downsamplings.

    Args:
        channels: of input and output.
        width: of the first convolution; doubled by each downsampling.
        blocks: residual blocks at the smallest size.
        downsamplings: how often the size is halved, and doubled again.

    Raises:
        ModelError: a number that builds no network.
    """

    def __init__(self, channels: int = 3, width: int = 64, blocks: int = 6, downsamplings: int = 2) -> None:
        super().__init__()
        for name, value, least in (
            ("channels", channels, 1),
            ("width", width, 1),
            ("blocks", blocks, 0),
            ("downsamplings", downsamplings, 0),
        ):
            if value < least:
                raise ModelError(f"{name} is {value}; a generator needs at least {least}.")
        self.smallest = max(4, 2**downsamplings + 1)  # 2 pixels are left in the middle, so that they can be reflected
        widths = [width * 2**number for number in range(downsamplings + 1)]
        down = [(nn.Conv2d(a, b, 3, 2, 1, bias=False), b) for a, b in pairwise(widths)]
        up = [(nn.ConvTranspose2d(b, a, 3, 2, 1, output_padding=1, bias=False), a) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normed(nn.Conv2d(channels, width, 7, bias=False), width),
            *(layer for conv, out in down for layer in _normed(conv, out)),
            *(NoiseBlock(widths[-1]) for _ in range(blocks)),
            *(layer for conv, out in reversed(up) for layer in _normed(conv, out)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, channels, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < self.smallest:
            raise ModelError(
                f"this generator draws {self.smallest}x{self.smallest} pixels and more, not {width}x{height}. Give fewer "
                "downsamplings, or larger pictures."
            )
        drawn: Tensor = self.layers(x)
        return drawn[..., :height, :width]  # a side that can't be halved evenly comes back longer


class NoiseBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to what they read; `[rows, width, height, width]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, bias=False), _norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, bias=False), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(_reflected(x))))
        return x + torch.as_tensor(self.norm2(self.conv2(_reflected(inner))))


def _reflected(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, track_running_stats=False)


def _normed(convolution: nn.Module, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return convolution, _norm(width), nn.ReLU()
