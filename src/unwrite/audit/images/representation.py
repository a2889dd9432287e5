"""Forgotten in the answers or in the features? Both sides of an unlearned model against the retrained one, each as one number.

Answers are judged by four accuracies, features by their likeness (CKA) and by k-NN on downstream sets T that have labels of
their own. (arXiv 2503.06991, which names AGR and H-LR. Neither paper text at hand nor official code has the formulas, so they
are this library's, with everything in [0, 1]: aggregate=library definition.)

    AGL  = product over forget, retain, unseen forget, unseen retain rows of (1 - |acc_u - acc_r|)
    AGR  = mean over T of CKA_T(u, r) * (1 - |knn_u(T) - knn_r(T)|)
    H-LR = 2 AGL AGR / (AGL + AGR)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from ...data.images.images import Images
from ...data.images.splits import ImageSplit
from ...errors import DataError, MethodError, ModelError, notice, unknown
from ...models.curvature import evaluating
from ...models.vision_layout import logits_of as logits_by
from ..base import Better, Panel, Score
from .accuracy import accuracy
from .arrays import ArrayLike, Floats, log_softmax, logits_of
from .context import ImageContext
from .features import knn_accuracy
from .likeness import BATCH, agl, agr, batched_cka, h_lr, permuted_cka
from .metrics import Contexts, ImageMetric

__all__ = [
    "AgreementOfFeatures",
    "AgreementOfLogits",
    "DownstreamLikeness",
    "DownstreamNeighbours",
    "FormerHead",
    "LogitsAndFeatures",
    "Spot",
    "downstream_split",
    "most_predicted",
    "top_classes",
]

Spot = Literal["penultimate", "logits"]
LIBRARY = "aggregate=library definition"
ACCURACY_SETS = ("forget", "retain", "test forget", "test retain")
SHARE, SPLIT_SEED = 0.8, 2  # of a downstream set's rows for the k-NN bank, and who draws them
STILL_KNOWN = 5.0  # % of forgotten classes that a retrained model may get right


def most_predicted(logits: ArrayLike, n: int) -> tuple[int, ...]:
    """Returns the n classes that are predicted most often, most often first, whatever the rows' order.

    Equally frequent ones by the sum of their softmax over the rows, then by number.

    Args:
        logits: [rows, classes] of the original model on a downstream set.
        n: 1 to the number of classes.

    Raises:
        MethodError: another n.
    """
    scores = logits_of(logits, "downstream")
    if not 1 <= n <= scores.shape[1]:
        raise MethodError(f"n is {n}, and there are {scores.shape[1]} classes; take 1 to {scores.shape[1]}.")
    counts = np.bincount(scores.argmax(1), minlength=scores.shape[1])
    # Sums that are rounded once don't depend on the order of the rows.
    mass = [math.fsum(column) for column in np.exp(log_softmax(scores)).T.tolist()]
    ranked = sorted(range(scores.shape[1]), key=lambda one: (-counts[one], -mass[one], one))
    return tuple(ranked[:n])


def top_classes(model: nn.Module, downstream: Images, n: int, *, batch_size: int = 256) -> tuple[int, ...]:
    """Returns the n of the model's classes that are nearest to a downstream set: those it says most often of its images.

    Forgetting these (Top Class-wise Forgetting) asks for features that differ where the downstream task needs them.

    Args:
        model: the original one, which takes pixels to [rows, classes].
        downstream: images of the other task; its labels aren't looked at.
        n: 1 to the number of classes.
        batch_size: rows a pass.

    Raises:
        MethodError: another n.
        ModelError: a model that gives no logits.
    """
    device = next(model.parameters()).device
    parts = []
    with evaluating(model), torch.no_grad():
        for first in range(0, len(downstream), batch_size):
            parts.append(logits_by(model, downstream.pixels[first : first + batch_size].to(device)).cpu())
    return most_predicted(torch.cat(parts), n)


def downstream_split(rows: int, k: int, name: str) -> tuple[Floats, Floats]:
    """Returns the row numbers of the bank and of the queries: 80 to 20, drawn by a fixed seed as the official code does.

    Raises:
        DataError: fewer rows in the bank than neighbours, or none to query.
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()
    bank = int(SHARE * rows)
    if bank < k or bank == rows:
        raise DataError(
            f"downstream set {name!r} has {rows} rows, a bank of {bank}, for k = {k} neighbours. Give more rows."
        )
    return order[:bank], order[bank:]


