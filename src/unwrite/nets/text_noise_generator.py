"""A generator of picture-sized noise from a text's features and a random latent, the one of T2UE (arXiv 2508.03091, section 3.1).

A linear layer makes a 4 x 4 map of the latent; blocks of two convolutions refine and double it; in every block the text sets the
scale and the shift of each channel after normalisation, as in SSA-GAN (arXiv 2104.00567).

    SSCBN(h, e) = gamma(e) (h - mean(h)) / sqrt(var(h) + 1e-5) + beta(e)            G(e, z) = eps tanh(conv(blocks(linear(z), e)))

The noise is in pixel space, where pixels are 0..1. The paper gives neither the latent's width, nor the channels of each block, nor
whether SSA-GAN's mask is kept: these are fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError, setting

__all__ = ["SSACN", "SSCBN", "TextNoiseGenerator", "bounded", "resized"]

START = 4  # pixels of the first map's side
MASK_CHANNELS = 100  # of the layer that predicts a mask, as SSA-GAN has them
MOST_BLOCKS = 9  # 1024 pixels
CHANNELS = (512, 256, 128, 64, 32, 32, 32)


class SSCBN(nn.Module):
    """Batch normalisation whose scale and shift a text sets; at first it is plain normalisation.

    Args:
        channels: of the map.
        text_width: of the text's features.
    """

    def __init__(self, channels: int, text_width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gamma, self.beta = nn.Linear(text_width, channels), nn.Linear(text_width, channels)
        for layer, start in ((self.gamma, 1.0), (self.beta, 0.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, start)

    def forward(self, h: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """`[rows, channels, height, width]`.

        Args:
            h: of that shape.
            text: `[rows, text_width]`
            mask: `[rows, 1, height, width]` in 0..1: how much of the text's scale and shift reaches a place; all without.
        """
        gamma, beta = self.gamma(text)[..., None, None], self.beta(text)[..., None, None]  # [rows, channels, 1, 1]
        if mask is not None:
            gamma, beta = 1 + mask * (gamma - 1), mask * beta
        scaled: Tensor = gamma * self.norm(h) + beta
        return scaled


class SSACN(nn.Module):
    """Two 3 x 3 convolutions, each followed by `SSCBN`, beside a shortcut.

    Args:
        before, after: channels.
        text_width: of the text's features.
        doubles: the map is doubled first, each value repeated.
        mask: the block predicts where its text applies.
    """

    def __init__(self, before: int, after: int, text_width: int, *, doubles: bool, mask: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, padding=1), SSCBN(after, text_width)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, padding=1), SSCBN(after, text_width)
        self.shortcut: nn.Module = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.mask: nn.Module | None = None
        if mask:
            self.mask = nn.Sequential(
                nn.Conv2d(before, MASK_CHANNELS, 3, padding=1),
                nn.BatchNorm2d(MASK_CHANNELS),
                nn.ReLU(),
                nn.Conv2d(MASK_CHANNELS, 1, 1),
            )

    def forward(self, h: Tensor, text: Tensor) -> Tensor:
        if self.doubles:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        mask = None if self.mask is None else torch.sigmoid(self.mask(h))  # [rows, 1, height, width]
        inner = F.relu(self.norm1(self.conv1(h), text, mask))
        inner = self.norm2(self.conv2(inner), text, mask)
        return F.relu(inner + self.shortcut(h))


class TextNoiseGenerator(nn.Module):
    """Makes noise within a budget from a text's features and a latent, in one forward pass.

    Weights are drawn from torch's global generator.

    Args:
        text_width: of the text's features; 512 for CLIP's ViT-B/32 and ViT-B/16.
        latent_width: numbers of a latent (ours: the paper doesn't say; SSA-GAN has 100).
        channels: after each block; the first keeps the 4 x 4 map, which has as many, and each further one doubles it (ours: the
            paper has seven blocks and 512 channels at first, and doesn't say how they fall).
        mask: each block predicts where its text applies, as SSA-GAN's do (the paper doesn't speak of it).
        eps: the budget, the largest change of a pixel in 0..1; 8/255 in the paper.

    Raises:
        ModelError: sizes that nothing can be built of; a budget outside 0..1.
    """

    def __init__(
        self,
        text_width: int = 512,
        latent_width: int = 128,
        channels: Sequence[int] = CHANNELS,
        mask: bool = False,
        eps: float = 8 / 255,
    ) -> None:
        super().__init__()
        sizes = {"text_width": text_width, "latent_width": latent_width}
        sizes |= {f"channels[{number}]": one for number, one in enumerate(channels)}
        if wrong := next((name for name, size in sizes.items() if size < 1), None):
            raise ModelError(f"{wrong} is {sizes[wrong]}; a generator needs at least 1.")
        if not 1 <= len(channels) <= MOST_BLOCKS:
            raise ModelError(
                f"a generator of {len(channels)} blocks can't be built. Give channels for 1 to {MOST_BLOCKS}."
            )
        if not 0 < eps < 1:
            raise ModelError(
                f"{setting('eps')} is {eps:g}; the budget of pixels in 0..1 is above 0 and below 1, such as {8 / 255:.6g}."
            )
        self.text_width, self.latent_width, self.channels = text_width, latent_width, tuple(channels)
        self.has_mask, self.eps = mask, eps
        self.start = nn.Linear(latent_width, channels[0] * START**2)
        pairs = zip((channels[0], *channels), channels, strict=False)
        self.blocks = nn.ModuleList(
            SSACN(before, after, text_width, doubles=number > 0, mask=mask)
            for number, (before, after) in enumerate(pairs)
        )
        self.out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments, JSON values."""
        return {
            "text_width": self.text_width,
            "latent_width": self.latent_width,
            "channels": list(self.channels),
            "mask": self.has_mask,
            "eps": self.eps,
        }

    @property
    def side(self) -> int:
        """Pixels of its noise's height and width, before it is resized."""
        return START * 2 ** (len(self.channels) - 1)

    def pattern(self, text: Tensor, latent: Tensor) -> Tensor:
        """`[rows, 3, side, side]` in -1..1: the noise in units of the budget.

        Args:
            text: `[rows, text_width]`, of length 1 each.
            latent: `[rows, latent_width]`, standard normal.
        """
        h = self.start(latent).view(-1, self.channels[0], START, START)
        for block in self.blocks:
            h = block(h, text)
        return torch.tanh(self.out(h))

    def forward(self, text: Tensor, latent: Tensor) -> Tensor:
        """`[rows, 3, side, side]` in -eps..eps: the noise in pixel space; arguments as `pattern` has them."""
        return bounded(self.eps * self.pattern(text, latent), self.eps)


def resized(noise: Tensor, size: tuple[int, int], eps: float) -> Tensor:
    """Noise brought to a picture's height and width bilinearly, and within the budget again; `[rows, 3, height, width]`."""
    if noise.shape[-2:] != size:
        noise = F.interpolate(noise, size=size, mode="bilinear", align_corners=False)
    return bounded(noise, eps)


def bounded(noise: Tensor, eps: float) -> Tensor:
    """Noise within the budget, which its precision may not hold: the largest number that is no more stands for it."""
    edge = np.float32(eps)
    if float(edge) > eps:
        edge = np.nextafter(edge, np.float32(0))
    return noise.clamp(-float(edge), float(edge))
