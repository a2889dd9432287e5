"""Relearn time: how many steps until the forget rows are known again, beside a model that never knew them?

A model that still holds what it seems to have forgotten learns it faster (arXiv 2210.08196, section 5.2):

    AIN = steps(unlearned) / steps(oracle),   steps until  loss on forget-validation <= (1 + slack) * the original's

1 is ideal, near 0 means that the knowledge is still there. At least one step is taken, so the original needs one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import DataError, MethodError, NotFinite, unknown
from ...runs import progress
from ..base import Score
from ..images.arrays import ArrayLike

Pair = tuple[ArrayLike, ArrayLike]  # inputs [rows, ...] and targets [rows] or [rows, 1]
Batches = Callable[[int], Iterable[Pair]]  # the batches of an epoch, by its number
LossName = Literal["l1", "mse", "cross_entropy"]
LossOf = LossName | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Relearning:
    """How long a model took to learn the rows again.

    Args:
        steps: optimiser steps taken, at least 1.
        reached: whether the last of them met the bar.
        losses: [steps] the validation loss after each.
    """

    steps: int
    reached: bool
    losses: list[float] = field(default_factory=list)


def relearn(
    model: nn.Module,
    train: Pair | Batches,
    validation: Pair,
    bar: float,
    *,
    loss: LossOf = "l1",
    learning_rate: float = 0.01,
    batch_size: int = 256,
    epochs: int = 10,
    seed: int = 0,
) -> Relearning:
    """Trains a copy of `model` by Adam until its validation loss is at most `bar`, looking after every step.

    Args:
        train: inputs [rows, ...] and targets [rows] of all training rows, or a function that gives an epoch's batches.
        validation: forget rows that are not trained on; their loss is the mean over rows.
        bar: 1.05 times the original model's loss in the paper.
        loss: "l1", "mse", "cross_entropy", or a function of the model's output and a batch's targets giving their mean.
        epochs: it gives up after so many.
        seed: order of the rows, and dropout.
    """
    if not learning_rate > 0 or batch_size < 1 or epochs < 1:
        raise MethodError(
            f"relearning needs a learning rate above 0 and batch_size and epochs of at least 1, not {learning_rate}, "
            f"{batch_size} and {epochs}."
        )
    if not bar >= 0:
        raise MethodError(f"relearning stops at a loss of at least 0, not {bar}.")
    student = copy.deepcopy(model).requires_grad_(True)
    batches = train if callable(train) else _shuffled(student, train, batch_size, seed)
    losses: list[float] = []
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        optimiser = torch.optim.Adam(student.parameters(), lr=learning_rate)
        for epoch in progress(range(epochs), "relearning"):
            for inputs, targets in batches(epoch):
                student.train()
                optimiser.zero_grad()
                _loss(student, inputs, targets, loss).backward()
                optimiser.step()
                losses.append(validation_loss(student, validation, loss, batch_size))
                if not math.isfinite(losses[-1]):
                    raise NotFinite(
                        f"relearning's loss is {losses[-1]} after {len(losses)} steps at a learning rate of "
                        f"{learning_rate}; lower it."
                    )
                if losses[-1] <= bar:
                    return Relearning(len(losses), True, losses)
    if not losses:
        raise DataError("relearning got no batch to train on; give training rows.")
    return Relearning(len(losses), False, losses)


def validation_loss(model: nn.Module, rows: Pair, loss: LossOf = "l1", batch_size: int = 256) -> float:
    """Returns the mean loss over the rows in evaluation mode, whatever the batches; the model's mode is put back."""
    inputs, targets = _tensors(model, *rows)
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    total = 0.0
    with torch.no_grad():
        for at in range(0, len(inputs), batch_size):
            part = targets[at : at + batch_size]
            total += float(_loss(model, inputs[at : at + batch_size], part, loss)) * len(part)
    for module, mode in modes:
        module.training = mode
    return total / len(inputs)


