"""A step that follows something else than its loss's gradient: forget and retain rows apart, at weights of its choosing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..batch import make_parts
from ..landscape import Landscape, plus

if TYPE_CHECKING:
    from .trainer import UnlearnTrainer

__all__ = ["descend"]


def descend(trainer: UnlearnTrainer, model: nn.Module, batches: Sequence[Any]) -> Tensor:
    """Puts what the phase's descent makes of the forget rows, with the retain rows' gradient, into `grad`; gives the loss.

    Args:
        model: without the wrapper that would average gradients over processes, for they are summed here.
        batches: all of an optimiser step on this process.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    forget = [{name: part for name, part in batch.items() if name != "retain"} for batch in batches]
    retain = [{"retain": batch["retain"]} for batch in batches if "retain" in batch]
    summed = partial(_summed, trainer)
    seed = (trainer.args.seed, trainer.state.global_step)
    landscape = Landscape(parameters, _losses(trainer, model, forget), seed, summed)
    assert trainer.phase.descent is not None
    gradient, logs = trainer.phase.descent(landscape)
    total, forwards, backwards = landscape.value or 0.0, landscape.forwards, landscape.backwards
    if retain:
        slope = Landscape(parameters, _losses(trainer, model, retain), total=summed).slope()
        gradient = plus(gradient, 1, slope.gradient)
        total, forwards, backwards = total + slope.value, forwards + 1, backwards + 1
    for parameter, one in zip(parameters, gradient, strict=True):
        parameter.grad = one
    trainer.keep_logs({}, {**logs, "forwards": forwards, "backwards": backwards})
    return torch.tensor(total, device=trainer.args.device)


def _losses(trainer: UnlearnTrainer, model: nn.Module, batches: Sequence[Any]) -> list[Callable[[], Tensor]]:
    """What computes each batch's share of the loss at the weights as they are then; its first value is logged."""
    logged: set[int] = set()

    def loss_of(number: int) -> Tensor:
        with trainer.compute_loss_context_manager():
            total, totals, logs = trainer.total_of(model, make_parts(batches[number], trainer.retain_mask))
        if number not in logged:
            trainer.keep_logs(totals, logs)
            logged.add(number)
        return total

    return [partial(loss_of, number) for number in range(len(batches))]


def _summed(trainer: UnlearnTrainer, tensor: Tensor) -> Tensor:
    """Over all processes."""
    if trainer.accelerator.num_processes == 1:
        return tensor
    return cast("Tensor", trainer.accelerator.reduce(tensor, reduction="sum"))
