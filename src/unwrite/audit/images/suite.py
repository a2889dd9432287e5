"""The audit of an image model: what it says of forgotten, kept and unseen rows, and what its features still hold.

`evaluate(model, split, before=..., oracle=..., control=...)` with an `ImageSplit` comes here. The control is the model
with nothing but its head changed: it passes the accuracies, and the features (CKA, nearest neighbours) show it for what it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...data.images.splits import ImageSplit
from ...errors import MethodError, ModelError
from ...runs import hash_model
from ..base import Score, Suite
from ..report.report import Report
from .accuracy import accuracy, average_gap, unlearning_accuracy, zero_retrain_forgetting
from .arrays import Labelled
from .context import ImageContext, ImageMetric
from .features import knn_accuracy, linear_cka
from .membership import Feature, attack_success_rate, entropy_attack, membership_attack
from .regression import regression_error, regression_membership_attack, relative_difference, wasserstein
from .shadows import Shadows

__all__ = ["VISION", "VISION_REGRESSION", "ImageContext", "ImageMetric", "evaluate_images"]

CONTROL = "head only"


def _right(name: str) -> Callable[[ImageContext], Score]:
    return lambda context: accuracy(*context.labelled(name), name)


def _mia(feature: Feature) -> Callable[[ImageContext], Score]:
    def attack(context: ImageContext) -> Score:
        return membership_attack(*_three(context), feature)

    return attack


def _three(context: ImageContext) -> tuple[Labelled, Labelled, Labelled]:
    """Forget, retain and unseen rows; no more unseen ones than retain rows, evenly drawn."""
    logits, labels = context.labelled("test retain")
    most = len(context.set("retain"))
    picks = [i * len(labels) // min(most, len(labels)) for i in range(min(most, len(labels)))]
    return context.labelled("forget"), context.labelled("retain"), (logits[picks], labels[picks])


def _knn(context: ImageContext) -> Score:
    """Among all training rows, each forget row's own left out."""
    features = np.concatenate([context.features("forget"), context.features("retain")])
    labels = np.concatenate([context.labels("forget"), context.labels("retain")])
    return _first(knn_accuracy(features, labels), len(context.set("forget")))


def _first(score: Score, count: int) -> Score:
    return Score.mean(score.name, score.per_example[:count], score.better, score.note)


def _cka(name: str) -> Callable[[ImageContext], Score]:
    def likeness(context: ImageContext) -> Score:
        before, now = context.others["before"].features(name), context.features(name)
        if not (now - now[0]).any():  # there is nothing to compare, which says enough
            return Score("cka", None, [], "toward_reference", "All rows have the same features: the model collapsed.")
        return linear_cka(before, now)

    return likeness


GAPS: dict[str, Callable[[ImageContext], Score]] = {
    "UA": lambda context: unlearning_accuracy(*context.labelled("forget")),
    "RA": _right("retain"),
    "TA": _right("test retain"),
    "MIA": _mia("confidence"),
}


def _gap(context: ImageContext) -> Score:
    mine, theirs = ({name: of(one) for name, of in GAPS.items()} for one in (context, context.others["oracle"]))
    return average_gap(mine, theirs)


