"""Ten of the invented authors and a Llama of half a million weights that learns them from nothing, in seconds.

Two authors are forgotten, and two others for tuning, where the reported ones are kept.
"""

from __future__ import annotations

from functools import partial

from ..data import Examples, ForgetSplit
from ..data.text.authors import authors
from .text_beds import TextBed

__all__ = ["ten_authors", "ten_authors_bed"]

AUTHORS = 10


def ten_authors(first: int, last: int) -> ForgetSplit:
    """Ten of the shipped authors, of whom those from `first` up to `last` are forgotten."""
    rows = authors().retain
    assert rows is not None
    names = list(dict.fromkeys(row.entity for row in rows))[:AUTHORS]
    gone = set(names[first:last])
    return ForgetSplit(
        Examples([row for row in rows if row.entity in gone], "authors forget"),
        Examples([row for row in rows if row.entity in names and row.entity not in gone], "authors retain"),
        name="ten authors",
    )


def ten_authors_bed(epochs: int) -> TextBed:
    """The last two forgotten, or the two before them for tuning.

    Args:
        epochs: of the training of target and oracle.
    """
    return TextBed(
        "ten authors",
        partial(ten_authors, AUTHORS - 2, AUTHORS),
        partial(ten_authors, AUTHORS - 4, AUTHORS - 2),
        net={"layers": 3, "width": 96},
        epochs=epochs,
        lr=2e-3,
    )
