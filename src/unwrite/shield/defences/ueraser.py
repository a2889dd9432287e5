"""Erase what protects by augmentations strong enough to drown it, and train on the one that is hardest.

Every picture is augmented several times; the model learns from the copy that it is worst at, which is the one where the noise
says least. (UEraser, adversarial augmentation, arXiv 2303.15127)

    L = mean_i max_k CE(f(P_k(x_i)), y_i),   P = plasma brightness, plasma contrast, channel shuffle, TrivialAugment

The search costs as many forward passes as copies, so it is for the first part of the training; then one copy is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.vision_layout import logits_of
from ..base import need_choice, need_number
from ..engine.augmenting import plasma_brightness, plasma_contrast, shuffle_channels, trivial_augment
from ..engine.squeezed import jpeg
from .base import Defence, TrainingMoment, plain_loss

__all__ = ["UEraser", "hardest"]


@dataclass(frozen=True, kw_only=True)
class UEraser(Defence):
    """Trains on the hardest of several strong augmentations of each picture.

    Args:
        repeats: copies of each picture while it is searched, at least 0; 0 trains on the pictures as they are. 5 in the paper.
        schedule: "early", several copies for the first part of the training and one after that; "max", several always; "lite",
            one always.
        early: the share of the epochs with several copies, 0 to 1; the first 60 of 200 in the paper's README.
        chance: of each of the first three augmentations, 0 to 1.
        quality: of a JPEG compression behind the others, 1 to 100; none for none. 10 in the paper's variant.
    """

    numbered = "repeats"

    repeats: int = 5
    schedule: Literal["early", "max", "lite"] = "early"
    early: float = 0.3
    chance: float = 0.5
    quality: int | None = None

    def __post_init__(self) -> None:
        need_number("repeats", self.repeats, at_least=0, whole=True)
        need_choice("schedule", self.schedule, ("early", "max", "lite"))
        need_number("early", self.early, at_least=0, at_most=1)
        need_number("chance", self.chance, at_least=0, at_most=1)
        need_number("quality", 1 if self.quality is None else self.quality, at_least=1, at_most=100, whole=True)

    def copies(self, epoch: int, epochs: int) -> int:
        """How many copies of each picture are drawn in this epoch."""
        if self.schedule == "max" or (self.schedule == "early" and epoch < round(self.early * epochs)):
            return self.repeats
        return min(1, self.repeats)

    def loss(self, model: nn.Module, pixels: Tensor, labels: Tensor, moment: TrainingMoment) -> Tensor:
        copies = self.copies(moment.epoch, moment.epochs)
        if copies == 0:
            return plain_loss(model, pixels, labels)
        augmented = self.augmented(pixels.repeat(copies, 1, 1, 1), moment.generator)
        losses = F.cross_entropy(logits_of(model, augmented), labels.repeat(copies), reduction="none")
        return hardest(losses, copies)

    def augmented(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Every picture through the chain, with draws of its own."""
        pixels = plasma_brightness(pixels, generator, chance=self.chance)
        pixels = plasma_contrast(pixels, generator, chance=self.chance)
        pixels = shuffle_channels(pixels, generator, chance=self.chance)
        pixels = trivial_augment(pixels, generator)
        return pixels if self.quality is None else jpeg(pixels, self.quality)


def hardest(losses: Tensor, copies: int) -> Tensor:
    """The mean over pictures of the largest loss of their copies.

    Args:
        losses: `[copies * rows]`, all rows of the first copy before those of the second.
    """
    return losses.view(copies, -1).max(0).values.mean()
