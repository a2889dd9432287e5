"""The sets of rows of a split of texts, by the names that metrics ask for."""

from __future__ import annotations

from ...data.text.examples import Examples, ForgetSplit
from ...errors import DataError, unknown

__all__ = ["has_rows", "kept_sets", "rows_of", "sets_of"]


def sets_of(split: ForgetSplit) -> dict[str, Examples]:
    """Every set a split has: forget, retain, holdout and its evaluation sets."""
    sets = {"forget": split.forget, "retain": split.retain, "holdout": split.holdout, **split.evaluation}
    return {name: rows for name, rows in sets.items() if rows is not None}


def rows_of(split: ForgetSplit, on: str, limit: int | None = None) -> Examples:
    """The rows of a split by name: forget, retain, holdout or one of its evaluation sets.

    With a `limit`, that many evenly spaced rows.
    """
    sets = sets_of(split)
    rows = sets.get(on)
    if rows is None:
        raise DataError(unknown("set", on, sets))
    if limit is None or len(rows) <= limit:
        return rows
    return Examples((rows[i * len(rows) // limit] for i in range(limit)), rows.name)


def has_rows(split: ForgetSplit, on: str) -> bool:
    """Whether the split has rows under this name."""
    return len(sets_of(split).get(on, ())) > 0


def kept_sets(split: ForgetSplit) -> list[str]:
    """The sets whose knowledge must stay: retain, and every evaluation set that isn't about the forget rows."""
    apart = ("forget", "holdout", "_icl", "privleak")
    names = [n for n in split.evaluation if not any(word in n for word in apart) and has_rows(split, n)]
    return (["retain"] if has_rows(split, "retain") else []) + names
