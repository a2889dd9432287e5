"""The training arguments of methods on images: names as in transformers' TrainingArguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from ....errors import MethodError, setting, unknown
from ..checks import require

__all__ = ["ImageArguments", "image_arguments"]

Optimiser = Literal["sgd", "adam", "adamw"]


@dataclass
class ImageArguments:
    """How the loop on images trains; names as in transformers' TrainingArguments.

    Args:
        learning_rate: > 0, or 0 to leave the weights.
        num_train_epochs: passes over the rows, where a method's phases don't say.
        per_device_train_batch_size: rows a step.
        max_steps: optimiser steps in all after which to stop; -1 for no limit.
        optim: "sgd", "adam" or "adamw".
        momentum: of "sgd".
        weight_decay: of all three.
        mode: "train" (batch statistics are taken and updated, dropout is on) or "eval".
        seed: of the order of rows and of everything drawn.
        device: where to train; None for where the model is.
        output_dir: where a checkpoint is kept after every epoch; None for none.
        resume_from_checkpoint: go on from the checkpoints in `output_dir`; without one from the start.
    """

    learning_rate: float = 0.01
    num_train_epochs: float = 5
    per_device_train_batch_size: int = 64
    max_steps: int = -1
    optim: Optimiser = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    mode: Literal["train", "eval"] = "train"
    seed: int = 42
    device: str | None = None
    output_dir: str | None = None
    resume_from_checkpoint: bool | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "momentum", "weight_decay"):
            require(name, getattr(self, name), at_least=0)
        require("num_train_epochs", self.num_train_epochs, at_least=0)
        require("per_device_train_batch_size", self.per_device_train_batch_size, at_least=1)
        if self.resume_from_checkpoint and self.output_dir is None:
            raise MethodError(
                f"{setting('resume_from_checkpoint')} needs {setting('output_dir')}, where checkpoints are."
            )
        for name, allowed in (("optim", ("sgd", "adam", "adamw")), ("mode", ("train", "eval"))):
            if getattr(self, name) not in allowed:
                raise MethodError(unknown(name, str(getattr(self, name)), allowed))

    def optimiser(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The one that `optim` names."""
        if self.optim == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        kind = torch.optim.Adam if self.optim == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


def image_arguments(
    args: ImageArguments | dict[str, Any] | None, defaults: Mapping[str, Any] | None = None
) -> ImageArguments:
    """Arguments from a dict of differences, which go before a method's own defaults."""
    if isinstance(args, ImageArguments):
        return args
    if args is not None and not isinstance(args, dict):
        raise MethodError(f"args is {type(args).__name__}; pass ImageArguments, or a dict of settings.")
    known = {one.name for one in fields(ImageArguments)}
    for name in args or {}:
        if name not in known:
            raise MethodError(unknown("training argument", name, known))
    return ImageArguments(**{**(defaults or {}), **(args or {})})
