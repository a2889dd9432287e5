"""Train some weights and leave the others exactly as they are, whatever the optimiser: masks of saliency and pruning.

A masked-out gradient alone does not hold a weight still: momentum and weight decay move it. So gradients are masked
before a step, and weights and moments put back after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from ...errors import ModelError
from .shards import share, share_of

__all__ = ["KeepMask"]


@dataclass
class KeepMask(TrainerCallback):
    """Weights outside the mask stay bit-identical to what they were when training began.

    Args:
        masks: booleans by parameter name, in the parameter's shape, true where a weight is trained. Parameters not
            named are trained as a whole.
    """

    masks: Mapping[str, Tensor]
    _kept: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, repr=False)

    def on_train_begin(
        self, args: object, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Notes the weights.

        Raises:
            ModelError: a mask without its parameter, or of another shape.
        """
        parameters = dict(model.named_parameters())
        self._kept = []
        for name, mask in self.masks.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != mask.shape:
                have = "is not there" if parameter is None else f"has shape {list(parameter.shape)}"
                raise ModelError(f"the mask names {name} {list(mask.shape)}, which {have} in this model.")
            out = share_of(~mask.to(parameter.device), parameter)
            self._kept.append((parameter, out, share(parameter.detach())[out].clone()))

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: object, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """No gradient outside the mask."""
        for parameter, out, _values in self._kept:
            if parameter.grad is not None:
                share(parameter.grad)[out] = 0

    @torch.no_grad()
    def on_optimizer_step(
        self, args: object, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Weights as they were, moments zero."""
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        for parameter, out, values in self._kept:
            share(parameter)[out] = values
            for moment in inner.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    share(moment)[out] = 0
