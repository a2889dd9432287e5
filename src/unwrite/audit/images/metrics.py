"""The metrics of image models: one class each, over the statistics of accuracy, membership, features and regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..base import Better, Metric, Panel, Score
from ..context import Context
from .accuracy import accuracy, average_gap, unlearning_accuracy, zero_retrain_forgetting
from .arrays import Labelled
from .context import ImageContext
from .features import knn_accuracy, linear_cka
from .membership import Feature, attack_success_rate, entropy_attack, membership_attack
from .regression import regression_error, regression_membership_attack, relative_difference, wasserstein

__all__ = [
    "Accuracy",
    "AverageGap",
    "BoostedTreesAttack",
    "EntropyAttack",
    "FeatureLikeness",
    "ImageMetric",
    "MembershipByFeature",
    "NeighbourAccuracy",
    "PredictionDistance",
    "RegressionError",
    "RegressionMembership",
    "RelativeDifference",
    "UnlearningAccuracy",
    "ZeroRetrainForgetting",
]

Contexts = Mapping[str, ImageContext]
ATTACKED = ("forget", "retain", "test retain")


class ImageMetric(Metric[ImageContext]):
    """A metric that reads an `ImageContext`; see `Metric`. Most are neither good for being high nor low."""

    reads: ClassVar[type[Context]] = ImageContext

    @property
    def better(self) -> Better:
        return "toward_reference"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("forget",)


class _OfTraining(ImageMetric):
    """Base of attacks that tell forget rows from retain and unseen ones."""

    needs: ClassVar[tuple[str, ...]] = ATTACKED
    panel: ClassVar[Panel] = "privacy"


def _three(context: ImageContext) -> tuple[Labelled, Labelled, Labelled]:
    """Forget, retain and unseen rows; no more unseen ones than retain rows, evenly drawn."""
    logits, labels = context.labelled("test retain")
    most = len(context.set("retain"))
    picks = [i * len(labels) // min(most, len(labels)) for i in range(min(most, len(labels)))]
    return context.labelled("forget"), context.labelled("retain"), (logits[picks], labels[picks])


@dataclass(frozen=True)
class UnlearningAccuracy(ImageMetric):
    """UA: 100 less the accuracy on forget rows."""

    name: ClassVar[str] = "UA"
    about: ClassVar[str] = "Share of forget rows (in training) it gets wrong."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return unlearning_accuracy(*context.labelled("forget"))


Measured = Literal["forget", "test forget", "retain", "test retain"]
ACCURACIES: Mapping[Measured, tuple[str, str]] = {
    "forget": ("forget_accuracy", "Share of forget rows (in training) it gets right."),
    "test forget": ("test_forget_accuracy", "The same of unseen rows of the forgotten kind."),
    "retain": ("RA", "Share of retain rows it gets right."),
    "test retain": ("TA", "Share of unseen rows to be kept it gets right."),
}
ERRORS: Mapping[Measured, tuple[str, str]] = {
    "forget": ("forget_mae", "Mean absolute error on forget rows (in training)."),
    "test forget": ("test_forget_mae", "The same of unseen rows of the forgotten kind."),
    "retain": ("retain_mae", "Mean absolute error on retain rows."),
    "test retain": ("test_retain_mae", "The same of unseen rows."),
}


@dataclass(frozen=True)
class _OnSet(ImageMetric):
    """Base of figures of one set.

    Args:
        on: the set; retain rows are to be kept.
    """

    on: Measured = "forget"

    names: ClassVar[Mapping[Measured, tuple[str, str]]]
    good: ClassVar[Better]

    @property
    def name(self) -> str:
        return self.names[self.on][0]

    @property
    def about(self) -> str:
        return self.names[self.on][1]

    @property
    def better(self) -> Better:
        return self.good if "retain" in self.on else "toward_reference"

    @property
    def panel(self) -> Panel:
        return "kept" if "retain" in self.on else "forgotten"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)


@dataclass(frozen=True)
class Accuracy(_OnSet):
    """Percentage of a set's rows that are classified right."""

    names: ClassVar[Mapping[Measured, tuple[str, str]]] = ACCURACIES
    good: ClassVar[Better] = "higher"

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return accuracy(*context.labelled(self.on), self.name)


@dataclass(frozen=True)
class RegressionError(_OnSet):
    """Mean absolute error on a set's rows."""

    names: ClassVar[Mapping[Measured, tuple[str, str]]] = ERRORS
    good: ClassVar[Better] = "lower"

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return regression_error(*context.labelled(self.on), on=self.on.replace(" ", "_"))


@dataclass(frozen=True)
class ZeroRetrainForgetting(ImageMetric):
    """ZRF: how much the answers on forget rows are those of an untrained model."""

    name: ClassVar[str] = "zrf"
    about: ClassVar[str] = "Whether it answers on forget rows like an untrained model (1)."
    roles: ClassVar[tuple[str, ...]] = ("random",)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return zero_retrain_forgetting(context.logits("forget"), references["random"].logits("forget"))


