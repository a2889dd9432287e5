"""Were some persons forgotten by a classifier that never named them? Utility, a loss attack, and NoMUS of both.

The task (age, a character) isn't the identity, so accuracy on the forget rows should stay that of any unseen person; what
tells is whether their losses are still those of training rows. (MUFAC, arXiv 2311.02240; code ndb796/MachineUnlearning)

    m     = mean accuracy over 10 random splits of logistic regression on the loss, forget rows (1) against unseen persons' (0)
    NoMUS = lam * accuracy + (1 - lam) * (1 - 2 |m - 1/2|)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from ...data.images.images import Images, first_few
from ...data.images.splits import ImageSplit
from ...errors import DataError, MethodError
from ..base import Better, Panel, Score
from .accuracy import accuracy
from .arrays import ArrayLike, Floats, column, floats, labelled, log_softmax
from .context import ImageContext
from .metrics import Contexts, ImageMetric

__all__ = [
    "ForgetDivergence",
    "ForgettingScore",
    "IdentityAttack",
    "NoMUS",
    "RetrainGap",
    "TopTwo",
    "check_identities",
    "identity_overlap",
    "label_losses",
    "loss_attack",
    "multi_label_accuracy",
    "multi_label_losses",
    "nomus",
    "top_accuracy",
]

LEAST = 20  # rows a side: a test share of a tenth of both is 4 rows
SPLITS = 10


def nomus(accuracy: float, m: float, lam: float = 0.5) -> float:
    """Returns NoMUS in [0, 1], high is good; an attack below chance counts as one above it.

    Args:
        accuracy: on test rows, in [0, 1].
        m: accuracy of the attack, in [0, 1].
        lam: weight of the accuracy, 0 to 1.

    Raises:
        MethodError: one of them outside.
    """
    for name, value in (("accuracy", accuracy), ("m", m), ("lam", lam)):
        if not 0 <= value <= 1:
            raise MethodError(f"{name} is {value:g}; it lies in [0, 1].")
    return lam * accuracy + (1 - lam) * (1 - 2 * abs(m - 0.5))


def label_losses(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Returns cross-entropy in nats, [rows], of logits [rows, classes]."""
    scores, own = labelled((logits, labels), "attacked")
    losses: Floats = -log_softmax(scores)[np.arange(len(own)), own]
    return losses


