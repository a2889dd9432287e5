"""Where knowledge sits below the last layer: a head-only trick changes the accuracies and none of these.

Linear CKA (Kornblith et al., arXiv 1905.00414) compares two models' features of the same rows, blind to rotation and
scale:  |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms of centred X, Y [rows, dim];  1 = the same representation.
k-NN accuracy asks whether rows still lie among their class, and `neighbours` shows among which rows they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...errors import DataError, MethodError, unknown
from ..base import Score
from .arrays import ArrayLike, Floats, Whole, features_of, labels_of, same_rows

Distance = Literal["euclidean", "cosine"]


def linear_cka(before: ArrayLike, after: ArrayLike) -> Score:
    """Returns linear CKA in [0, 1] of features [rows, dim] of two models on the same rows; the dims may differ.

    It belongs to the set as a whole, so there are no per-example values. With fewer rows than dims it is near 1 for
    unrelated features too; the note warns.
    """
    x, y = features_of(before, "before"), features_of(after, "after")
    same_rows(before=x, after=y)
    x, y = x - x.mean(0), y - y.mean(0)
    for name, centred in (("before", x), ("after", y)):
        if not centred.any():
            raise DataError(f"the {name} features are the same for all {len(x)} rows, so there is nothing to compare.")
    if len(x) < max(x.shape[1], y.shape[1]):  # the same number from [rows, rows] instead of [dim, dim]
        left, right = x @ x.T, y @ y.T
        value = (left * right).sum() / (np.linalg.norm(left) * np.linalg.norm(right))
        note = f"{len(x)} rows for {max(x.shape[1], y.shape[1])} dimensions: CKA is high even for unrelated features."
    else:
        value = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
        note = ""
    return Score("cka", float(value), [], "toward_reference", note)


@dataclass(frozen=True)
class Neighbours:
    """The k nearest reference rows of each query row, nearest first.

    Args:
        index: [queries, k] row numbers in the reference.
        distance: [queries, k].
    """

    index: Whole
    distance: Floats


def neighbours(
    query: ArrayLike, reference: ArrayLike | None = None, k: int = 5, distance: Distance = "euclidean"
) -> Neighbours:
    """Finds the nearest rows by features [rows, dim], for instance of forgotten rows among retained ones.

    Args:
        reference: None looks among the query rows themselves, each row's own left out.
        distance: "cosine" compares directions only.
    """
    from sklearn.neighbors import NearestNeighbors

    if distance not in ("euclidean", "cosine"):
        raise MethodError(unknown("distance", distance, ("euclidean", "cosine")))
    rows = features_of(query, "query")
    others = rows if reference is None else features_of(reference, "reference")
    most = len(others) - (reference is None)
    if not 1 <= k <= most:
        raise MethodError(f"k is {k}, and there are {most} rows to be neighbours; take 1 to {most}.")
    if rows.shape[1] != others.shape[1]:
        raise DataError(f"query features have {rows.shape[1]} dimensions, reference features {others.shape[1]}.")
    index = NearestNeighbors(n_neighbors=k, metric=distance).fit(others)
    far, near = index.kneighbors(None if reference is None else rows)
    return Neighbours(near.astype(np.int64), far)


def knn_accuracy(
    query: ArrayLike,
    labels: ArrayLike,
    reference: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
    *,
    k: int = 5,
    distance: Distance = "euclidean",
    on: str = "forget",
) -> Score:
    """Returns the percentage of query rows whose class wins among their k nearest reference rows; the nearer class at a tie.

    A class that has no reference row can't win: after forgetting a class, give reference rows of it that are not
    queried, or no reference at all.

    Args:
        query, labels: features [rows, dim] and labels [rows].
        reference, reference_labels: None leaves one out among the query rows.
        on: the queried set's name in the score's.
    """
    rows = features_of(query, "query")
    own = labels_of(labels, len(rows), None, "query")
    if (reference is None) != (reference_labels is None):
        raise DataError("k-NN needs reference features and reference labels, or neither.")
    nearest = neighbours(rows, reference, k, distance)
    known = own if reference is None else labels_of(reference_labels, len(reference), None, "reference")
    votes = known[nearest.index]  # [queries, k]
    count = (votes[:, :, None] == votes[:, None, :]).sum(2)  # of each neighbour's class among the k
    winner = votes[np.arange(len(own)), count.argmax(1)]  # the first, so the nearest, of the largest
    return Score.mean(f"{on}_knn", (100.0 * (winner == own)).tolist(), "toward_reference", f"k = {k}, {distance}.")
