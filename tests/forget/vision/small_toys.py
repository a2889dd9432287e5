"""Forty images of four classes, a small net, and a datamodel of them."""

import torch

from unwrite.data import Images
from unwrite.forget import RowEffects
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


def effects_for(forget, retain, size=0.1, outputs=4):
    """A datamodel with random effects of the rows of `small_sets`."""
    train = retain.joined(forget)
    generator = torch.Generator().manual_seed(5)
    effects = size * torch.randn(len(train), len(train), outputs, generator=generator)
    return RowEffects(effects, train.index, train.index, train.hash)
