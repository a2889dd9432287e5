"""One hidden layer on flat pixels: a net that is trained in a fraction of a second, where hundreds are needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ModelError

__all__ = ["SmallMLP"]


class SmallMLP(nn.Module):
    """Pixels `[rows, channels, height, width]` in 0..1, flattened, through one hidden layer with ReLU to logits.

    No normalisation, so that every row's logits are a function of that row alone, in training too.

    Args:
        num_classes: outputs, 1 for regression.
        channels: of the pixels.
        image_size: height and width.
        width: of the hidden layer.

    Raises:
        ModelError: a number below 1.
    """

    def __init__(self, num_classes: int = 10, channels: int = 1, image_size: int = 8, width: int = 32) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "channels": channels, "image_size": image_size, "width": width}
        for name, value in sizes.items():
            if value < 1:
                raise ModelError(f"{name} is {value}; a net needs at least 1.")
        self.channels, self.image_size = channels, image_size
        self.hidden = nn.Linear(channels * image_size**2, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.hidden((pixels - 0.5).flatten(1))))
        return logits
