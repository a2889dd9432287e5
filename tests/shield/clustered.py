"""What tests of noise of clusters share: a surrogate that sees colours and edges, pictures of four colours, and one training."""

import numpy as np
import pytest
import torch
from torch import nn

from unwrite.shield import PictureFeatures
from unwrite.shield.engine.features import FeatureReader
from unwrite.shield.engine.pictures import ArrayPictures
from unwrite.shield.unlearnable_clusters import ClusterTraining

SMALL = {"n_clusters": 3, "width": 4, "blocks": 1, "downsamplings": 1, "steps": 3, "batch_size": 16}
quietly = pytest.mark.filterwarnings("ignore::unwrite.errors.Notice")


class Seer(nn.Module):
    """Two convolutions with batch normalisation, pooled: sees colours and edges; its features differ enough for a softmax."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 12, 3, padding=1)
            self.norm = nn.BatchNorm2d(12)
            self.second = nn.Conv2d(12, 12, 3, 2, padding=1)
            self.fc = nn.Linear(12, 4)
        self.norm.running_mean.fill_(0.1)

    def forward(self, pixels):
        x = torch.relu(self.norm(self.first(pixels - 0.5)))
        return self.fc(40 * torch.relu(self.second(x)).mean((2, 3)))


def painted(rows=48, side=16, seed=0):
    """Uint8 pictures of four colours that lie near one another, with noise."""
    random = np.random.default_rng(seed)
    tones = np.array([[145, 100, 100], [100, 145, 100], [100, 100, 145], [140, 140, 100]])[np.arange(rows) % 4]
    return np.clip(tones[:, :, None, None] + random.normal(0, 12, (rows, 3, side, side)), 0, 255).astype(np.uint8)


def reader_of(seer, side=16, crop=1.0):
    return FeatureReader(PictureFeatures(seer), 3, side, crop, "cpu")


def training_of(shield, seer, pixels, cluster=0):
    pictures = ArrayPictures(pixels, None, "nothing")
    reader = reader_of(seer)
    centres, assignment = shield.clustered(reader.read_all(pictures))
    torch.manual_seed(1)
    return ClusterTraining(shield, reader, pictures, assignment, centres, cluster)
