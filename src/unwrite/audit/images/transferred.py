"""Membership attacks on a forgotten class: one that is fitted to the model before and transferred, and the simplest there is.

Members are rows of the class that were trained on, others are rows of it that were not. The forgetting rate asks whether members look
like the original model's non-members by now; the simple attack, whether losses still tell them apart. Both are small-sample figures: of
100 classes of CIFAR-100 eight have a low rate although their accuracy is 0, so accuracy is reported first. (arXiv 2405.15662, official
code mia.py)

    Fr = share of members that a linear SVM on the original model's standardised probabilities calls non-members
    gap = |accuracy of logistic regression on losses, over splits, - 1/2|
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...errors import DataError
from ..base import Better, Panel, Score
from .arrays import ArrayLike, Floats, Labelled, Whole, labelled, log_softmax, logits_of, same_classes
from .context import ImageContext
from .metrics import Contexts, ImageMetric

if TYPE_CHECKING:
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

__all__ = ["ForgettingRate", "LossGap", "TransferredAttack", "forgetting_rate", "loss_gap"]

SEED = 42  # the official code's, of what is drawn
SPLITS = 10
FEWEST = 10  # rows a side, so that each split has one of each to be judged


@dataclass(frozen=True)
class TransferredAttack:
    """A linear SVM on the probabilities of one model, to be asked about another's.

    Args:
        scaler, classifier: of scikit-learn.
    """

    scaler: StandardScaler
    classifier: SVC

    @classmethod
    def fit(cls, members: ArrayLike, others: ArrayLike, seed: int = SEED) -> TransferredAttack:
        """From logits `[rows, classes]` of the model before; of the larger side as many rows are drawn as there are of the other."""
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        inside, outside = logits_of(members, "member"), logits_of(others, "other")
        same_classes(member=inside, other=outside)
        sides = [np.exp(log_softmax(one)) for one in _balanced(inside, outside, seed)]
        rows, labels = np.concatenate(sides), np.repeat([1, 0], [len(one) for one in sides])
        scaler = StandardScaler().fit(rows)
        return cls(scaler, SVC(kernel="linear", random_state=seed).fit(scaler.transform(rows), labels))

    def members(self, logits: ArrayLike) -> Whole:
        """1 for each row that it calls a member, 0 for the others, `[rows]`.

        Raises:
            DataError: logits of another number of classes.
        """
        probabilities = np.exp(log_softmax(logits_of(logits, "judged")))
        if probabilities.shape[1] != self.scaler.n_features_in_:
            raise DataError(
                f"the judged logits have {probabilities.shape[1]} classes and the attack {self.scaler.n_features_in_}. Take both "
                "from models of the same classes."
            )
        calls: Whole = self.classifier.predict(self.scaler.transform(probabilities)).astype(np.int64)
        return calls


def forgetting_rate(attack: TransferredAttack, members: ArrayLike) -> Score:
    """The percentage of members, by the logits of the model after, that the attack calls non-members.

    Of the model that the attack is fitted to it is 100 less the SVM's recall.
    """
    calls = attack.members(members)
    return Score.mean("forgetting_rate", (100.0 * (calls == 0)).tolist(), "toward_reference")


def loss_gap(members: Labelled, others: Labelled, seed: int = SEED, splits: int = SPLITS) -> Score:
    """How far, in points, logistic regression on the loss is from a coin's 50 % at telling members from others; 0 to 50.

    Args:
        members, others: (logits, labels) of the audited model.
        seed: of the balance and of the splits.
        splits: shuffled stratified ones, a tenth judged each.

    Raises:
        DataError: fewer than ten rows on a side.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    sides = [_losses(*labelled(one, name)) for name, one in (("member", members), ("other", others))]
    if min(map(len, sides)) < FEWEST:
        raise DataError(
            f"there are {len(sides[0])} members and {len(sides[1])} others. The attack takes {FEWEST} rows of each."
        )
    inside, outside = _balanced(sides[0], sides[1], seed)
    rows, labels = np.concatenate([outside, inside])[:, None], np.repeat([0, 1], [len(outside), len(inside)])
    ways = StratifiedShuffleSplit(n_splits=splits, random_state=seed)
    accuracies = cross_val_score(LogisticRegression(max_iter=1000), rows, labels, cv=ways, scoring="accuracy")
    accuracy = 100.0 * float(accuracies.mean())
    note = f"The attack is right on {accuracy:.1f} %, over {splits} splits of {2 * len(inside)} rows."
    return Score("loss_gap", abs(accuracy - 50.0), [], "toward_reference", note)


def _losses(logits: Floats, labels: Whole) -> Floats:
    """Cross-entropy of each row, `[rows]`."""
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def _balanced(inside: Floats, outside: Floats, seed: int) -> tuple[Floats, Floats]:
    """As many rows of either: all of the smaller side, drawn ones of the larger, by numpy's older generator as published."""
    count = min(len(inside), len(outside))
    generator = np.random.RandomState(seed)
    first, second = (
        one[generator.choice(len(one), count, replace=False)] if len(one) > count else one for one in (inside, outside)
    )
    return first, second


@dataclass(frozen=True)
class _OfClass(ImageMetric):
    """Base of attacks that tell training rows of what is forgotten from unseen rows of it."""

    needs: ClassVar[tuple[str, ...]] = ("forget", "test forget")
    panel: ClassVar[Panel] = "privacy"
    better: ClassVar[Better] = "toward_reference"


@dataclass(frozen=True)
class ForgettingRate(_OfClass):
    """Fr: the share of forget rows that an attack fitted to the model before calls non-members by now."""

    name: ClassVar[str] = "forgetting_rate"
    about: ClassVar[str] = "Share of forget rows that an attack fitted to the model before calls never trained on."
    roles: ClassVar[tuple[str, ...]] = ("before",)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        before = references["before"]
        attack = TransferredAttack.fit(before.logits("forget"), before.logits("test forget"))
        return forgetting_rate(attack, context.logits("forget"))


@dataclass(frozen=True)
class LossGap(_OfClass):
    """How well the loss alone tells forget rows from unseen rows of the same kind, in points above chance."""

    name: ClassVar[str] = "loss_gap"
    about: ClassVar[str] = (
        "How far an attack on the loss is from a coin's 50 % at telling forget rows from unseen ones."
    )

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        if min(len(context.set(name)) for name in self.needs) < FEWEST:
            return Score("loss_gap", None, [], note=f"There are fewer than {FEWEST} rows of a side.")
        return loss_gap(context.labelled("forget"), context.labelled("test forget"))
