"""MUSE's two drivers: does unlearning scale with the size of the request (C5), and survive a series of them (C6)?

    scalability:     theta_k = unlearn(theta_0, fold_k)       folds of growing size, each from the target model
    sustainability:  theta_k = unlearn(theta_{k-1}, fold_k)   one request after another

The unlearner is a callable `(model, forget, retain) -> model`. (arXiv 2407.06460)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.text.examples import Examples, ForgetSplit
from ..errors import MethodError
from .base import Score, Suite
from .context import PassSettings
from .evaluation import measure, report_on
from .provenance import provenance
from .report.report import NOT_HASHED, Report
from .report.summary import summarise
from .suites.known import suite_for
from .text.context import TextContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Unlearn = Callable[["PreTrainedModel", Examples, Examples | None], "PreTrainedModel"]


def scalability(unlearn_fn: Unlearn, model: PreTrainedModel, folds: Sequence[ForgetSplit], **settings: Any) -> Report:
    """Unlearns every fold from the same model.

    Args:
        unlearn_fn: `(model, forget, retain) -> model`; it may train in place, as it gets a copy.
        model: the model before; it stays as it is.
        folds: splits of growing forget sets.
        settings: `tokenizer`, and optionally `on` (the split every step is measured on, by default the first
            fold), `suite` ("muse"), `oracle` and `batch_size`.

    Returns:
        A report with a column per fold; `provenance` holds, per axis, the slope per forget row and last/first.
    """
    return _drive(unlearn_fn, model, folds, chained=False, **settings)


def sustainability(
    unlearn_fn: Unlearn, model: PreTrainedModel, folds: Sequence[ForgetSplit], **settings: Any
) -> Report:
    """Unlearns the folds one after another, each from the model the last one left. Arguments as `scalability`."""
    return _drive(unlearn_fn, model, folds, chained=True, **settings)


def _drive(
    unlearn_fn: Unlearn,
    model: PreTrainedModel,
    folds: Sequence[ForgetSplit],
    *,
    chained: bool,
    tokenizer: PreTrainedTokenizerBase,
    on: ForgetSplit | None = None,
    suite: str | Suite = "muse",
    oracle: PreTrainedModel | None = None,
    batch_size: int = 16,
) -> Report:
    if not folds:
        raise MethodError("no folds to unlearn. Give at least one split.")
    on = on or folds[0]
    chosen = suite_for(suite, TextContext.kind, on)
    metrics = chosen.for_split(on)
    if not metrics:
        raise MethodError(f"no metric of suite {chosen.name!r} applies to {on.name}; it has none of the sets needed.")
    models = {"before": model} if oracle is None else {"before": model, "oracle": oracle}
    fixed = TextContext.beside(models, on, chosen, PassSettings(batch_size, tokenizer))
    columns = {role: measure(metrics, context, fixed) for role, context in fixed.items()}
    hashes = {f"{role} model": context.fingerprint or NOT_HASHED for role, context in fixed.items()}
    current, steps = model, []
    for k, fold in enumerate(folds, 1):
        # Always a copy: unlearning trains in place, and the start must stay what it was.
        current = unlearn_fn(copy.deepcopy(current if chained else model), fold.forget, fold.retain)
        step = fixed["before"].of(current)
        label = f"{'request' if chained else 'fold'} {k} ({len(fold.forget)} rows)"
        columns[label] = measure(metrics, step, fixed)
        hashes[f"{label} model"] = step.fingerprint or NOT_HASHED
        steps.append(columns[label])
    sizes = np.arange(1, len(folds) + 1) if chained else np.array([len(fold.forget) for fold in folds])
    trends = _trends(steps, sizes, chosen.on_axes() or (), "request" if chained else "row")
    report = report_on(TextContext, on, chosen, metrics, columns, {**provenance(on, chosen), **hashes, **trends})
    return replace(report, summary=summarise(report, chosen))


def _trends(
    columns: Sequence[dict[str, Score]], sizes: np.ndarray, names: Sequence[str], unit: str
) -> dict[str, str | float]:
    """Returns the least-squares slope and last/first ratio of each named metric."""
    trends: dict[str, str | float] = {}
    for name in names:
        values = [column[name].value if name in column else None for column in columns]
        if len(values) < 2 or any(v is None for v in values) or len(set(sizes.tolist())) < 2:
            continue
        y = np.array(values, dtype=float)
        trends[f"{name} slope per {unit}"] = float(np.polyfit(sizes, y, 1)[0])
        if y[0] != 0:
            trends[f"{name} last/first"] = float(y[-1] / y[0])
    return trends
