"""What an unlearned classifier says: accuracies, the gap to the oracle, and how random its answers on forget rows are.

UA = 100 - accuracy on the forget rows, RA and TA = accuracy on retain and test rows (arXiv 2304.04934, section 4). None
is better for being higher: the oracle's value is the target, so methods are compared by

    avg gap = mean over metrics |method - oracle|

ZRF (arXiv 2205.08096) compares the forget rows' predictions with those of a randomly initialised teacher:

    ZRF = 1 - mean_x JS(f(x), f_random(x)),   JS(p, q) = KL(p || m)/2 + KL(q || m)/2,   m = (p + q)/2,   in nats

Accuracies are percentages, so that they can stand in one table with the membership attacks and be averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from ...errors import DataError, MethodError, unknown
from ..base import Score
from .arrays import ArrayLike, Labelled, Whole, labelled, log_softmax, logits_of, same_classes, same_rows

Divergence = Literal["js", "repo"]


def accuracy(logits: ArrayLike, labels: ArrayLike, name: str = "TA", without: int | None = None) -> Score:
    """Returns the percentage of rows whose largest logit is the label's.

    Args:
        name: the score's, for instance TA (test rows), RA (retain rows), forget_accuracy.
        without: the forgotten class, whose rows are left out (they score None).
    """
    scores, own = labelled((logits, labels), name)
    others = np.ones(len(own), dtype=bool) if without is None else own != without
    if not others.any():
        raise DataError(f"every row is of the forgotten class {without}; {name} needs rows of other classes.")
    right = scores.argmax(1) == own
    rows = [(100.0 if hit else 0.0) if counts else None for hit, counts in zip(right, others, strict=True)]
    note = "" if without is None else f"Without the {int((~others).sum())} rows of class {without}."
    return Score(name, 100 * int(right[others].sum()) / int(others.sum()), rows, "higher", note)


def unlearning_accuracy(logits: ArrayLike, labels: ArrayLike) -> Score:
    """Returns UA, 100 less the accuracy on forget rows; both add up to exactly 100. Close to the oracle's is good, not high."""
    hits = accuracy(logits, labels, "forget_accuracy")
    missed: list[float | None] = [100.0 - (hit or 0.0) for hit in hits.per_example]
    return Score("UA", 100 - (hits.value or 0.0), missed, "toward_reference")


def accuracies(forget: Labelled, retain: Labelled, test: Labelled, without: int | None = None) -> dict[str, Score]:
    """Returns UA, RA and TA of one model, each set as (logits [rows, classes], labels [rows]).

    Args:
        without: the class that was forgotten, left out of TA; None after forgetting single rows.
    """
    scores = [unlearning_accuracy(*forget), accuracy(*retain, "RA"), accuracy(*test, "TA", without)]
    return {score.name: score for score in scores}


def confusion(logits: ArrayLike, labels: ArrayLike) -> Whole:
    """Counts rows by label and prediction, [label, prediction]."""
    scores, own = labelled((logits, labels), "confusion")
    classes = scores.shape[1]
    return np.bincount(own * classes + scores.argmax(1), minlength=classes**2).reshape(classes, classes)


def gaps(method: Mapping[str, Score | float], oracle: Mapping[str, Score | float]) -> dict[str, float]:
    """Returns |method - oracle| for every metric of the oracle's table."""
    if not oracle:
        raise DataError("a gap needs at least one metric, for instance {'UA': ..., 'RA': ..., 'TA': ..., 'MIA': ...}.")
    if set(method) != set(oracle):
        odd = ", ".join(sorted(set(method) ^ set(oracle)))
        raise DataError(f"method and oracle must have the same metrics; only one of them has: {odd}.")
    return {name: abs(_number(method[name], name) - _number(oracle[name], name)) for name in oracle}


def average_gap(method: Mapping[str, Score | float], oracle: Mapping[str, Score | float]) -> Score:
    """Returns the mean of the gaps, which must be in one unit; the note lists them."""
    distances = gaps(method, oracle)
    figures = ", ".join(f"{name} {gap:.2f}" for name, gap in distances.items())
    return Score(
        "avg_gap", float(np.mean(list(distances.values()))), [], "lower", f"Distance to the oracle: {figures}."
    )


def run_time_ratio(cost: float, retraining: float) -> Score:
    """Divides the cost of a method by the cost of retraining, both in one unit (forward-equivalents or seconds)."""
    if not (math.isfinite(cost) and cost >= 0 and math.isfinite(retraining) and retraining > 0):
        raise DataError(
            f"a run-time ratio needs a cost of at least 0 over one above 0, not {cost:g} over {retraining:g}."
        )
    return Score("run_time", cost / retraining, [], "lower", f"{cost:.4g} against {retraining:.4g} for retraining.")


def _number(score: Score | float, name: str) -> float:
    value = score.value if isinstance(score, Score) else score
    if value is None or not math.isfinite(value):
        raise DataError(f"{name} has no value, so it has no gap to the oracle; leave it out of both tables.")
    return float(value)


def zero_retrain_forgetting(unlearned: ArrayLike, random: ArrayLike, zrf: Divergence = "js") -> Score:
    """Returns ZRF on the forget rows, which is 1 where the unlearned model answers like the random teacher.

    Args:
        unlearned, random: logits [rows, classes] of the two models on the same forget rows.
        zrf: "js" is the Jensen-Shannon divergence of the paper; "repo" is what its code computes, the reverse
            divergences KL(m || p)/2 + KL(m || q)/2 averaged over rows and classes, so that it nears 1 as classes grow.
    """
    if zrf not in ("js", "repo"):
        raise MethodError(unknown("ZRF divergence", zrf, ("js", "repo")))
    ours, theirs = logits_of(unlearned, "unlearned"), logits_of(random, "random teacher's")
    same_classes(unlearned=ours, random=theirs)
    same_rows(unlearned=ours, random=theirs)
    log_p, log_q = log_softmax(ours), log_softmax(theirs)
    log_m = np.logaddexp(log_p, log_q) - math.log(2)
    if zrf == "js":
        apart = (np.exp(log_p) * (log_p - log_m) + np.exp(log_q) * (log_q - log_m)).sum(1) / 2
        note = ""
    else:
        apart = (np.exp(log_m) * (2 * log_m - log_p - log_q)).mean(1) / 2
        note = "Reverse divergences averaged over classes, as the authors' code does."
    return Score.mean("zrf" if zrf == "js" else "zrf_repo", (1 - apart).tolist(), "toward_reference", note)
