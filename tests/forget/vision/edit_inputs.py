"""A net and images by formulas, the same everywhere, so that the official code's numbers on them can be kept."""

from __future__ import annotations

import torch
from torch import nn

from unwrite.data import Images

CLASSES = 4


def edit_net() -> nn.Sequential:
    """Convolution, batch normalisation, a linear head; 151 weights, in evaluation mode."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, CLASSES)
    )
    with torch.no_grad():
        for number, tensor in enumerate([*model.parameters(), model[1].running_mean]):
            tensor.copy_(torch.sin(torch.arange(tensor.numel()) * 1.7 + number).view_as(tensor) * 0.5)
        model[1].running_var.copy_(torch.tensor([0.5, 1.0, 2.0]))
    return model.eval()


def edit_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels `[48, 1, 6, 6]` in 0..1 and labels `[48]`: 0, 3, 2, 1, 0, ..."""
    at = torch.arange(48 * 36, dtype=torch.float64)
    pixels = ((torch.cos(at * 0.37 + at**2 * 0.011) + 1) / 2).float().view(48, 1, 6, 6)
    return pixels, torch.arange(48) * 7 % CLASSES


def edit_sets(whole_class: bool = False) -> tuple[Images, Images]:
    """(forget, retain): the first 8 rows and the other 40; or the 12 rows of class 1 and the other 36."""
    pixels, labels = edit_rows()
    rows = Images(pixels, labels=labels, classes=tuple("abcd"))
    mask = labels == 1 if whole_class else torch.arange(48) < 8
    return rows.where(mask, "forget"), rows.where(~mask, "retain")
