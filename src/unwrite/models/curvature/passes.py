"""Passes over the data: one backward a batch for the batch's mean loss, or for every row's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import DataError, MethodError
from ...runs import progress
from .result import Importances
from .rows import Loss, RowGradients, Values, evaluating, need_rows, row_losses, trainable
from .uses import Power

__all__ = ["Each", "Of", "Over", "fisher", "importances", "importances_with_forget", "row_gradients"]

Each = Literal["batch", "row"]
Of = Literal["square", "absolute", "gradient"]
Over = Literal["mean", "sum"]


def importances(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    each: Each = "batch",
    of: Of = "square",
    over: Over = "mean",
) -> Importances:
    """How much every parameter matters to a loss on some data.

    SSD (arXiv 2308.07707) takes the default, the mean over batches of the squared gradient of the batch's mean loss;
    so batch sizes must agree between what is compared, and the last, smaller batch counts like the others. LFSSD
    (2402.19308) and Potion (2406.09173) take `of="absolute"` with a loss that needs no labels, SalUn (2310.12508)
    `of="gradient", over="sum"`, whose absolute value is its saliency. `each="row"` gives the empirical Fisher
    information's diagonal. The model, its modes, its `.grad`s and the random state stay as they were.

    Args:
        model: any module; it is read in evaluation mode. Parameters with `requires_grad` count, shared ones once.
        batches: anything the loss takes. For `each="row"` on models with operations not known here, rows must be the
            first dimension of all tensors in them.
        loss: `loss(model, batch)` gives each row's own loss, `[rows]`.
        each: whose gradient: that of the mean over a "batch", or of every "row".
        of: "square" or "absolute" value of each such gradient, or the "gradient" as it is.
        over: "mean" over all of them, or "sum".

    Raises:
        DataError: no batches, an empty one, or one whose rows can't be told apart.
        ModelError: no parameters.
        MethodError: a loss that isn't one a row; an option that doesn't exist.
        NotFinite: importances that are not finite.
    """
    _known(each, "each", ("batch", "row"))
    _known(of, "of", ("square", "absolute", "gradient"))
    _known(over, "over", ("mean", "sum"))
    if each == "row" and of != "gradient":
        return _by_row(model, batches, row_losses(loss), of, of, over)
    parameters = trainable(model)
    leaves = list(parameters.values())
    totals: list[Tensor] = []
    rows = count = 0
    with evaluating(model):
        for batch in _shown(batches):
            losses = need_rows(loss(model, batch))
            value = losses.mean() if each == "batch" else losses.sum()
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
            if totals:
                _add(totals, grads, of)
            else:
                totals = _first(leaves, grads, of)
            rows += len(losses)
            count += 1
            del losses, value, grads  # the next forward can have their memory
    tensors = dict(zip(parameters, totals, strict=False))  # there are none without a batch
    return _result(tensors, rows, count, 3.0 * rows, each=each, of=of, over=over)


def importances_with_forget(
    model: nn.Module, retain: Iterable[Any], forget: Iterable[Any], loss: Loss, **options: Any
) -> tuple[Importances, Importances]:
    """I_D and I_f, of all data and of the forget rows, with every batch's gradient computed once.

    I_D is what `importances` gives on the retain batches followed by the forget batches, so the rows of a batch are of
    one kind; a loader that mixes them gives another I_D, since a batch's gradient is averaged before it is squared.

    Args:
        options: `each`, `of` and `over`, as for `importances`.
    """
    of_retain, of_forget = (importances(model, batches, loss, **options) for batches in (retain, forget))
    return of_retain.joined(of_forget), of_forget


def fisher(
    model: nn.Module, batches: Iterable[Any], logits: Callable[[nn.Module, Any], Tensor], *, over: Over = "mean"
) -> Importances:
    """The diagonal of a classifier's Fisher information, over all K labels (Fisher forgetting, arXiv 1911.04933).

        F_i = mean_x sum_y p(y|x) (d CE(f(x), y) / d theta_i)^2

    Args:
        model, batches: as for `importances`.
        logits: `logits(model, batch)` gives `[rows, K]`; a batch costs K backwards.
        over: "mean" over the rows, or "sum".

    Raises:
        as `importances`; MethodError for logits that aren't `[rows, K]`.
    """
    _known(over, "over", ("mean", "sum"))

    def weighted(model: nn.Module, batch: Any) -> Tensor:
        outputs = logits(model, batch)
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise MethodError(f"logits must be [rows, classes], not {list(getattr(outputs, 'shape', []))}.")
        scores = outputs.log_softmax(-1)
        values = (-scores * scores.detach().exp().sqrt()).T  # sqrt(p) here is p once squared
        need_rows(values[0])
        return values

    return _by_row(model, batches, weighted, "square", "expected", over)


def row_gradients(model: nn.Module, batches: Iterable[Any], loss: Loss, *, block: int = 1) -> Iterator[Tensor]:
    """Every row's own gradient, flat, in order: blocks `[<= block, parameters]`, for WoodFisher's recursion.

    The parameters are concatenated as `torch.nn.utils.parameters_to_vector` does with those that have
    `requires_grad`. A batch's activations are held until its last row is taken; the model may be used, but not
    changed, in between.

    Args:
        block: rows at a time; a block ends with its batch. Each block is memory of its own.

    Raises:
        as `importances`, for the batch that is reached.
    """
    if block < 1:
        raise MethodError(f"block={block} has no meaning. Take at least 1 row at a time.")
    rows = RowGradients(model, row_losses(loss), trainable(model))
    for batch in batches:
        yield from rows.blocks(batch, block)
    if not rows.rows:
        raise DataError("there are no batches to take gradients of. Give at least one row.")


def _by_row(model: nn.Module, batches: Iterable[Any], values: Values, power: Power, of: str, over: str) -> Importances:
    parameters = trainable(model)
    totals = {name: torch.zeros_like(_wide(parameter.detach())) for name, parameter in parameters.items()}
    gradients = RowGradients(model, values, parameters)
    count = 0
    with evaluating(model):
        for batch in _shown(batches):
            gradients.add(batch, totals, power)
            count += 1
    looped = gradients.looped
    return _result(totals, gradients.rows, count, gradients.cost, each="row", of=of, over=over, looped=looped)


def _first(leaves: list[nn.Parameter], grads: tuple[Tensor | None, ...], of: Of) -> list[Tensor]:
    """What the first gradients add to nothing."""
    gradients = [
        _wide(torch.zeros_like(leaf) if grad is None else grad) for leaf, grad in zip(leaves, grads, strict=True)
    ]
    if of == "gradient":
        return [grad.clone() for grad in gradients]  # a gradient may share its memory
    return list(torch._foreach_mul(gradients, gradients) if of == "square" else torch._foreach_abs(gradients))


def _add(totals: list[Tensor], grads: tuple[Tensor | None, ...], of: Of) -> None:
    into = [total for total, grad in zip(totals, grads, strict=True) if grad is not None]
    gradients = [_wide(grad) for grad in grads if grad is not None]
    if of == "square":
        torch._foreach_addcmul_(into, gradients, gradients)
    else:
        torch._foreach_add_(into, torch._foreach_abs(gradients) if of == "absolute" else gradients)


def _wide(tensor: Tensor) -> Tensor:
    """Half precision as float32: the squares of its gradients underflow."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def _result(tensors: dict[str, Tensor], rows: int, batches: int, cost: float, **kind: Any) -> Importances:
    if not rows:
        raise DataError("there are no batches to take importances on. Give at least one row.")
    result = Importances(tensors, rows, batches, cost, **kind)
    if result.over == "mean" and result.count > 1:
        torch._foreach_div_(list(tensors.values()), float(result.count))
    return result.need_finite()


def _shown(batches: Iterable[Any]) -> Iterable[Any]:
    return progress(batches, "importances")


def _known(value: str, name: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise MethodError(f"{name}={value!r} has no meaning. Known: {', '.join(allowed)}.")
