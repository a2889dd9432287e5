"""What the vision audits read: logits, labels, features and predictions, checked before anything is computed.

Torch tensors on any device, numpy arrays and lists are all taken; sums are done in float64. A set is handed over as
`(logits [rows, classes], labels [rows])`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
ArrayLike = Any  # a torch tensor, a numpy array or nested lists
Labelled = tuple[ArrayLike, ArrayLike]  # logits [rows, classes], labels [rows]


def floats(values: ArrayLike, what: str) -> Floats:
    """Returns values as float64; there must be at least one, and all must be finite."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values if values.is_complex() else values.double()).numpy()
    try:
        raw = np.asarray(values)
        if raw.dtype.kind not in "biuf":  # texts would be parsed, and of a complex number the real part taken
            raise TypeError(f"they are {raw.dtype}")
        array = raw.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what} are not an array of numbers: {' '.join(str(error).split())}.") from None
    if array.size == 0:
        raise DataError(f"{what} are empty (shape {list(array.shape)}); an audit needs at least one row in every set.")
    if not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0].tolist()
        raise DataError(
            f"{what} are not finite, first at {first}: {array[tuple(first)]}. Look for the rows or weights they come from."
        )
    return array


def logits_of(logits: ArrayLike, name: str) -> Floats:
    """Returns logits as [rows, classes], with at least two classes."""
    array = floats(logits, f"the {name} logits")
    if array.ndim != 2 or array.shape[1] < 2:
        raise DataError(f"the {name} logits have shape {list(array.shape)}; give [rows, classes], two classes or more.")
    return array


def labels_of(labels: ArrayLike, rows: int, classes: int | None, name: str) -> Whole:
    """Returns labels as [rows] whole numbers from 0, below `classes` where that is known."""
    array = floats(labels, f"the {name} labels")
    if array.shape != (rows,):
        raise DataError(f"the {name} set has {rows} rows and labels of shape {list(array.shape)}; give [{rows}].")
    wrong = (array < 0) | (array != np.floor(array))
    if classes is not None:
        wrong |= array >= classes
    if wrong.any():
        row = int(np.argmax(wrong))
        below = "" if classes is None else f" to {classes - 1}"
        raise DataError(f"the {name} label of row {row} is {array[row]:g}; labels are whole numbers from 0{below}.")
    return array.astype(np.int64)


def labelled(rows: Labelled, name: str) -> tuple[Floats, Whole]:
    """Returns logits and labels of a set, checked against each other."""
    try:
        outputs, own = rows
    except (TypeError, ValueError):
        raise DataError(f"give the {name} set as a pair: logits [rows, classes] and labels [rows].") from None
    logits = logits_of(outputs, name)
    return logits, labels_of(own, len(logits), logits.shape[1], name)


def same_classes(**sets: Floats) -> None:
    """Refuses sets whose logits do not have one number of classes."""
    widths = {name: logits.shape[1] for name, logits in sets.items()}
    if len(set(widths.values())) > 1:
        counts = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise DataError(f"the sets have different numbers of classes ({counts}); take all logits from one model.")


def features_of(features: ArrayLike, name: str) -> Floats:
    """Returns features as [rows, dim]."""
    array = floats(features, f"the {name} features")
    if array.ndim != 2:
        raise DataError(f"the {name} features have shape {list(array.shape)}; pool or flatten them to [rows, dim].")
    return array


def column(values: ArrayLike, name: str) -> Floats:
    """Returns one number a row: [rows] from [rows] or [rows, 1], so that nothing broadcasts to [rows, rows]."""
    array = floats(values, f"the {name}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"the {name} have shape {list(array.shape)}; give one number a row, [rows] or [rows, 1].")
    return array


def same_rows(**columns: NDArray[Any]) -> None:
    """Refuses arrays that do not have one number of rows."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"the arrays do not belong to the same rows ({counts}).")


def log_softmax(logits: Floats) -> Floats:
    """Returns log p of logits, [..., classes]."""
    from scipy.special import log_softmax as of

    return of(logits, axis=-1)


def log_complement(log_p: Floats) -> Floats:
    """Returns log(1 - p) for log p [rows, classes], exact where p rounds to 1: there it is the log of the other classes' sum."""
    from scipy.special import logsumexp

    rows, top = np.arange(len(log_p)), log_p.argmax(1)
    others = log_p.copy()
    others[rows, top] = -np.inf
    result = np.log1p(-np.exp(others))  # each is at most 1/2
    result[rows, top] = logsumexp(others, axis=1)
    return result


def balanced_sample(labels: ArrayLike, count: int, seed: int = 0) -> Whole:
    """Draws `count` row numbers in random order, as many of each class as there are, none twice.

    Raises:
        DataError: there are fewer rows than that.
    """
    own = labels_of(labels, len(labels), None, "sampled")
    if not 1 <= count <= len(own):
        raise DataError(f"can't draw {count} of {len(own)} rows; draw 1 to {len(own)}.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(own))
    turn = np.empty(len(own), dtype=np.int64)  # first of its class, second of its class, ...
    for label in np.unique(own):
        members = order[own[order] == label]
        turn[members] = np.arange(len(members))
    drawn = order[np.argsort(turn[order], kind="stable")][:count]
    return rng.permutation(drawn)