def multi_label_losses(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Returns the mean binary cross-entropy in nats over attributes, [rows], of logits and 0/1 labels [rows, attributes]."""
    scores, own = _attributes(logits, labels)
    return np.asarray((np.logaddexp(0, scores) - own * scores).mean(1))


def multi_label_accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Returns the mean over attributes of the share of rows that are right at a probability of 1/2, in [0, 1]."""
    scores, own = _attributes(logits, labels)
    return float(((scores > 0) == (own == 1)).mean())


def _attributes(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    scores, own = floats(logits, "the logits"), floats(labels, "the labels")
    if scores.ndim != 2 or scores.shape != own.shape or not np.isin(own, (0, 1)).all():
        raise DataError(
            f"logits {list(scores.shape)} and labels {list(own.shape)} are no attributes; give [rows, attributes], labels 0 or 1."
        )
    return scores, own


def loss_attack(forget: ArrayLike, unseen: ArrayLike, seed: int = 42) -> float:
    """Returns m in [0, 1]: how well logistic regression on the loss tells forget rows from unseen ones; 0.5 is chance.

    The longer side is shuffled and cut to the other's length (the official code cuts the forget side alone, so that with fewer
    forget rows the larger side decides). Ten stratified splits, a tenth of the rows judged in each, scikit-learn's default C.

    Args:
        forget, unseen: losses [rows], 20 or more of each.
        seed: of the shuffling; the splits have a seed of their own.

    Raises:
        DataError: too few rows, or losses that aren't finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    sides = {"forget": column(forget, "forget losses"), "unseen": column(unseen, "unseen losses")}
    for name, losses in sides.items():
        if len(losses) < LEAST:
            raise DataError(f"the attack needs {LEAST} rows a side, and there are {len(losses)} {name} rows.")
    rows = min(map(len, sides.values()))
    rng = np.random.default_rng(seed)
    inside, outside = (rng.permutation(losses)[:rows] for losses in sides.values())
    splits = StratifiedShuffleSplit(n_splits=SPLITS, random_state=0)
    truths = np.repeat([0, 1], rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a regression on one huge loss has not converged
        scores = cross_val_score(
            LogisticRegression(), np.concatenate([outside, inside])[:, None], truths, cv=splits, scoring="accuracy"
        )
    return float(scores.mean())


def top_accuracy(logits: ArrayLike, labels: ArrayLike, among: int = 2, name: str = "top2") -> Score:
    """Returns the percentage of rows whose label is among the largest logits; equal ones count for the lower class."""
    scores, own = labelled((logits, labels), name)
    if not 1 <= among <= scores.shape[1]:
        raise MethodError(f"among is {among}, and there are {scores.shape[1]} classes; take 1 to {scores.shape[1]}.")
    first = np.argsort(-scores, axis=1, kind="stable")[:, :among]
    return Score.mean(name, (100.0 * (first == own[:, None]).any(1)).tolist(), "higher")


def _names(rows: Images) -> set[str]:
    assert rows.identity is not None
    return {rows.identities[one] for one in rows.identity.unique().tolist()}


def identity_overlap(split: ImageSplit) -> dict[tuple[str, str], list[str]]:
    """{two sets: identities in both}, of forget, retain, test and holdout, by name; only pairs that share some."""
    own = {name: _names(rows) for name, rows in split.parts.items() if rows.identity is not None}
    names = [name for name in ("forget", "retain", "test", "holdout") if name in own]
    pairs = {pair: sorted(own[pair[0]] & own[pair[1]]) for pair in combinations(names, 2)}
    return {pair: both for pair, both in pairs.items() if both}


def check_identities(split: ImageSplit) -> None:
    """Refuses a split by which the forgetting of identities can't be judged.

    Raises:
        DataError: a set without identities, no unseen persons, or an identity in two sets.
    """
    for name in ("forget", "retain", "test", "holdout"):
        rows = split.parts.get(name)
        if rows is None or rows.identity is None:
            lack = "no such rows" if rows is None else "no identities"
            raise DataError(
                f"{split.name} has {lack} in {name}. Give forget, retain, test and holdout rows of other persons each."
            )
    for (one, other), both in identity_overlap(split).items():
        raise DataError(
            f"{one} and {other} share {len(both)} identities ({first_few(both)}). Split by identity, not by row."
        )


class _OfIdentities(ImageMetric):
    """Base of metrics of classifiers whose rows have identities that aren't the label."""

    panel: ClassVar[Panel] = "privacy"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("forget", "test", "holdout")

    def applies(self, split: Any) -> bool:
        return super().applies(split) and split.forget.labels is not None


def _m(context: ImageContext, seed: int) -> float:
    context.once("identities", lambda: check_identities(context.split))
    losses = {name: label_losses(*context.labelled(name)) for name in ("forget", "holdout")}
    return context.once(("loss attack", seed), lambda: loss_attack(losses["forget"], losses["holdout"], seed))


def _direction(context: ImageContext) -> str:
    """An attack is as good where forget losses are too large: which it is."""
    own, unseen = (float(np.median(label_losses(*context.labelled(name)))) for name in ("forget", "holdout"))
    says = "forgotten too much" if own > unseen else "still known"
    return f"Median loss {own:.3g} on forget rows, {unseen:.3g} on unseen persons': {says} where an attack works"


@dataclass(frozen=True)
class TopTwo(ImageMetric):
    """Share of test rows whose label is among the two likeliest, in percent."""

    name: ClassVar[str] = "top2"
    better: ClassVar[Better] = "higher"
    panel: ClassVar[Panel] = "kept"
    about: ClassVar[str] = "Share of test rows whose label is among the two likeliest."
    needs: ClassVar[tuple[str, ...]] = ("test",)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return top_accuracy(*context.labelled("test"))


@dataclass(frozen=True)
class IdentityAttack(_OfIdentities):
    """Accuracy m, in [0, 1], of the loss attack of MUFAC; 0.5 where forget rows look like those of unseen persons.

    Args:
        seed: of the shuffling.
    """

    seed: int = 42
    name: ClassVar[str] = "mia_loss"
    about: ClassVar[str] = "How well the loss tells forget rows from unseen persons' (0.5 is chance)."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return Score("mia_loss", _m(context, self.seed), [], note=f"{_direction(context)}.")


@dataclass(frozen=True)
class ForgettingScore(_OfIdentities):
    """|m - 0.5|, in [0, 0.5]; what MUFAC's tables call MIA.

    Args:
        seed: as `IdentityAttack`.
    """

    seed: int = 42
    name: ClassVar[str] = "forgetting_score"
    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = "How far the loss attack is from chance, |m - 0.5|."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return Score("forgetting_score", abs(_m(context, self.seed) - 0.5), [], note=f"{_direction(context)}.")


@dataclass(frozen=True)
class NoMUS(_OfIdentities):
    """NoMUS, in [0, 1]: test accuracy and forgetting in one figure.

    It rises where confidence is destroyed, and guessing has a high one, so it is never to stand alone.

    Args:
        lam: weight of the accuracy.
        seed: as `IdentityAttack`.
    """

    lam: float = 0.5
    seed: int = 42
    name: ClassVar[str] = "nomus"
    better: ClassVar[Better] = "higher"
    about: ClassVar[str] = "Test accuracy and forgetting in one figure (NoMUS)."

    def __post_init__(self) -> None:
        nomus(0.0, 0.5, self.lam)  # refuses a weight outside its range

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        right = accuracy(*context.labelled("test")).value
        assert right is not None
        floor = nomus(1 / len(context.set("test").classes), 0.5, self.lam)
        note = f"Guessing has {floor:.4g}. {_direction(context)}."
        return Score("nomus", nomus(right / 100, _m(context, self.seed), self.lam), [], note=note)


GAPS = {
    "utility_gap": "Distance of its test accuracy to the retrained model's, in points.",
    "mia_gap": "Distance of the loss attack's accuracy m to that on the retrained model.",
    "forget_gap": "Distance of its accuracy on forget rows to the retrained model's, in points.",
}


@dataclass(frozen=True)
class RetrainGap(_OfIdentities):
    """One distance to the retrained model, which NoMUS doesn't look at.

    Args:
        of: "utility_gap", "mia_gap" or "forget_gap".
        seed: as `IdentityAttack`.
    """

    of: str = "utility_gap"
    seed: int = 42
    better: ClassVar[Better] = "lower"
    roles: ClassVar[tuple[str, ...]] = ("oracle",)

    def __post_init__(self) -> None:
        if self.of not in GAPS:
            raise MethodError(f"of is {self.of!r}; take {', '.join(GAPS)}.")

    @property
    def name(self) -> str:
        return self.of

    @property
    def about(self) -> str:
        return GAPS[self.of]

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        both = (context, references["oracle"])
        if self.of == "mia_gap":
            ours, theirs = (_m(one, self.seed) for one in both)
        else:
            on = "test" if self.of == "utility_gap" else "forget"
            ours, theirs = (accuracy(*one.labelled(on)).value or 0.0 for one in both)
        return Score(self.of, abs(ours - theirs), [])


@dataclass(frozen=True)
class ForgetDivergence(_OfIdentities):
    """KL(retrained || model) of the predictions on forget rows, in nats."""

    name: ClassVar[str] = "forget_kl"
    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = "Divergence of its predictions on forget rows from the retrained model's, in nats."
    roles: ClassVar[tuple[str, ...]] = ("oracle",)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        log_p, log_q = (log_softmax(one.labelled("forget")[0]) for one in (context, references["oracle"]))
        return Score.mean(self.name, (np.exp(log_q) * (log_q - log_p)).sum(1).tolist(), "lower")
