"""Rows of a `datasets` table as they are stored: no picture, sound or film is decoded, wherever in a row it stands.

Decoding one would fetch what its path names, and whoever made the rows has chosen that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["stored_rows"]

BATCH = 1000  # rows that are made from a table at once


def stored_rows(data: Dataset) -> Iterator[dict[str, Any]]:
    """Every row of a `datasets.Dataset`, a picture as {"bytes", "path"}."""
    import datasets

    features = datasets.Features(_undecoded(dict(data.features)))
    for table in data.with_format("arrow").iter(BATCH):
        for row in table.to_pylist():
            yield features.decode_example(row)


def _undecoded(feature: Any) -> Any:
    """The same feature, whose media stay as they are; JSON in a cell is still read, for that is text."""
    import datasets

    if isinstance(feature, Mapping):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    if isinstance(feature, list | tuple):
        return [_undecoded(inner) for inner in feature]
    if isinstance(feature, datasets.List | datasets.LargeList):
        return replace(feature, feature=_undecoded(feature.feature))
    if hasattr(feature, "decode") and not isinstance(feature, datasets.Json):
        return replace(feature, decode=False)
    return feature
