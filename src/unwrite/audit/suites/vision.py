"""The suites of image models: what they say of forgotten, kept and unseen rows, and what their features still hold.

The control is the model with nothing but its head changed: it passes the accuracies, and the features (CKA, nearest
neighbours) show it for what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..base import Score, Suite
from ..images.accuracy import accuracy, average_gap, unlearning_accuracy, zero_retrain_forgetting
from ..images.arrays import Labelled
from ..images.context import ImageContext, ImageMetric
from ..images.features import knn_accuracy, linear_cka
from ..images.membership import Feature, attack_success_rate, entropy_attack, membership_attack
from ..images.regression import regression_error, regression_membership_attack, relative_difference, wasserstein


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