VISION = Suite(
    "vision",
    [
        ImageMetric("UA", GAPS["UA"], "Share of forget rows (in training) it gets wrong."),
        ImageMetric("forget_accuracy", _right("forget"), "Share of forget rows (in training) it gets right."),
        ImageMetric(
            "test_forget_accuracy",
            _right("test forget"),
            "The same of unseen rows of the forgotten kind.",
            needs=("test forget",),
        ),
        ImageMetric(
            "zrf",
            lambda c: zero_retrain_forgetting(c.logits("forget"), c.others["random"].logits("forget")),
            "Whether it answers on forget rows like an untrained model (1).",
            against="random",
        ),
        ImageMetric(
            "forget_knn", _knn, "k-NN accuracy of forget rows in feature space: what the head alone can't hide."
        ),
        ImageMetric(
            "forget_cka",
            _cka("forget"),
            "Likeness (CKA) of the forget rows' features to those before: 1 where nothing below the head changed.",
            against="before",
        ),
        ImageMetric("RA", GAPS["RA"], "Share of retain rows it gets right.", "higher", "kept", ("retain",)),
        ImageMetric(
            "TA", GAPS["TA"], "Share of unseen rows to be kept it gets right.", "higher", "kept", ("test retain",)
        ),
        ImageMetric(
            "retain_cka",
            _cka("retain"),
            "Likeness (CKA) of the retain rows' features to those before.",
            "toward_reference",
            "kept",
            ("retain",),
            "before",
        ),
        *(
            ImageMetric(
                f"mia_{feature}",
                _mia(feature),
                f"Share of forget rows an attack on {feature.replace('_', ' ')} calls never trained on.",
                panel="privacy",
                needs=("forget", "retain", "test retain"),
            )
            for feature in ("confidence", "entropy", "modified_entropy", "published_modified_entropy")
        ),
        ImageMetric(
            "mia_entropy_members",
            lambda c: entropy_attack(*(logits for logits, _ in _three(c))),
            "Share of forget rows that a balanced attack on entropy calls members.",
            panel="privacy",
            needs=("forget", "retain", "test retain"),
        ),
        ImageMetric(
            "asr",
            lambda c: attack_success_rate(*(logits for logits, _ in _three(c))),
            "Accuracy of boosted trees at telling forget rows from unseen ones; 50 is chance.",
            panel="privacy",
            needs=("forget", "retain", "test retain"),
        ),
        ImageMetric(
            "avg_gap",
            _gap,
            "Mean distance to the retrained model over UA, RA, TA and MIA on confidence.",
            "lower",
            "privacy",
            ("forget", "retain", "test retain"),
            "oracle",
        ),
    ],
    "Image classifiers: accuracies, distance to the retrained model, membership attacks, features.",
    axes=("forget_accuracy", "TA"),
    answers=("forget_accuracy", "RA"),
    scale=100.0,
    of="images",
)


def _error(name: str) -> Callable[[ImageContext], Score]:
    return lambda context: regression_error(*context.labelled(name), on=name.replace(" ", "_"))


def _predictions(context: ImageContext) -> tuple[Any, Any]:
    return context.labelled("forget")[0], context.others["oracle"].labelled("forget")[0]


VISION_REGRESSION = Suite(
    "vision-regression",
    [
        ImageMetric("forget_mae", _error("forget"), "Mean absolute error on forget rows (in training)."),
        ImageMetric(
            "test_forget_mae",
            _error("test forget"),
            "The same of unseen rows of the forgotten kind.",
            needs=("test forget",),
        ),
        ImageMetric(
            "wasserstein",
            lambda c: wasserstein(*_predictions(c)),
            "Distance of the forget rows' predictions, as a distribution, to the retrained model's.",
            "lower",
            against="oracle",
        ),
        ImageMetric(
            "relative_difference",
            lambda c: relative_difference(*_predictions(c), c.labels("forget")),
            "Distance to the retrained model's predictions, row by row, over the target.",
            "lower",
            against="oracle",
        ),
        ImageMetric(
            "forget_cka",
            _cka("forget"),
            "Likeness (CKA) of the forget rows' features to those before: 1 where nothing below the head changed.",
            against="before",
        ),
        ImageMetric(
            "retain_mae", _error("retain"), "Mean absolute error on retain rows.", "lower", "kept", ("retain",)
        ),
        ImageMetric(
            "test_retain_mae", _error("test retain"), "The same of unseen rows.", "lower", "kept", ("test retain",)
        ),
        ImageMetric(
            "mia_l1",
            lambda c: regression_membership_attack(
                c.labelled("forget"), c.labelled("retain"), c.labelled("test retain")
            ),
            "Share of forget rows an attack on the absolute error calls members.",
            panel="privacy",
            needs=("forget", "retain", "test retain"),
        ),
    ],
    "Image regressors: errors, distance to the retrained model's predictions, a membership attack.",
    axes=("forget_mae", "retain_mae"),
    answers=("", ""),
    of="images",
)


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
    from ..evaluation import provenance
    from ..suites.known import suite_named
    from .pictures import pictures_of

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