@dataclass(frozen=True)
class NeighbourAccuracy(ImageMetric):
    """Whether forget rows still lie among their class, of all training rows, each row's own left out."""

    name: ClassVar[str] = "forget_knn"
    about: ClassVar[str] = "k-NN accuracy of forget rows in feature space: what the head alone can't hide."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        features = np.concatenate([context.features("forget"), context.features("retain")])
        labels = np.concatenate([context.labels("forget"), context.labels("retain")])
        score = knn_accuracy(features, labels)
        return Score.mean(score.name, score.per_example[: len(context.set("forget"))], score.better, score.note)


@dataclass(frozen=True)
class FeatureLikeness(ImageMetric):
    """Linear CKA of a set's features to those of the model before.

    Args:
        on: forget, or retain.
    """

    on: Literal["forget", "retain"] = "forget"
    roles: ClassVar[tuple[str, ...]] = ("before",)

    @property
    def name(self) -> str:
        return f"{self.on}_cka"

    @property
    def about(self) -> str:
        sentence = f"Likeness (CKA) of the {self.on} rows' features to those before"
        return f"{sentence}: 1 where nothing below the head changed." if self.on == "forget" else f"{sentence}."

    @property
    def panel(self) -> Panel:
        return "kept" if self.on == "retain" else "forgotten"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        before, now = references["before"].features(self.on), context.features(self.on)
        if not (now - now[0]).any():  # there is nothing to compare, which says enough
            return Score("cka", None, [], note="All rows have the same features: the model collapsed.")
        return linear_cka(before, now)


@dataclass(frozen=True)
class MembershipByFeature(_OfTraining):
    """An SVC on one feature of the outputs: the share of forget rows that it calls non-members.

    Args:
        feature: what the attack looks at.
    """

    feature: Feature = "confidence"

    @property
    def name(self) -> str:
        return f"mia_{self.feature}"

    @property
    def about(self) -> str:
        return f"Share of forget rows an attack on {self.feature.replace('_', ' ')} calls never trained on."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return membership_attack(*_three(context), self.feature)


@dataclass(frozen=True)
class EntropyAttack(_OfTraining):
    """Balanced logistic regression on entropy: the share of forget rows that it calls members."""

    name: ClassVar[str] = "mia_entropy_members"
    about: ClassVar[str] = "Share of forget rows that a balanced attack on entropy calls members."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return entropy_attack(*(logits for logits, _ in _three(context)))


@dataclass(frozen=True)
class BoostedTreesAttack(_OfTraining):
    """ASR: how well boosted trees on sorted softmax vectors tell forget rows from unseen ones."""

    name: ClassVar[str] = "asr"
    about: ClassVar[str] = "Accuracy of boosted trees at telling forget rows from unseen ones; 50 is chance."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return attack_success_rate(*(logits for logits, _ in _three(context)))


@dataclass(frozen=True)
class AverageGap(_OfTraining):
    """Mean distance to the retrained model over what the papers report: UA, RA, TA and the attack on confidence."""

    name: ClassVar[str] = "avg_gap"
    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = "Mean distance to the retrained model over UA, RA, TA and MIA on confidence."
    roles: ClassVar[tuple[str, ...]] = ("oracle",)
    parts: ClassVar[Mapping[str, ImageMetric]] = {
        "UA": UnlearningAccuracy(),
        "RA": Accuracy("retain"),
        "TA": Accuracy("test retain"),
        "MIA": MembershipByFeature("confidence"),
    }

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        ours, theirs = ({n: m(one) for n, m in self.parts.items()} for one in (context, references["oracle"]))
        return average_gap(ours, theirs)


@dataclass(frozen=True)
class PredictionDistance(ImageMetric):
    """Wasserstein-1 distance of the forget rows' predictions to the retrained model's."""

    name: ClassVar[str] = "wasserstein"
    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = "Distance of the forget rows' predictions, as a distribution, to the retrained model's."
    roles: ClassVar[tuple[str, ...]] = ("oracle",)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return wasserstein(context.labelled("forget")[0], references["oracle"].labelled("forget")[0])


@dataclass(frozen=True)
class RelativeDifference(ImageMetric):
    """Distance to the retrained model's predictions, row by row, over the target."""

    name: ClassVar[str] = "relative_difference"
    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = "Distance to the retrained model's predictions, row by row, over the target."
    roles: ClassVar[tuple[str, ...]] = ("oracle",)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        ours, theirs = (one.labelled("forget")[0] for one in (context, references["oracle"]))
        return relative_difference(ours, theirs, context.labels("forget"))


@dataclass(frozen=True)
class RegressionMembership(_OfTraining):
    """An SVC on the absolute error: the share of forget rows that it calls members."""

    name: ClassVar[str] = "mia_l1"
    about: ClassVar[str] = "Share of forget rows an attack on the absolute error calls members."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return regression_membership_attack(*(context.labelled(name) for name in ATTACKED))
