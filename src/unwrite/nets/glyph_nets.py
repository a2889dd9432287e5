"""A VGG and a ResNet of 14 layers for images of 32x32: plain chains, and residual stages of two blocks each.

As the nets of `small_vision`: pixels `[rows, channels, height, width]` in 0..1 to logits, weights from torch's global generator.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .small_vision import ConvBlock, ResidualBlock, _checked

__all__ = ["SmallResNet14", "SmallVGG"]


class SmallVGG(nn.Module):
    """Six 3x3 convolutions with batch normalisation and pooling between, the last pictures flattened into the head.

    Args:
        num_classes, channels, image_size: as `SmallCNN`; only images of `image_size` are taken, which 16 divides.
        width: of the first two convolutions; the others have twice and four times as many.
    """

    def __init__(self, num_classes: int = 10, channels: int = 3, image_size: int = 32, width: int = 16) -> None:
        super().__init__()
        self.channels, self.image_size = _checked(num_classes, channels, image_size, width)
        widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.ModuleList(
            ConvBlock(before, after) for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.head = nn.Linear(4 * width * (image_size // 16) ** 2, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels - 0.5
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in (0, 2, 4, 5):
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


class SmallResNet14(nn.Module):
    """A stem of stride 2 and three stages of two residual blocks, their width doubling.

    Args:
        num_classes, channels, image_size: as `SmallCNN`.
        width: of the stem.
    """

    def __init__(self, num_classes: int = 10, channels: int = 3, image_size: int = 32, width: int = 16) -> None:
        super().__init__()
        self.channels, self.image_size = _checked(num_classes, channels, image_size, width)
        self.stem = nn.Conv2d(channels, width, 3, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.blocks = nn.ModuleList(
            block
            for before, after, stride in stages
            for block in (ResidualBlock(before, after, stride), ResidualBlock(after, after, 1))
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(pixels - 0.5)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
