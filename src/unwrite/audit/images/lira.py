"""LiRA: for each row, is this confidence one of a model that was trained on it, or of one that wasn't? (arXiv 2112.03570)

Shadow models, each trained with its own random half of the rows, show both for every row. With the confidence scaled so
that it is nearly Gaussian, the attack is a likelihood-ratio test a row:

    phi = log(p_y / (1 - p_y)),   online: log N(phi; mean_in, var_in) - log N(phi; mean_out, var_out)
                                  offline: (phi - mean_out) / sd_out, in the order of P(N(mean_out, var_out) <= phi)

For an unlearned model, shadow models that were trained on a row and then unlearned it may stand for "in" (Hayes et al.,
arXiv 2403.01218): then the attack asks what that method leaves behind. Forget rows are told from holdout rows;
AUC 0.5 and TPR = FPR when nothing tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, MethodError, unknown
from ..base import Score
from ..text.membership import auc
from .arrays import ArrayLike, Floats, column, floats, labelled

Variance = Literal["auto", "row", "shared"]
Centre = Literal["mean", "median"]
LEAST = 32  # shadow models
LEAST_FOR_ROWS = 64  # below, the paper shares one variance among all rows
FLOOR = 1e-12  # of a variance


def logit_confidence(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Returns phi = log p_y - log(1 - p_y), [rows]: the label's logit less the log-sum-exp of all others, exact at any size."""
    from scipy.special import logsumexp

    scores, own = labelled((logits, labels), "attacked")
    rows = np.arange(len(own))
    others = scores.copy()
    others[rows, own] = -np.inf
    return scores[rows, own] - logsumexp(others, axis=1)


def lira_scores(
    phi: ArrayLike,
    shadow_phi: ArrayLike,
    inside: ArrayLike,
    *,
    online: bool = True,
    variance: Variance = "auto",
    centre: Centre = "mean",
) -> Floats:
    """Returns one score a row, high = looks like a member: the log-likelihood ratio, or offline the deviation from "out".

    Args:
        phi: [rows] of the audited model.
        shadow_phi: [shadows, rows].
        inside: [shadows, rows], true where the shadow model was trained on the row.
        online: False needs no model that saw the row: only "out" is modelled, and the test is one-sided.
        variance: "row" estimates one a row and side, "shared" pools the rows' within each side; "auto" shares below 64.
        centre: "mean" as in the paper, or "median" as in its code, less moved by a stray model.
    """
    if variance not in ("auto", "row", "shared"):
        raise MethodError(unknown("LiRA variance", variance, ("auto", "row", "shared")))
    if centre not in ("mean", "median"):
        raise MethodError(unknown("LiRA centre", centre, ("mean", "median")))
    own, shadows, member = _matrices(phi, shadow_phi, inside)
    if variance == "auto":
        variance = "row" if len(shadows) >= LEAST_FOR_ROWS else "shared"
    mean_out, var_out = _gaussians(shadows, ~member, variance, centre, "out")
    if not online:
        return (own - mean_out) / np.sqrt(var_out)
    mean_in, var_in = _gaussians(shadows, member, variance, centre, "in")
    return _log_density(own, mean_in, var_in) - _log_density(own, mean_out, var_out)


