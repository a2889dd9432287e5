"""What every defence is: a change of the pictures before they are trained on, another loss, or both.

    AdversarialTraining(eps=8 / 255)        its fields are its hyper-parameters
    defence.transform(pixels, rows, generator)          what is trained on, before crop and flip
    defence.loss(model, pixels, labels, moment)         a scalar to minimise, after crop and flip

"Defence" is the literature's word for what whoever trains does against a protection. Both calls fit any loop: transformers'
`Trainer.compute_loss`, or `unwrite.shield.train_attacker`, which gives each its own random numbers, the same after a kill.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.vision_layout import logits_of
from ..engine.pictures import Shape

__all__ = ["Defence", "TrainingMoment", "plain_loss"]


@dataclass(frozen=True)
class TrainingMoment:
    """Where a training stands as a batch's loss is asked for.

    Args:
        epoch: from 0.
        epochs: of the whole training.
        generator: of all that the loss draws; on the CPU.
    """

    epoch: int
    epochs: int
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class Defence:
    """A way to train on pictures that may be protected. A subclass writes `transform`, `loss` or both.

    Pixels are float32 in 0..1, `[rows, channels, height, width]`; what comes back has the same shape and range.
    """

    numbered: ClassVar[str] = ""  # the field that a number behind its name sets, as in jpeg10

    def check(self, shape: Shape) -> None:
        """Refuses pictures of a shape that it has no meaning for, before anything is trained; notices where it changes nothing."""

    def transform(self, pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures as they are trained on; the ones given stay as they are.

        Args:
            pixels: `[rows, channels, height, width]`
            rows: `[rows]`, the pictures' places in their set.
            generator: of all that is drawn, on the CPU.
        """
        return pixels

    def loss(self, model: nn.Module, pixels: Tensor, labels: Tensor, moment: TrainingMoment) -> Tensor:
        """A scalar to minimise.

        Args:
            model: in training mode, and left in it.
            pixels: `[rows, channels, height, width]`, transformed, cropped and flipped.
            labels: `[rows]`
        """
        return plain_loss(model, pixels, labels)

    def seen_at_test(self, pixels: Tensor) -> Tensor:
        """What the trained model is shown of clean pictures: by default the pictures."""
        return pixels

    @classmethod
    def field_of_number(cls, number: int) -> dict[str, Any]:
        """The field that a number behind the name stands for: `jpeg10` has quality 10."""
        return {cls.numbered: number} if cls.numbered else {}

    @property
    def settings(self) -> dict[str, Any]:
        """Class and fields as JSON values: what a training with it depends on."""
        return {"defence": f"{type(self).__module__}.{type(self).__qualname__}", **dataclasses.asdict(self)}


def plain_loss(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy.

    Args:
        pixels: `[rows, channels, height, width]`
        labels: `[rows]`, or `[rows, classes]`, a share of each class.
    """
    return F.cross_entropy(logits_of(model, pixels), labels)
