"""Cut and mix: hide a square of every picture, or train on two pictures at once.

What protects covers the whole picture and goes with one label; a hole takes a part of it out, and a mixture goes with two labels.
(Cutout, arXiv 1708.04552; MixUp, arXiv 1710.09412; CutMix, arXiv 1905.04899)

    MixUp: x' = l x_i + (1 - l) x_j, y' = l y_i + (1 - l) y_j, l ~ Beta(a, a);   CutMix: x_j in a box of share 1 - l of x_i

Partners are the batch in another order, one for each picture, and one l a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.vision_layout import logits_of
from ..base import need_number
from .base import Defence, TrainingMoment, plain_loss

__all__ = ["CutMix", "Cutout", "MixUp"]


@dataclass(frozen=True, kw_only=True)
class Cutout(Defence):
    """Blacks out a square at a random place of every picture.

    Args:
        side: of the square in pixels, at least 1; none for half of the picture's shorter side, 16 of 32 in the paper.
    """

    numbered = "side"

    side: int | None = None

    def __post_init__(self) -> None:
        need_number("side", 1 if self.side is None else self.side, at_least=1, whole=True)

    def loss(self, model: nn.Module, pixels: Tensor, labels: Tensor, moment: TrainingMoment) -> Tensor:
        return plain_loss(model, self.cut(pixels, moment.generator), labels)

    def cut(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures with a black square each, of which the edge may cut off a part: its centre lies anywhere."""
        rows, _, height, width = pixels.shape
        side = max(1, min(height, width) // 2) if self.side is None else self.side
        inside = []
        for length in (height, width):
            first = torch.randint(length, (rows, 1), generator=generator) - side // 2
            place = torch.arange(length)
            inside.append((place >= first) & (place < first + side))
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # [rows, 1, height, width]
        return pixels.masked_fill(hole.to(pixels.device), 0)


@dataclass(frozen=True, kw_only=True)
class MixUp(Defence):
    """Trains on mixtures of two pictures and of their labels.

    Args:
        concentration: of the Beta distribution that the share of the first is drawn from, above 0; 1 is uniform.
    """

    concentration: float = 1.0

    def __post_init__(self) -> None:
        need_number("concentration", self.concentration, above=0)

    def loss(self, model: nn.Module, pixels: Tensor, labels: Tensor, moment: TrainingMoment) -> Tensor:
        share = beta_share(self.concentration, moment.generator)
        partners = torch.randperm(len(pixels), generator=moment.generator).to(pixels.device)
        mixed = share * pixels + (1 - share) * pixels[partners]
        return mixed_loss(model, mixed, labels, labels[partners], share)


@dataclass(frozen=True, kw_only=True)
class CutMix(Defence):
    """Trains on pictures with a box of another one in them, and on labels mixed by area.

    Args:
        concentration: as `MixUp` has it: the box covers one minus the share drawn.
    """

    concentration: float = 1.0

    def __post_init__(self) -> None:
        need_number("concentration", self.concentration, above=0)

    def loss(self, model: nn.Module, pixels: Tensor, labels: Tensor, moment: TrainingMoment) -> Tensor:
        generator = moment.generator
        share = beta_share(self.concentration, generator)
        partners = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        top, bottom, left, right = box_of(pixels.shape[2], pixels.shape[3], share, generator)
        mixed = pixels.clone()
        mixed[:, :, top:bottom, left:right] = pixels[partners][:, :, top:bottom, left:right]
        area = (bottom - top) * (right - left) / (pixels.shape[2] * pixels.shape[3])
        return mixed_loss(model, mixed, labels, labels[partners], 1 - area)


def beta_share(concentration: float, generator: torch.Generator) -> float:
    """A draw from Beta(a, a): numpy's, seeded by the generator, since torch's takes none."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(concentration, concentration))


def box_of(height: int, width: int, share: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A box of 1 - share of a picture about a random place, cut off at the edges: top, bottom, left, right."""
    ends: list[int] = []
    for length in (height, width):
        side = int(length * (1 - share) ** 0.5)
        first = int(torch.randint(length, (), generator=generator)) - side // 2
        ends += [max(0, first), min(length, max(0, first + side))]
    return ends[0], ends[1], ends[2], ends[3]


def mixed_loss(model: nn.Module, pixels: Tensor, labels: Tensor, partners: Tensor, share: float) -> Tensor:
    """Cross-entropy of both labels, the first weighted by its share; with share 1 exactly that of the first alone.

    Args:
        labels, partners: `[rows]`, of the two pictures in each.
    """
    logits = logits_of(model, pixels)
    return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, partners)