def lira(
    phi: ArrayLike,
    shadow_phi: ArrayLike,
    inside: ArrayLike,
    forget: ArrayLike,
    *,
    online: bool = True,
    variance: Variance = "auto",
    centre: Centre = "mean",
    least: int = LEAST,
    fpr: Sequence[float] = (0.01, 0.001),
) -> dict[str, Score]:
    """Measures the AUC of telling forget from holdout rows, and the share of forget rows found at each false-positive rate.

    Args:
        phi, shadow_phi, inside, online, variance, centre: as `lira_scores` takes them, over forget and holdout rows.
        forget: [rows], true for forget rows, false for holdout rows.
        least: shadow models to ask for; fewer than 32 say little about low false-positive rates.
        fpr: false-positive rates in [0, 1].

    Returns:
        {"lira_auc": ..., "lira_tpr_at_0.01": ..., ...}, in [0, 1], with the number N of shadow models in every note.
        `per_example` has the forget rows: their scores for the AUC, 1 where found for the rates.
    """
    values = floats(shadow_phi, "the shadow models' confidences")
    if values.ndim == 2 and len(values) < least:
        raise MethodError(
            f"LiRA needs at least {least} shadow models, and there are {len(values)}. Train more, or say least="
            f"{len(values)} and report N."
        )
    scores = lira_scores(phi, values, inside, online=online, variance=variance, centre=centre)
    of_forget = _truths(forget, "forget marks")
    if of_forget.shape != scores.shape or of_forget.all() or not of_forget.any():
        raise DataError(
            f"LiRA tells forget from holdout rows and needs both: {int(of_forget.sum())} of {of_forget.size} marks are forget, "
            f"for {len(scores)} rows."
        )
    forget_scores, unseen = scores[of_forget], scores[~of_forget]
    prefix = "lira" if online else "lira_offline"
    basis = f"N = {len(values)} shadow models, {'online' if online else 'offline'}, {len(unseen)} holdout rows."
    result = {
        f"{prefix}_auc": Score(
            f"{prefix}_auc",
            auc(unseen.tolist(), forget_scores.tolist()),
            forget_scores.tolist(),
            "toward_reference",
            basis,
        )
    }
    for rate in fpr:
        name = f"{prefix}_tpr_at_{rate:g}"
        hits = forget_scores > tpr_threshold(unseen, rate)
        coarse = f" Fewer than {1 / rate:.0f} holdout rows: no false positive was allowed." if rate > 0 else ""
        note = basis + (coarse if rate * len(unseen) < 1 else "")
        result[name] = Score.mean(name, hits.astype(float).tolist(), "toward_reference", note)
    return result


def tpr_threshold(negatives: ArrayLike, rate: float) -> float:
    """Finds the lowest threshold that at most a share `rate` of the negatives exceeds."""
    if not 0 <= rate <= 1:
        raise MethodError(f"a false-positive rate lies in [0, 1], not {rate}.")
    falling = np.sort(floats(negatives, "the negatives' scores"))[::-1]
    allowed = math.floor(rate * len(falling) + 1e-9)
    return -math.inf if allowed >= len(falling) else float(falling[allowed])


def _matrices(phi: ArrayLike, shadow_phi: ArrayLike, inside: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    own, shadows = column(phi, "audited model's confidences"), floats(shadow_phi, "the shadow models' confidences")
    member = _truths(inside, "memberships")
    if shadows.ndim != 2 or member.shape != shadows.shape or shadows.shape[1] != len(own):
        raise DataError(
            f"LiRA takes phi [rows], shadow_phi and inside [shadows, rows], not {list(own.shape)}, "
            f"{list(shadows.shape)} and {list(member.shape)}."
        )
    return own, shadows, member


def _truths(marks: ArrayLike, what: str) -> NDArray[np.bool_]:
    array = floats(marks, f"the {what}")
    if not np.isin(array, (0, 1)).all():
        raise DataError(f"the {what} must be true or false, not {array[~np.isin(array, (0, 1))][0]:g}.")
    return array.astype(bool)


def _gaussians(
    shadows: Floats, side: NDArray[np.bool_], variance: Variance, centre: Centre, name: str
) -> tuple[Floats, Floats]:
    """Estimates centre and variance [rows] of the shadow models on one side of each row."""
    counts = side.sum(0)
    if (counts < 2).any():
        row = int(np.argmax(counts < 2))
        raise DataError(
            f'row {row} is "{name}" for {counts[row]} of {len(shadows)} shadow models and needs 2 or more; '
            "put every row in half of them."
        )
    here = np.where(side, shadows, np.nan)
    mean = np.nanmean(here, axis=0)
    squares = (here - mean) ** 2
    if variance == "row":
        spread = np.nanmean(squares, axis=0)
    else:  # still about each row's own mean: differences between rows are no noise
        spread = np.full(len(mean), np.nansum(squares) / (counts - 1).sum())
    middle = mean if centre == "mean" else np.nanmedian(here, axis=0)
    return middle, np.maximum(spread, FLOOR)


def _log_density(values: Floats, mean: Floats, variance: Floats) -> Floats:
    return -0.5 * (np.log(2 * np.pi * variance) + (values - mean) ** 2 / variance)
