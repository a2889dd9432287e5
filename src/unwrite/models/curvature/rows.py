"""Every row's own gradient, for the price of one backward a batch where the model's operations are known.

Where one parameter goes into an operation that isn't known, or rows can't be told apart, the rows of that batch and of
all later ones go through the model one at a time: slower, never wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import DataError, MethodError, ModelError
from .batches import rows_of, take
from .recording import Met, Recorder, check
from .uses import Power, Use, accumulate, samples

__all__ = ["Loss", "RowGradients", "Values", "evaluating", "need_rows", "row_losses", "trainable"]

Loss = Callable[[nn.Module, Any], Tensor]  # model, batch -> [rows], each row's own loss
Values = Callable[[nn.Module, Any], Tensor]  # model, batch -> [passes, rows]: a backward each
_CHECKED = 2  # rows on which it is proved that rows are told apart: one that reaches into another's part shows


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients on; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad` by name, a shared one once, under its first name.

    Raises:
        ModelError: there are none.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ModelError(
            f"this {type(model).__name__} has no parameter with requires_grad. Turn it on for those that matter."
        )
    return parameters


def need_rows(losses: Any) -> Tensor:
    """What a loss gave, if it is `[rows]` and has a gradient.

    Raises:
        MethodError: not a loss a row, or none that has a gradient.
        DataError: no rows.
    """
    if not isinstance(losses, Tensor) or losses.dim() != 1:
        what = f"a tensor of shape {list(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        raise MethodError(f"the loss gave {what}. It must give one loss a row, [rows], not yet averaged.")
    if not len(losses):
        raise DataError("a batch has no rows. Leave empty batches out.")
    if not losses.requires_grad:
        raise MethodError("the loss does not depend on any parameter with requires_grad, so it has no gradient.")
    return losses


def row_losses(loss: Loss) -> Values:
    """A loss as the one value of each row to differentiate, `[1, rows]`."""
    return lambda model, batch: need_rows(loss(model, batch))[None]


class RowGradients:
    """Gradients of single rows, of the model's linear layers.

    Args:
            model: in evaluation mode whenever this is used.
            values: what to differentiate, `[passes, rows]`.
            parameters: by name, as `trainable` gives them.

        Attributes:
            rows: seen so far.
            cost: in forwards of one row so far; a backward counts 2.
            looped: parameters because of which rows go through the model one at a time; empty if they don't.
    """

    def __init__(self, model: nn.Module, values: Values, parameters: Mapping[str, Tensor]) -> None:
        self.model, self.values, self.parameters = model, values, parameters
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.rows, self.cost = 0, 0.0
        self.looped: tuple[str, ...] = ()
        self._checked: set[tuple[Any, ...]] = set()

    def add(self, batch: Any, totals: Mapping[str, Tensor], power: Power) -> None:
        """Adds `sum_row sum_pass power(gradient)` to `totals`, by parameter name."""
        recorded = self._record(batch)
        if recorded is None:
            into = list(totals.values())
            for grads in self._one_by_one(batch):
                raised = [grad.to(total.dtype) for grad, total in zip(grads, into, strict=True)]
                if power == "square":
                    torch._foreach_addcmul_(into, raised, raised)
                else:
                    torch._foreach_add_(into, torch._foreach_abs(raised))
            return
        recorder, values = recorded
        rows = values.shape[1]
        expected = Counter(met.use.name for met in recorder.met)
        waiting: dict[str, list[tuple[Use, Tensor]]] = defaultdict(list)

        def arrived(met: Met, grad: Tensor) -> None:
            name = met.use.name
            waiting[name].append((met.use, grad))
            if len(waiting[name]) == expected[name]:  # a tied weight's gradients add up before they are squared
                accumulate(totals[name], waiting.pop(name), rows, power)

        recorder.arrived = arrived
        for last, value in _last(values):
            torch.autograd.grad(value.sum(), recorder.lowest(), retain_graph=not last, allow_unused=True)
            for name in list(waiting):  # of which not all uses matter to the loss
                accumulate(totals[name], waiting.pop(name), rows, power)

    def blocks(self, batch: Any, size: int) -> Iterator[Tensor]:
        """The rows' gradients, `size` at a time: `[<= size, all parameters]`, flat, in the order of `parameters`."""
        with evaluating(self.model):
            recorded = self._record(batch)
            uses: dict[str, list[tuple[Use, Tensor]]] = defaultdict(list)
            if recorded is not None:
                recorder, values = recorded
                recorder.arrived = lambda met, grad: uses[met.use.name].append((met.use, grad))
                torch.autograd.grad(values.sum(), recorder.lowest(), allow_unused=True)
                rows = values.shape[1]
        if recorded is None:
            yield from self._looped_blocks(batch, size)
            return
        for first in range(0, rows, size):
            count = min(size, rows - first)
            with torch.no_grad():
                parts = [
                    samples(uses[name], rows, first, count).flatten(1)
                    if name in uses
                    else parameter.new_zeros(count, parameter.numel())
                    for name, parameter in self.parameters.items()
                ]
                yield torch.cat(parts, 1)

    def _looped_blocks(self, batch: Any, size: int) -> Iterator[Tensor]:
        block: list[Tensor] = []
        rows = self._one_by_one(batch)
        while True:
            with evaluating(self.model):  # never across a yield: the model is the caller's in between
                grads = next(rows, None)
            if grads is not None:
                block.append(torch.cat([grad.flatten() for grad in grads]))
            if block and (grads is None or len(block) == size):
                yield torch.stack(block)
                block = []
            if grads is None:
                return

    def _record(self, batch: Any) -> tuple[Recorder, Tensor] | None:
        """A forward of the batch of which every use is known, and its values; None if its rows must go one by one."""
        if self.looped or rows_of(batch) == 1:
            return None
        recorder, values = self._forward(batch)
        if values is None or values.shape[1] == 1:
            return None
        passes, rows = values.shape
        strange = recorder.strange(rows)
        layout = recorder.layout(rows) if not strange else ()
        if not strange and layout not in self._checked:
            strange = self._check(batch, rows, layout)
            self._checked.add(layout)
        if strange:
            self.looped = tuple(name for name in self.parameters if name in strange)
            return None
        self.rows += rows
        self.cost += 2 * passes * rows
        return recorder, values

    def _check(self, batch: Any, rows: int, layout: tuple[Any, ...]) -> set[str]:
        try:
            part = take(batch, rows, 0, min(rows, _CHECKED))
        except DataError:
            part = batch
        recorder, values = self._forward(part)
        if values is None:
            return set(self.looped)
        few = values.shape[1]
        strange = check(recorder, values.sum(0))
        self.cost += 4 * few
        if not strange and recorder.layout(few) != layout:  # the forward depends on what is in the rows
            strange = {met.use.name for met in recorder.met}
        return strange

    def _forward(self, batch: Any) -> tuple[Recorder, Tensor | None]:
        recorder = Recorder(self.names, rows_of(batch), lambda met, grad: None)
        try:
            with recorder:
                values = self.values(self.model, batch)
        except RuntimeError:
            if not recorder.spread:
                raise
            self.looped = tuple(recorder.spread)  # the model wants one look-up for all rows
            return recorder, None
        self.cost += values.shape[1]
        return recorder, values

    def _one_by_one(self, batch: Any) -> Iterator[list[Tensor]]:
        rows = rows_of(batch)
        if rows is None:
            rows = self.values(self.model, batch).shape[1]
            self.cost += rows
        leaves = list(self.parameters.values())
        for row in range(rows):
            values = self.values(self.model, batch if rows == 1 else take(batch, rows, row, 1))
            if values.shape[1] != 1:
                raise MethodError(
                    f"the loss of one row gave {values.shape[1]} losses. It must give one loss a row of the batch."
                )
            self.rows += 1
            self.cost += 1 + 2 * len(values)
            for last, value in _last(values):
                grads = torch.autograd.grad(value.sum(), leaves, retain_graph=not last, allow_unused=True)
                yield [
                    torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)
                ]


def _last(values: Tensor) -> Iterator[tuple[bool, Tensor]]:
    for number, value in enumerate(values):
        yield number == len(values) - 1, value
