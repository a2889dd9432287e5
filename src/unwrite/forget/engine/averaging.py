"""The mean of the weights over a training, kept beside them and put in their place at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from ...errors import MethodError, notice, setting
from .shards import whole

__all__ = ["WeightAverage"]


@dataclass
class WeightAverage(TrainerCallback):
    """Takes the weights at some steps and keeps their running mean, which is part of every checkpoint.

    What isn't trained is its own mean. The mean is kept in float32 at least, whatever the weights are.

    Args:
        start: the first optimiser step after which the weights are taken, from 1.
        interval: optimiser steps from one to the next.
    """

    start: int = 100
    interval: int = 5
    taken: int = 0
    means: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Refuses a training that ends before there is anything to average.

        Raises:
            MethodError: it has `start` steps or fewer.
        """
        if self.start >= state.max_steps:
            raise MethodError(
                f"weights are averaged from step {self.start} on, but this training has {state.max_steps} steps, so "
                f"nothing would be averaged. Lower {setting('start')}, or train longer."
            )

    @torch.no_grad()
    def on_step_end(
        self, args: object, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Takes the weights, if it is a step for it."""
        since = state.global_step - self.start
        if since < 0 or since % self.interval:
            return
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                now = whole(parameter.detach()).to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
                mean = self.means.setdefault(name, now).to(now.device)
                self.means[name] = mean + (now - mean) / (self.taken + 1)
        self.taken += 1

    def checkpoint_state(self) -> dict[str, Any]:
        """How many weights are in the mean."""
        return {"taken": self.taken}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Goes on with a resumed training's number."""
        self.taken = int(state["taken"])

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """The mean by parameter name."""
        return self.means

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on with a resumed training's mean."""
        self.means = dict(tensors)

    @torch.no_grad()
    def place(self, model: nn.Module) -> None:
        """Puts the mean in the weights' place; says so where training ended before there was one."""
        if not self.taken:
            notice(f"training ended before step {self.start}, so these are the last weights and no average of several.")
        for name, parameter in model.named_parameters():
            if name in self.means:
                parameter.copy_(self.means[name])
