"""A CNN, a ResNet and a ViT for images of 8x8 to 32x32, small enough to be trained many times on two cores.

All map pixels `[rows, channels, height, width]` in 0..1 to logits `[rows, num_classes]` and end in one linear layer
`head`; regression is `num_classes=1`. Centring the pixels is part of the net. Weights are drawn from torch's global
generator, so the same seed before building gives the same net. Each net has its `channels` and `image_size`, the
height and width it is made for; the two convolutional ones take others too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError

__all__ = ["SmallCNN", "SmallResNet", "SmallViT"]


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch normalisation, pooled to 2x2: 0.08M weights.

    Args:
        num_classes: outputs, 1 for regression.
        channels: of the pixels, 1 or 3.
        image_size: 8 to 32.
        width: of the first convolution; the others have twice and four times as many.
    """

    def __init__(self, num_classes: int = 10, channels: int = 1, image_size: int = 8, width: int = 24) -> None:
        super().__init__()
        self.channels, self.image_size = _checked(num_classes, channels, image_size, width)
        widths = [width, 2 * width, 2 * width, 4 * width]
        self.blocks = nn.ModuleList(
            ConvBlock(before, after) for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.head = nn.Linear(4 * widths[-1], num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels - 0.5
        for number, block in enumerate(self.blocks):
            x = block(x)
            # Down to 4x4, and not before the second block for 8x8: all have something left to convolve.
            if x.shape[-1] > (4 if number else 8):
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return logits


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU; `[rows, before, height, width]` to `[rows, after, height, width]`."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class SmallResNet(nn.Module):
    """A stem and three residual blocks of doubling width, the shape of ResNet-8.

    Args:
        num_classes, channels, image_size: as `SmallCNN`.
        width: of the stem.
    """

    def __init__(self, num_classes: int = 10, channels: int = 1, image_size: int = 8, width: int = 24) -> None:
        super().__init__()
        self.channels, self.image_size = _checked(num_classes, channels, image_size, width)
        self.stem = ConvBlock(channels, width)
        self.blocks = nn.ModuleList(
            [ResidualBlock(width, width, 1), ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 4 * width, 2)]
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels - 0.5)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class SmallViT(nn.Module):
    """A pre-norm vision transformer with a class token.

    Args:
        num_classes, channels, image_size: as `SmallCNN`; only images of `image_size` are taken.
        width: of the tokens.
        depth: blocks.
        heads: of each attention; divide `width`.
        patch: height and width of a patch; 2 if None, 4 from 16x16 on.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 1,
        image_size: int = 8,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        patch: int | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.image_size = _checked(num_classes, channels, image_size, width)
        patch = patch or (2 if image_size < 16 else 4)
        if patch < 1 or image_size % patch:
            raise ModelError(f"a patch of {patch} doesn't divide images of {image_size}. Give one that does.")
        if heads < 1 or width % heads or depth < 1:
            raise ModelError(f"{heads} heads and {depth} blocks don't fit a width of {width}. Heads must divide it.")
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ModelError(
                f"this net takes images of {self.image_size}x{self.image_size}, not "
                f"{'x'.join(map(str, pixels.shape[-2:]))}. Build it with another image_size."
            )
        x = self.patches(pixels - 0.5).flatten(2).transpose(1, 2)  # [rows, patches, width]
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


class TransformerBlock(nn.Module):
    """Attention and an MLP of twice the width, each added to what it reads; `[rows, tokens, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [rows, heads, tokens, width / heads]
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, tokens, width)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _checked(num_classes: int, channels: int, image_size: int, width: int) -> tuple[int, int]:
    """(channels, image size), once all four have a meaning."""
    wanted = {
        f"num_classes={num_classes}": num_classes >= 1,
        f"channels={channels}": channels >= 1,
        f"image_size={image_size} (8 to 32)": 8 <= image_size <= 32,
        f"width={width}": width >= 1,
    }
    if wrong := [told for told, holds in wanted.items() if not holds]:
        raise ModelError(f"a small net can't be built with {', '.join(wrong)}. Give whole numbers in range.")
    return channels, image_size
