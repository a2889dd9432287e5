"""A step of two updates by one optimiser: the forget rows' first, then, at the weights it gave, the retain rows'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..batch import make_parts

if TYPE_CHECKING:
    from .trainer import UnlearnTrainer

__all__ = ["alternate"]


def alternate(trainer: UnlearnTrainer, model: nn.Module, batches: Sequence[Any]) -> Tensor:
    """Updates the weights on the forget rows and leaves the retain rows' gradient in `grad`; gives the sum of both losses.

    Args:
        model: without the wrapper that would average gradients over processes, for they are summed here.
        batches: all of an optimiser step on this process.
    """
    forget = [{name: part for name, part in batch.items() if name != "retain"} for batch in batches]
    retain = [{"retain": batch["retain"]} for batch in batches if "retain" in batch]
    total = _backward(trainer, model, forget)
    if retain:
        trainer.update(model)
        total += _backward(trainer, model, retain)
    return torch.tensor(total, device=trainer.args.device)


def _backward(trainer: UnlearnTrainer, model: nn.Module, batches: Sequence[Any]) -> float:
    """Adds the gradient of the loss over these batches, on all processes; gives the loss."""
    total = torch.zeros((), device=trainer.args.device)
    for batch in batches:
        with trainer.compute_loss_context_manager():
            loss, totals, logs = trainer.total_of(model, make_parts(batch, trainer.retain_mask))
        loss.backward()
        trainer.keep_logs(totals, logs)
        total += loss.detach()
    if trainer.accelerator.num_processes > 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = cast("Tensor", trainer.accelerator.reduce(parameter.grad, reduction="sum"))
        total = cast("Tensor", trainer.accelerator.reduce(total, reduction="sum"))
    return float(total)