def ain(
    unlearned: nn.Module,
    oracle: nn.Module,
    original: nn.Module,
    train: Pair | Batches,
    validation: Pair,
    *,
    slack: float = 0.05,
    loss: LossOf = "l1",
    batch_size: int = 256,
    **settings: Any,
) -> Score:
    """Divides the relearn time of the unlearned model by the oracle's (AIN); the three models stay as they are.

    Args:
        train, validation, loss, batch_size, settings: as `relearn` takes them, the same for both models.
        slack: how much more than the original's loss is as good.

    Returns:
        A score whose `per_example` is empty; one side that gives up makes it a bound, said in the note, both make it
        None.
    """
    if not slack >= 0:
        raise MethodError(f"the slack over the original's loss is at least 0, not {slack}.")
    bar = (1 + slack) * validation_loss(original, validation, loss, batch_size)
    ours, theirs = (
        relearn(model, train, validation, bar, loss=loss, batch_size=batch_size, **settings)
        for model in (unlearned, oracle)
    )
    note = f"{ours.steps} steps against the oracle's {theirs.steps} to a loss of {bar:.4g}."
    if not ours.reached and not theirs.reached:
        return Score("ain", None, [], "toward_reference", f"{note} Neither got there; train longer.")
    if not ours.reached:
        note += " The unlearned model did not get there: at least this value."
    if not theirs.reached:
        note += " The oracle did not get there: at most this value."
    return Score("ain", ours.steps / theirs.steps, [], "toward_reference", note)


def _shuffled(model: nn.Module, rows: Pair, batch_size: int, seed: int) -> Batches:
    inputs, targets = _tensors(model, *rows)

    def epoch(number: int) -> Iterator[Pair]:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed + number))
        parts = list(order.split(batch_size))
        if len(parts) > 1 and len(parts[-1]) == 1:  # batch normalisation can't train on a single row
            parts[-2:] = [torch.cat(parts[-2:])]
        for part in parts:
            yield inputs[part.to(inputs.device)], targets[part.to(targets.device)]

    return epoch


def _tensors(model: nn.Module, inputs: ArrayLike, targets: ArrayLike) -> tuple[Tensor, Tensor]:
    """Moves rows to the model's device, floating inputs in its precision."""
    weight = next(model.parameters(), None)
    if weight is None:
        raise DataError(f"a {type(model).__name__} without parameters can't learn anything again.")
    x, y = (torch.as_tensor(part).to(weight.device) for part in (inputs, targets))
    if x.ndim == 0 or len(x) == 0 or len(x) != len(y):
        raise DataError(
            f"relearning takes inputs and targets of the same rows, not {list(x.shape)} and {list(y.shape)}."
        )
    for name, part in (("inputs", x), ("targets", y)):
        if not bool(torch.isfinite(part).all()):
            raise DataError(f"the {name} to relearn are not finite; clean them first.")
    return (x.to(weight.dtype) if x.is_floating_point() else x), (y.to(weight.dtype) if y.is_floating_point() else y)


def _loss(model: nn.Module, inputs: ArrayLike, targets: ArrayLike, loss: LossOf) -> Tensor:
    """Returns the mean loss of a batch. Regression outputs and targets are flattened, so that [rows, 1] and [rows] don't broadcast."""
    x, y = _tensors(model, inputs, targets)
    result = model(x)
    output = result if isinstance(result, Tensor) else result.logits if hasattr(result, "logits") else result[0]
    if callable(loss):
        return loss(output, y)
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(output, y)
    if output.numel() != y.numel():
        raise DataError(
            f"the model returns {list(output.shape)} for targets {list(y.shape)}; a regressor gives one a row."
        )
    if loss == "l1":
        return nn.functional.l1_loss(output.reshape(-1), y.reshape(-1).to(output.dtype))
    if loss == "mse":
        return nn.functional.mse_loss(output.reshape(-1), y.reshape(-1).to(output.dtype))
    raise MethodError(unknown("relearning loss", str(loss), ("l1", "mse", "cross_entropy")))
