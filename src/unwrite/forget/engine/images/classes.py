"""What methods ask of the classes of their rows: that there are some, and whether whole ones are to be forgotten."""

from __future__ import annotations

from torch import Tensor

from ....data.images.images import Images
from ....errors import DataError

__all__ = ["need_classes", "whole_classes"]


def whole_classes(forget: Images, retain: Images) -> tuple[int, ...]:
    """The forget rows' classes, in order, if the retain set has no row of any of them; otherwise none."""
    if forget.labels is None or retain.labels is None:
        return ()
    forgotten, retained = (set(rows.labels.unique().tolist()) for rows in (forget, retain) if rows.labels is not None)
    return () if forgotten & retained else tuple(sorted(forgotten))


def need_classes(method: object, rows: Images, most: int | None = None) -> Tensor:
    """The labels of `rows`, `[rows]`.

    Args:
        method: who asks, for the message.
        most: largest number of different labels with a meaning, or None.

    Raises:
        DataError: regression targets; a single class in all; more than `most` classes in these rows.
    """
    name = type(method).__name__
    if rows.labels is None:
        raise DataError(f"{name} needs labels, and {rows.name} has regression targets. Use a method for regressors.")
    if len(rows.classes) < 2:
        raise DataError(f"{name} needs at least 2 classes, and {rows.name} has only {rows.classes[0]!r}.")
    labels = rows.labels.unique()
    if most is not None and len(labels) > most:
        raise DataError(
            f"{name} forgets at most {most} class, and {rows.name} has rows of {len(labels)}. Split it by class."
        )
    return rows.labels
