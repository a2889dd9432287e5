"""What tests of defences share: a few pictures with labels, a small model, a generator and a moment of a training."""

import numpy as np
import torch
from torch.nn import functional as F

from helpers.pictures import Linear
from unwrite.shield import TrainingMoment

ROWS = torch.arange(6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moment(epoch=0, epochs=10, seed=0):
    return TrainingMoment(epoch, epochs, generator(seed))


def pictures(channels=3, side=8, rows=6, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, channels, side, side))
    return torch.from_numpy(pixels).float() / 255, torch.arange(rows) % 3


def model(channels=3, side=8):
    torch.manual_seed(0)
    return Linear(3, channels, side).train()


def plain(net, pixels, labels):
    return F.cross_entropy(net(pixels), labels)
