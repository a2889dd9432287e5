"""What trainings on images are made of: epochs one by one, optimisers apart, a setting that several share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arguments import ImageArguments

__all__ = ["FINE_TUNING", "another", "rounds"]

# Fine-tuning as SSD's code has it; what is compared with it bit for bit trains alike.
FINE_TUNING: dict[str, Any] = {"learning_rate": 0.02, "num_train_epochs": 5}


def rounds(epochs: float) -> list[float]:
    """Epochs one by one, the last maybe a part of one.

    >>> rounds(2.5)
    [1.0, 1.0, 0.5]
    """
    return [min(1.0, epochs - done) for done in range(math.ceil(epochs))]


def another(settings: ImageArguments) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    """A function that builds the arguments' optimiser, unlike every other such: its phases share no moments with others."""

    def build(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return settings.optimiser(parameters)

    return build
