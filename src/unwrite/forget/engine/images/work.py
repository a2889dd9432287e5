"""One application of a method to an image model: what was given, and what methods ask of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ....data.images.images import Images
from ....errors import MethodError, ModelError, unknown
from ....models.curvature import evaluating
from ....models.vision_layout import VisionLayout, logits_of, vision_layout
from ...base import Work
from ..checks import require

__all__ = ["ImageArguments", "ImageWork", "image_arguments"]

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

    def __post_init__(self) -> None:
        for name in ("learning_rate", "momentum", "weight_decay"):
            require(name, getattr(self, name), at_least=0)
        require("num_train_epochs", self.num_train_epochs, at_least=0)
        require("per_device_train_batch_size", self.per_device_train_batch_size, at_least=1)
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


def image_arguments(args: Any, defaults: dict[str, Any] | None = None) -> ImageArguments:
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


@dataclass(kw_only=True)
class ImageWork(Work):
    """As `Work`, with what methods on images ask for. Teachers are in evaluation mode and get no gradient.

    Args:
        forget, retain, holdout: `Images`.
    """

    _before: nn.Module | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.peft_config is not None:
            raise MethodError("adapters (peft_config) are for language models. Train an image model's own weights.")
        if not isinstance(self.model, nn.Module):
            raise ModelError(f"the model is {type(self.model).__name__}, not a torch module.")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @cached_property
    def layout(self) -> VisionLayout:
        """The model's head, features, blocks and norms.

        Raises:
            ModelError: as `vision_layout`; outputs that don't fit the data.
        """
        rows = min(2, len(self.forget))
        found = vision_layout(self.model, self.forget.pixels[:rows].to(self.device))
        if found.num_outputs != self.forget.num_outputs:
            raise ModelError(
                f"the model has {found.num_outputs} outputs and the data {self.forget.num_outputs} "
                f"{'classes' if self.forget.labels is not None else 'target'}. Give a model made for this data."
            )
        return found

    def settings(self, defaults: dict[str, Any]) -> ImageArguments:
        """The training arguments: what was given, before a method's own defaults."""
        return image_arguments(self.args, defaults)

    def before(self) -> nn.Module:
        """A frozen copy of the model; of the weights it had when this was first asked for."""
        if self._before is None:
            self._before = frozen(copy.deepcopy(self.model))
        return self._before

    def fresh(self, seed: int) -> nn.Module:
        """A new, untrained model of the recipe, on the model's device.

        Raises:
            MethodError: there is no recipe.
        """
        if self.recipe is None:
            raise MethodError("a fresh model is needed. Give the recipe that trained this one.")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: nn.Module = self.recipe.build(seed)
        return model.to(self.device)

    @torch.no_grad()
    def outputs(self, model: nn.Module, rows: Images, batch_size: int = 256) -> Tensor:
        """`[rows, outputs]` in evaluation mode, whose forwards are counted."""
        with evaluating(model):
            found = [logits_of(model, pixels) for pixels, _, _ in self.batches(rows, batch_size)]
        self.cost.add(len(rows))
        return torch.cat(found)

    @torch.no_grad()
    def features(self, model: nn.Module, rows: Images, batch_size: int = 256) -> Tensor:
        """`[rows, dim]`, what goes into the head, in evaluation mode."""
        layout = self.layout.of(model)
        with evaluating(model):
            found = [layout.observe(pixels).features for pixels, _, _ in self.batches(rows, batch_size)]
        self.cost.add(len(rows))
        return torch.cat(found)

    def batches(self, rows: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(pixels, target, index) in the set's own order, on the model's device."""
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            yield cast(
                "tuple[Tensor, Tensor, Tensor]",
                tuple(tensor.to(self.device) for tensor in (part.pixels, part.target, part.index)),
            )


def frozen(model: nn.Module) -> nn.Module:
    """In evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)
