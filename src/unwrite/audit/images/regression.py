"""How far an unlearned regressor is from the one retrained without the forget rows (arXiv 2210.08196, section 5).

Error on forget rows should be the oracle's, which is high; higher still shows that something was done to them. The
predictions are compared as distributions (Wasserstein-1) and row by row (|f - f_oracle| / |y|), and an SVC on the
absolute error tells members from non-members. `attacks.relearning_time` has the time to learn the rows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...errors import DataError, MethodError, unknown
from ..base import Score
from .arrays import ArrayLike, Floats, Whole, column, same_rows
from .membership import svc_calls

Error = Literal["mae", "mse"]
Pair = tuple[ArrayLike, ArrayLike]  # predictions and targets, each [rows] or [rows, 1]


def regression_error(predictions: ArrayLike, targets: ArrayLike, on: str = "forget", error: Error = "mae") -> Score:
    """Returns the mean absolute or squared error, in the targets' unit or its square. Predictions, targets: [rows] or [rows, 1]."""
    if error not in ("mae", "mse"):
        raise MethodError(unknown("regression error", error, ("mae", "mse")))
    off = _errors((predictions, targets), on)
    better = "toward_reference" if on.startswith("forget") else "lower"
    return Score.mean(f"{on}_{error}", (off if error == "mae" else off**2).tolist(), better)  # type: ignore[arg-type]


def wasserstein(predictions: ArrayLike, oracle: ArrayLike) -> Score:
    """Returns the Wasserstein-1 distance between two models' predictions: |c| when one is the other shifted by c.

    It compares distributions, so rows need not correspond, and there are no per-example values.
    """
    from scipy.stats import wasserstein_distance

    ours, theirs = column(predictions, "predictions"), column(oracle, "oracle's predictions")
    return Score("wasserstein", float(wasserstein_distance(ours, theirs)), [], "lower")


def relative_difference(predictions: ArrayLike, oracle: ArrayLike, targets: ArrayLike) -> Score:
    """Returns the mean of |f - f_oracle| / |y| on the same rows; rows whose target is 0 have no value."""
    ours, theirs = column(predictions, "predictions"), column(oracle, "oracle's predictions")
    own = column(targets, "targets")
    same_rows(predictions=ours, oracle=theirs, targets=own)
    values = [
        abs(a - b) / abs(y) if y else None for a, b, y in zip(ours.tolist(), theirs.tolist(), own.tolist(), strict=True)
    ]
    none = int((own == 0).sum())
    note = f"{none} of {len(own)} rows have a target of 0 and no relative difference." if none else ""
    return Score.mean("relative_difference", values, "lower", note)


@dataclass(frozen=True)
class Histogram:
    """Counts [bins] between edges [bins + 1], and how many values lie beyond the last edge."""

    edges: Floats
    counts: Whole
    beyond: int


def histogram(values: Sequence[float | None], bins: int = 20, limit: float = 2.0) -> Histogram:
    """Counts the values of a score's `per_example` from 0 to `limit`; None is left out."""
    if bins < 1 or not limit > 0:
        raise MethodError(f"a histogram needs at least 1 bin and a limit above 0, not {bins} and {limit}.")
    known = np.array([v for v in values if v is not None], dtype=np.float64)
    counts, edges = np.histogram(known, bins=bins, range=(0.0, limit))
    return Histogram(edges, counts.astype(np.int64), int((known > limit).sum()))


def regression_membership_attack(
    forget: Pair,
    retain: Pair,
    test: Pair,
    *,
    members: Literal["retain", "repo"] = "retain",
    rows: int = 2000,
    seed: int = 0,
) -> Score:
    """Returns the percentage of forget rows that an SVC (C = 3, RBF) on the absolute error calls members; the oracle's is the target.

    Args:
        forget, retain, test: (predictions, targets) of the audited model.
        members: "retain" learns members from retain rows; "repo" from retain and forget rows, as the authors' notebook
            does, where the attack is told the answer for some of the rows it then judges.
        rows: at most so many members and as many test rows to learn from.
        seed: draws them.
    """
    if members not in ("retain", "repo"):
        raise MethodError(unknown("member rows", members, ("retain", "repo")))
    if rows < 1:
        raise MethodError(f"the attack needs at least 1 row a side, not {rows}.")
    judged, retained, unseen = _errors(forget, "forget"), _errors(retain, "retain"), _errors(test, "test")
    pool = retained if members == "retain" else np.concatenate([retained, judged])
    count = min(rows, len(pool), len(unseen))
    rng = np.random.default_rng(seed)
    inside, outside = (rng.permutation(side)[:count, None] for side in (pool, unseen))
    [called] = svc_calls(inside, outside, judged[:, None])
    name = "mia_l1" if members == "retain" else "mia_l1_repo"
    return Score.mean(name, (100.0 * called).tolist(), "toward_reference", f"Learnt from {count} rows a side.")


def _errors(rows: Pair, name: str) -> Floats:
    """Returns |prediction - target|, [rows]."""
    predictions, targets = column(rows[0], f"{name} predictions"), column(rows[1], f"{name} targets")
    if len(predictions) != len(targets):
        raise DataError(f"the {name} set has {len(predictions)} predictions for {len(targets)} targets.")
    return np.abs(predictions - targets)
