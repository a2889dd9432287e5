"""Forty images of four classes and a small net."""

import torch

from unwrite.data import Images
from unwrite.nets import SmallCNN


def small_sets():
    """(forget, retain): 8 and 32 rows."""
    generator = torch.Generator().manual_seed(0)
    data = Images(torch.rand(40, 1, 8, 8, generator=generator), labels=torch.arange(40) % 4)
    return data.subset(range(8), "forget"), data.subset(range(8, 40), "retain")


def small_net():
    """In evaluation mode."""
    torch.manual_seed(1)
    return SmallCNN(num_classes=4, width=2).eval()
