"""The metadata beside a folder's pictures, checked line by line before the folder is read as a table.

A table has no lines any more: of a value that is missing there, nobody can say in which file it stands.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...runs import Malformed, parse_json
from .images import SHOWN

__all__ = ["check_metadata", "missing"]

FILE = "file_name"


def check_metadata(root: Path, columns: Sequence[str], target: str | None) -> None:
    """Refuses metadata files below `root` (`metadata.csv`, `metadata.jsonl`) with lines that can't be used.

    Args:
        columns: whose values are needed in every line, where a file has them at all.
        target: the one that must be a number, if any.

    Raises:
        DataError: the first few such lines, each with its file, line and fault.
    """
    faults = [
        f"{path}:{line}: {fault}"
        for path in sorted([*root.rglob("metadata.csv"), *root.rglob("metadata.jsonl")])
        for line, fault in _faults(path, columns, target)
    ]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError(f"{'; '.join(faults[:SHOWN])}{more}. Mend or remove these lines.")


def missing(value: object) -> bool:
    """Whether a cell holds nothing: null, an empty text, or a number that is none."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _faults(path: Path, columns: Sequence[str], target: str | None) -> Iterator[tuple[int, str]]:
    lines = list(_csv(path) if path.suffix == ".csv" else _jsonl(path))
    there = {name for _, row in lines if isinstance(row, dict) for name in row}
    for line, row in lines:
        if isinstance(row, str):
            yield line, row
            continue
        absent = [name for name in (FILE, *columns) if name in there and missing(row.get(name))]
        if absent:
            yield line, f"has no {' and no '.join(absent)}"
        elif FILE in there and not _is_file(path.parent / str(row[FILE])):
            yield line, f"names {row[FILE]!r:.80}, which is not there"
        elif target in there and not _is_number(row[target]):
            yield line, f"{target} is {row[target]!r:.60}, not a finite number"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name no file system takes
        return False


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [name.strip() for name in reader.fieldnames or ()]
            if double := next((name for name in names if name and names.count(name) > 1), None):
                raise DataError(f"{path} has the column {double!r:.60} twice. Rename or remove one.")
            for row in reader:
                extra = row.pop(None, None)
                yield reader.line_num, row if extra is None else f"has {len(extra)} values more than there are columns"
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as CSV: {error}. Save it as UTF-8.") from error


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} can't be read: {error}. Save it as UTF-8.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, finite=False)  # NaN is pandas' missing value, named below
        except Malformed as error:
            yield number, f"is no JSON ({error})"
            continue
        yield number, row if isinstance(row, dict) else f"is a JSON {type(row).__name__}, not an object"


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
