"""The audit of an image model.

`evaluate(model, split, before=..., oracle=..., control=...)` with an `ImageSplit` comes here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...data.images.splits import ImageSplit
from ...errors import MethodError, ModelError
from ...runs import hash_model
from ..base import Suite
from ..provenance import provenance
from ..report.report import Report
from ..suites.known import suite_named
from ..suites.vision import VISION, VISION_REGRESSION
from .context import ImageContext
from .pictures import pictures_of
from .shadows import Shadows

CONTROL = "head only"


def evaluate_images(
    model: nn.Module,
    split: ImageSplit,
    *,
    suite: str | Suite = "basic",
    before: nn.Module | None = None,
    oracle: nn.Module | None = None,
    control: nn.Module | None = None,
    random: nn.Module | None = None,
    shadows: Shadows | None = None,
    selected: Mapping[str, float | Tensor] | None = None,
    batch_size: int = 256,
    pictures: bool = True,
) -> Report:
    """The report of one audit; "basic" is the suite for this kind of target. See `evaluate`.

    Args:
        control: the model before with only its head changed; a column of its own.
        random: an untrained model of the same kind, for ZRF; no column.
        shadows: shadow models for LiRA, whose figures join the others.
        selected: what a method selected, by parameter name: see `selection_picture`.
        pictures: confusion matrices, nearest neighbours, what was selected.

    Raises:
        ModelError: two roles are one object; outputs that don't fit the data.
        MethodError: a suite for other data.
    """
    chosen = (
        (VISION if split.forget.labels is not None else VISION_REGRESSION) if suite == "basic" else suite_named(suite)
    )
    if chosen.of != "images":
        raise MethodError(f"suite {chosen.name!r} is for texts. For images: 'vision', 'vision-regression' or your own.")
    metrics: Any = [*chosen.for_split(split), *(shadows.metrics() if shadows is not None else ())]
    started = time.perf_counter()
    contexts = _contexts(
        {"before": before, "after": model, "oracle": oracle, CONTROL: control, "random": random}, split, batch_size
    )
    shown = {role: context for role, context in contexts.items() if role != "random"}
    return Report(
        suite=chosen.name,
        split=split.name,
        rows={name: len(rows) for name, rows in split.parts.items()},
        metrics=[metric.described() for metric in metrics],
        columns={role: {m.name: m(context) for m in metrics} for role, context in shown.items()},
        axes=chosen.axes,
        answers=chosen.answers,
        scale=chosen.scale,
        asked="labels" if split.forget.labels is not None else "values",
        pictures=pictures_of(shown, split, selected) if pictures else (),
        provenance={
            **provenance(split, chosen),
            **{f"{role} model": hash_model(context.model) for role, context in contexts.items()},
            **({} if shadows is None else {"shadow models": len(shadows.phi)}),
            "seconds": round(time.perf_counter() - started, 1),
        },
    )


def _contexts(models: dict[str, nn.Module | None], split: ImageSplit, batch_size: int) -> dict[str, ImageContext]:
    given = {role: model for role, model in models.items() if model is not None}
    for role, one in given.items():
        twin = next((other for other, model in given.items() if model is one and other != role), None)
        if twin is not None:
            raise ModelError(
                f"{role} and {twin} are one object. Unlearning changes a model in place: pass copy=True to apply, or load "
                "the original again."
            )
    contexts = {role: ImageContext(model, split, batch_size) for role, model in given.items()}
    for role, context in contexts.items():
        context.others = contexts
        if context.layout.num_outputs != split.forget.num_outputs:
            raise ModelError(
                f"the {role} model has {context.layout.num_outputs} outputs and the data {split.forget.num_outputs}. "
                "Give a model made for this data."
            )
    return contexts