def _sets(split: ImageSplit) -> list[str]:
    """The downstream sets; the test rows stand in where there is none."""
    return list(split.downstream) or ["test"]


class _OfClasses(ImageMetric):
    """Base of metrics of classifiers beside the retrained model."""

    @property
    def roles(self) -> tuple[str, ...]:
        return ("oracle",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("forget", "test")

    def applies(self, split: Any) -> bool:
        return super().applies(split) and split.forget.labels is not None


@dataclass(frozen=True)
class _Features(_OfClasses):
    """Base of what is said of features.

    Args:
        k: neighbours.
        at: "penultimate", what goes into the head, or "logits", which the official k-NN is given: there a change of the head
            alone shows.
        batch: rows of a CKA.
        debiased: whether CKA is.
    """

    k: int = 5
    at: Spot = "penultimate"
    batch: int = BATCH
    debiased: bool = False

    def __post_init__(self) -> None:
        if self.at not in ("penultimate", "logits"):
            raise MethodError(unknown("spot of features", self.at, ("penultimate", "logits")))
        if self.k < 1:
            raise MethodError(f"k is {self.k}; a row has 1 neighbour or more.")
        if self.batch < 4:
            raise MethodError(f"batch is {self.batch}; CKA of fewer than 4 rows says nothing.")

    def of(self, context: ImageContext, name: str) -> Floats:
        """A set's rows, [rows, dim]."""
        return context.features(name) if self.at == "penultimate" else context.logits(name)

    def likeness(self, context: ImageContext, other: ImageContext, name: str) -> float | None:
        """CKA of two models on a set; None where all rows of one are the same."""
        one, two = self.of(context, name), self.of(other, name)
        if not (one - one[0]).any() or not (two - two[0]).any():
            return None
        return batched_cka(one, two, batch=self.batch, debiased=self.debiased)

    def basis(self, context: ImageContext, other: ImageContext, name: str) -> str:
        """What one must know of a CKA: its rows, and what unrelated rows give."""
        one, two = self.of(context, name), self.of(other, name)
        if self.likeness(context, other, name) is None:
            return "a model collapsed: all rows have the same features"
        null = permuted_cka(one, two, batch=self.batch, debiased=self.debiased)
        kind = "debiased" if self.debiased else "biased"
        return (
            f"{kind} in batches of {min(self.batch, len(one))} rows for {one.shape[1]} dims; rows shuffled: {null:.3f}"
        )

    def neighbours(self, context: ImageContext, name: str) -> Score:
        """k-NN of a set, in percent: rows that the bank's neighbours give their own label."""
        features, labels = self.of(context, name), context.labels(name)
        bank, asked = downstream_split(len(labels), self.k, name)
        return knn_accuracy(
            features[asked], labels[asked], features[bank], labels[bank], k=self.k, distance="cosine", on=name
        )


@dataclass(frozen=True)
class DownstreamLikeness(_Features):
    """Linear CKA, in [0, 1], of a set's features to the retrained model's.

    Args:
        on: the set.
        to: "oracle", or "before": is it still the original?
    """

    on: str = "test"
    to: Literal["oracle", "before"] = "oracle"
    better: ClassVar[Better] = "toward_reference"

    @property
    def name(self) -> str:
        return f"cka_{self.on.replace(' ', '_')}" + ("_to_before" if self.to == "before" else "")

    @property
    def about(self) -> str:
        other = "the retrained model's" if self.to == "oracle" else "those before"
        return f"Likeness (CKA) of features of {self.on} rows to {other}."

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    @property
    def roles(self) -> tuple[str, ...]:
        return (self.to,)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        other = references[self.to]
        value = self.likeness(context, other, self.on)
        if value is None:
            return Score("cka", None, [], note="All rows have the same features: a model collapsed.")
        return Score("cka", value, [], note=f"CKA {self.basis(context, other, self.on)}.")


@dataclass(frozen=True)
class DownstreamNeighbours(_Features):
    """k-NN accuracy, in percent, on a downstream set: what its task can still do with the features.

    Args:
        on: the set.
    """

    on: str = "test"
    roles: ClassVar[tuple[str, ...]] = ()
    better: ClassVar[Better] = "toward_reference"
    panel: ClassVar[Panel] = "kept"

    @property
    def name(self) -> str:
        return f"knn_{self.on.replace(' ', '_')}" + ("_of_logits" if self.at == "logits" else "")

    @property
    def about(self) -> str:
        return f"k-NN accuracy on {self.on} rows, which the {self.at} features of other such rows are to tell."

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return self.neighbours(context, self.on)


@dataclass(frozen=True)
class AgreementOfLogits(_OfClasses):
    """AGL: how near its accuracies on forget, retain and unseen rows of both kinds are to the retrained model's."""

    name: ClassVar[str] = "agl"
    better: ClassVar[Better] = "higher"
    about: ClassVar[str] = f"Agreement with the retrained model by answers: 1 for the same accuracies ({LIBRARY})."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        oracle = references["oracle"]
        sets = [name for name in ACCURACY_SETS if context.rows_named(context.split, name)]
        ours, theirs = ({name: _right(one, name) for name in sets} for one in (context, oracle))
        _warn_of(context.split, theirs["forget"])
        figures = ", ".join(f"{name} {ours[name]:.3f} ({theirs[name]:.3f} retrained)" for name in sets)
        return Score("agl", agl(ours, theirs), [], note=f"{LIBRARY}. Accuracies: {figures}.")


@dataclass(frozen=True)
class AgreementOfFeatures(_Features):
    """AGR: how near its features are to the retrained model's, by CKA and k-NN on downstream sets.

    Where the split has none, the test rows stand in, with their own labels.
    """

    better: ClassVar[Better] = "higher"

    @property
    def name(self) -> str:
        return "agr" if self.at == "penultimate" else "agr_of_logits"

    @property
    def about(self) -> str:
        return f"Agreement with the retrained model by features: 1 for the same CKA and k-NN ({LIBRARY})."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        oracle, names = references["oracle"], _sets(context.split)
        alike = {name: self.likeness(context, oracle, name) or 0.0 for name in names}
        ours, theirs = ({name: _value(self.neighbours(one, name)) for name in names} for one in (context, oracle))
        parts = "; ".join(
            f"{name}: CKA {alike[name]:.3f} ({self.basis(context, oracle, name)}), k-NN {ours[name]:.3f} "
            f"({theirs[name]:.3f} retrained)"
            for name in names
        )
        stand_in = "" if context.split.downstream else " There is no downstream set, so the test rows stand in."
        return Score("agr", agr(alike, ours, theirs), [], note=f"{LIBRARY}.{stand_in} {parts}.")


@dataclass(frozen=True)
class LogitsAndFeatures(_Features):
    """H-LR: the harmonic mean of AGL and AGR."""

    name: ClassVar[str] = "h_lr"
    better: ClassVar[Better] = "higher"
    about: ClassVar[str] = f"Harmonic mean of both agreements, 0 where one of them is ({LIBRARY})."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        features = AgreementOfFeatures(self.k, self.at, self.batch, self.debiased)
        parts = [metric(context, references).value or 0.0 for metric in (AgreementOfLogits(), features)]
        return Score("h_lr", h_lr(*parts), [], note=f"{LIBRARY}. AGL {parts[0]:.3f}, AGR {parts[1]:.3f}.")


@dataclass(frozen=True)
class FormerHead(_OfClasses):
    """Accuracy on forget rows, in percent, of its features under the head of the model before.

    High where the features still say what the new head doesn't; a head that fits other features says little.
    """

    name: ClassVar[str] = "forget_accuracy_former_head"
    about: ClassVar[str] = "Share of forget rows right once the head before is put back on its features."
    roles: ClassVar[tuple[str, ...]] = ("before",)
    needs: ClassVar[tuple[str, ...]] = ("forget",)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        features, former = torch.from_numpy(context.features("forget")), references["before"]
        head = former.layout.head_module
        weight = next(head.parameters())
        if features.shape[1] != former.layout.features_dim:
            raise ModelError(
                f"the model's features have {features.shape[1]} dims and the head before takes {former.layout.features_dim}."
            )
        with evaluating(former.model), torch.no_grad():
            logits = head(features.to(weight.device, weight.dtype)).double().cpu()
        return accuracy(logits, context.labels("forget"), self.name)


def _right(context: ImageContext, name: str) -> float:
    return _value(accuracy(*context.labelled(name), name))


def _value(percent: Score) -> float:
    assert percent.value is not None
    return percent.value / 100


def _warn_of(split: ImageSplit, known: float) -> None:
    """A retrained model that is right on classes it never saw isn't one."""
    assert split.forget.labels is not None
    assert split.retain.labels is not None
    whole = not bool(torch.isin(split.forget.labels, split.retain.labels).any())
    if whole and 100 * known > STILL_KNOWN:
        notice(
            f"the retrained model is right on {100 * known:.1f} % of the forgotten classes' rows, so it has seen them."
        )
