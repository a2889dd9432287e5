"""What trained methods on images share: phases that say all, epochs one by one, and the kinds of data refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ....data.images.images import Images
from ....errors import DataError, MethodError
from ...base import Objective
from .work import ImageArguments, ImageWork

__all__ = ["FINE_TUNING", "Phased", "another", "need_classes", "placed", "rounds"]

# Fine-tuning as SSD's code has it; what is compared with it bit for bit trains alike.
FINE_TUNING: dict[str, Any] = {"learning_rate": 0.02, "num_train_epochs": 5}


@dataclass(frozen=True, kw_only=True)
class Phased(Objective):
    """An objective that its phases tell whole: the weights and the retain term of pairing have no meaning in it.

    So `forget_weight`, `retain_loss`, `retain_weight` and `kl_mask` keep their defaults.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for one in fields(Objective):
            if getattr(self, one.name) != one.default:
                raise MethodError(
                    f"{one.name}={getattr(self, one.name)!r} has no meaning for {type(self).__name__}, which weighs forget "
                    "and retain rows by fields of its own. Leave it out."
                )


def rounds(epochs: float) -> list[float]:
    """Epochs one by one, the last maybe a part of one.

    >>> rounds(2.5)
    [1.0, 1.0, 0.5]
    """
    return [min(1.0, epochs - done) for done in range(math.ceil(epochs))]


def need_classes(method: Any, rows: Images, most: int | None = None) -> Tensor:
    """The labels of `rows`, `[rows]`.

    Args:
        method: who asks, for the message.
        most: largest number of different labels with a meaning, or None.

    Raises:
        DataError: regression targets; a single class in all; more than `most` classes in these rows.
    """
    name = type(method).__name__
    if rows.labels is None:
        raise DataError(f"{name} needs labels, and {rows.name} has regression targets. Use a method for regressors.")
    if len(rows.classes) < 2:
        raise DataError(f"{name} needs at least 2 classes, and {rows.name} has only {rows.classes[0]!r}.")
    found = rows.labels.unique()
    if most is not None and len(found) > most:
        raise DataError(
            f"{name} forgets at most {most} class, and {rows.name} has rows of {len(found)}. Split it by class."
        )
    return rows.labels


def placed(work: ImageWork, settings: ImageArguments) -> None:
    """Puts the model where it will be trained, for what has to be computed before."""
    if settings.device is not None:
        work.model.to(settings.device)


def another(settings: ImageArguments) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    """A function that builds the arguments' optimiser, unlike every other such: its phases share no moments with others."""

    def build(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return settings.optimiser(parameters)

    return build
