"""One gradient a record: by torch.func in one pass over many, one after another, or by opacus.

    g_i = d loss_i / d theta,    each [rows, *shape of the parameter]

A weight that has two names (an embedding and a head that are tied) is one parameter, with the sum of both places' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import MethodError, MissingExtra, ModelError, notice, setting, unknown
from ...models.curvature.rows import evaluating

__all__ = ["Batch", "PerSample", "RecordGradients", "RowLoss", "check_trainable", "gradients_by", "trainable_weights"]

Batch = Mapping[str, Tensor]  # each [rows, ...]
Forward = Callable[..., Any]  # a model's own forward, with arguments by name
RowLoss = Callable[[Forward, Batch], Tensor]  # [rows], each of its own row alone
RecordGradients = Callable[[Batch], dict[str, Tensor]]  # {name: [rows, *shape]}
PerSample = Literal["auto", "together", "one by one", "opacus"]
_TOLERANCE = 1e-3


def trainable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, each under its first name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def check_trainable(model: nn.Module) -> None:
    """Refuses a model whose records can't be told apart, or that has nothing to train.

    Raises:
        ModelError: batch normalisation, which mixes the records of a batch; no weight to train.
    """
    for name, module in model.named_modules():
        mixes = isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False)
        if mixes:
            raise ModelError(
                f"{name} is {type(module).__name__}, which mixes the records of a batch, so that none has a gradient of its own. "
                "Replace it by GroupNorm or LayerNorm, then train."
            )
    if not trainable_weights(model):
        raise ModelError("the model has no weight that requires a gradient. Unfreeze some, or give it adapters.")


def gradients_by(model: nn.Module, loss: RowLoss, how: PerSample) -> RecordGradients:
    """The function that gives every record's gradient.

    Args:
        how: "together" (torch.func.vmap), "one by one", "opacus", or "auto": together where the first rows agree with one by
            one, else one by one, with a notice.

    Raises:
        MethodError: an unknown way.
        MissingExtra: opacus is not installed.
    """
    if how not in get_args(PerSample):
        raise MethodError(unknown("way to per-sample gradients", how, get_args(PerSample)))
    if how == "opacus":
        return _by_opacus(model, loss)
    alone = _one_by_one(model, loss)
    if how == "one by one":
        return alone
    together = _together(model, loss)
    return together if how == "together" else _tried(model, together, alone)


def _function(model: nn.Module, loss: RowLoss) -> Callable[[dict[str, Tensor], Batch], Tensor]:
    """The loss of one row, without its first dimension, as a function of the trained weights; all others stay as they are."""
    trained = trainable_weights(model)
    fixed = {name: value for name, value in model.named_parameters() if name not in trained} | dict(
        model.named_buffers()
    )

    def of(weights: dict[str, Tensor], row: Batch) -> Tensor:
        def forward(**inputs: Any) -> Any:
            return functional_call(model, {**fixed, **weights}, (), inputs)

        return loss(forward, {name: value[None] for name, value in row.items()})[0]

    return of


def _together(model: nn.Module, loss: RowLoss) -> RecordGradients:
    gradient = vmap(grad(_function(model, loss)), in_dims=(None, 0), randomness="different")

    def gradients(batch: Batch) -> dict[str, Tensor]:
        weights = {name: weight.detach() for name, weight in trainable_weights(model).items()}
        with sdpa_kernel(SDPBackend.MATH):  # the faster kernels can't be vectorised, and would run row by row
            values: dict[str, Tensor] = gradient(weights, dict(batch))
        return values

    return gradients


def _one_by_one(model: nn.Module, loss: RowLoss) -> RecordGradients:
    def gradients(batch: Batch) -> dict[str, Tensor]:
        weights = trainable_weights(model)
        rows = []
        for row in range(len(next(iter(batch.values())))):
            value = loss(model, {name: part[row : row + 1] for name, part in batch.items()})[0]
            parts = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            rows.append([torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), parts, strict=True)])
        return {name: torch.stack(column) for name, column in zip(weights, zip(*rows, strict=True), strict=True)}

    return gradients


def _tried(model: nn.Module, together: RecordGradients, alone: RecordGradients) -> RecordGradients:
    """Chooses at the first batch, without dropout, which no two ways draw alike."""
    chosen: list[RecordGradients] = []

    def gradients(batch: Batch) -> dict[str, Tensor]:
        if not chosen:
            few = {name: value[:2] for name, value in batch.items()}
            with torch.random.fork_rng(), evaluating(model):
                expected = alone(few)
                try:
                    agrees = not _differ(together(few), expected)
                except Exception:  # whatever an architecture does that vmap can't
                    agrees = False
            if not agrees:
                notice("per-sample gradients of this model are taken one by one: taken together they fail, or differ.")
            chosen.append(together if agrees else alone)
        return chosen[0](batch)

    return gradients


def _differ(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether a record's whole gradient differs by more than rounding in the weights' precision."""
    rounding = max(20 * torch.finfo(value.dtype).eps for value in expected.values())
    apart = sum(_squares(ours[name].float() - value.float()) for name, value in expected.items())  # [rows]
    whole = sum(_squares(value.float()) for value in expected.values())
    return bool(torch.as_tensor(apart > max(_TOLERANCE, rounding) ** 2 * whole + 1e-20).any())


def _squares(values: Tensor) -> Tensor:
    return values.flatten(1).square().sum(1)


def _by_opacus(model: nn.Module, loss: RowLoss) -> RecordGradients:
    """From opacus's hooks, which are there only while gradients are taken."""
    try:
        from opacus import GradSampleModule
    except ImportError:
        raise MissingExtra("opacus", "private") from None

    def gradients(batch: Batch) -> dict[str, Tensor]:
        weights: dict[str, Any] = dict(trainable_weights(model))
        hooked = GradSampleModule(model, loss_reduction="sum")
        try:
            loss(hooked, batch).sum().backward()
            taken = {name: weight.grad_sample for name, weight in weights.items()}
        finally:
            hooked.to_standard_module()
            for weight in weights.values():
                weight.grad = None
        for name, sample in taken.items():
            if not isinstance(sample, Tensor):
                raise ModelError(
                    f"opacus gives no gradient a record for {name}. Use {setting('per_sample', 'together')}."
                )
        return taken

    return gradients
