"""`read(source)`: rows from a file, a data set in memory, or the Hub; every malformed row is named by file and line.

JSON Lines, JSON and CSV are read by the standard library, because a bad row must be named by its line; Parquet by
pyarrow, and Hub ids by `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, unknown
from .examples import Example, Examples, ForgetSplit
from .rows import BadRow, example_of

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
SHOWN = 10
_HUB_ID = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<config>[^@:/\\]+))?(@(?P<split>[^@/\\]+))?")


def read(source: Any, *, name: str | None = None) -> Examples:
    """The examples in `source`.

    Args:
        source: a path ending in .jsonl, .json, .csv or .parquet; a `datasets.Dataset`; a Hub id
            "org/name[:config][@split]" (the split is "train" unless given); `Examples`, returned as they are; or any
            iterable of rows (mappings) or `Example`s.
        name: the set's name in messages and reports; the file's or data set's by default.

    Raises:
        DataError: no such file, an unknown suffix, no rows, or malformed rows (ten are named, all are counted).
    """
    if isinstance(source, Examples):
        return Examples(source, name) if name else source
    if isinstance(source, Path) or (isinstance(source, str) and _is_path(source)):
        path = Path(source).expanduser()
        return _collect(_file_rows(path), name or path.stem, str(path))
    if isinstance(source, str):
        return _collect(_numbered(from_hub(source), source), name or source, source)
    if isinstance(source, Mapping):
        known = ", ".join(map(str, source)) or "none"
        raise DataError(f"a mapping of sets was given, not a set; choose one of its parts (there are: {known}).")
    if isinstance(source, Iterable):
        place = name or "row"
        return _collect(_numbered(source, place), name or "examples", place)
    raise DataError(f"can't read rows from a {type(source).__name__}. Give a path, a Hub id or a datasets.Dataset.")


def split_from(forget: Any, retain: Any = None, holdout: Any = None, allow_overlap: bool = False) -> ForgetSplit:
    """A split from anything `read` accepts; "authors" or "landmarks" as `forget` alone is the shipped split.

    Raises:
        DataError: as `read`; a shipped set given together with others; forget and retain or holdout share rows.
    """
    shipped = _shipped()
    for kind, source in (("retain", retain), ("holdout", holdout)):
        if isinstance(source, str) and source in shipped:
            raise DataError(
                f"{kind} is {source!r}, a shipped set with parts of its own. Name it as the forget set, or give a file."
            )
    if isinstance(forget, str) and forget in shipped:
        if retain is not None or holdout is not None:
            raise DataError(
                f"{forget!r} is shipped with its own retain set. Leave out retain and holdout, or give files."
            )
        return shipped[forget]()
    if isinstance(forget, ForgetSplit):
        return forget
    return ForgetSplit(
        forget=read(forget),
        retain=None if retain is None else read(retain),
        holdout=None if holdout is None else read(holdout),
        allow_overlap=allow_overlap,
        name=Path(forget).stem if isinstance(forget, str | Path) else "split",
    )


def _shipped() -> dict[str, Any]:
    from . import authors, landmarks

    return {"authors": authors, "landmarks": landmarks}


def _is_path(source: str) -> bool:
    """A suffix we read, or something that exists or can't be a Hub id."""
    path = Path(source).expanduser()
    return path.suffix.lower() in SUFFIXES or path.exists() or _HUB_ID.fullmatch(source) is None


def from_hub(source: str) -> Any:
    """The `datasets.Dataset` behind "org/name[:config][@split]"."""
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise DataError(f"{source!r} is no data set id. Write org/name, org/name:config or org/name:config@split.")
    return load(match["path"], match["config"], match["split"] or "train")


def load(path: str, config: str | None, split: str, **options: Any) -> Any:
    """`datasets.load_dataset`, its many exceptions turned into one clear line."""
    import datasets

    what = path + (f":{config}" if config else "") + f"@{split}"
    try:
        return datasets.load_dataset(path, config, split=split, **options)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"can't load the data set {what}: {reason}. Check the id, the configuration and the network."
        ) from error


def _collect(rows: Iterable[tuple[str, Any]], name: str, place: str) -> Examples:
    """Examples from (place, row or BadRow) pairs; all bad rows in one error."""
    good: list[Example] = []
    bad: list[str] = []
    for where, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            if isinstance(row, Example):
                good.append(row)
            elif isinstance(row, Mapping):
                good.append(example_of(row, where))
            else:
                raise BadRow(f"is not a row with named columns but a {type(row).__name__}")
        except BadRow as error:
            bad.append(f"{where}: {error}")
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        total = len(good) + len(bad)
        raise DataError(
            f"{len(bad)} of {total} rows in {place} can't be used: {'; '.join(bad[:SHOWN])}{more}. Mend or remove them."
        )
    if not good:
        raise DataError(f"{place} has no rows. Give at least one.")
    return Examples(good, name)


def _numbered(rows: Iterable[Any], place: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows, start=1):
        yield f"{place}:{number}", row


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.is_dir():
        raise DataError(f"{path} is a folder. Give one of its files ({', '.join(SUFFIXES)}).")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: {unknown('file type', path.suffix or path.name, SUFFIXES)}")
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*") if p.suffix.lower() in SUFFIXES] if path.parent.is_dir() else []
        there = f" Beside it: {', '.join(sorted(near)[:5])}." if near else " Check the path."
        raise DataError(f"there is no file {path}.{there}")
    if path.suffix.lower() == ".parquet":
        return _numbered(_parquet(path), path.name)
    return {".jsonl": _jsonl, ".json": _json, ".csv": _csv}[path.suffix.lower()](path)


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({str(error).splitlines()[0]}).") from error


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}:{line}: not UTF-8 text. Save the file as UTF-8.") from None


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): a JSON string may hold U+2028 and its kin as they are.
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if line.strip():
            yield f"{path.name}:{number}", _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return BadRow(f"invalid JSON ({getattr(error, 'msg', 'nested too deeply')})")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """A list of rows, or an object with one list of rows in it ({"data": [...]}). Rows are named by number."""
    text = _decoded(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " One row a line? Name the file .jsonl." if error.msg == "Extra data" else ""
        raise DataError(f"{path.name}:{error.lineno}: invalid JSON ({error.msg}).{hint}") from None
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list) and all(isinstance(r, dict) for r in part)]
        is_row = any(column in value for column in ("question", "prompt", "instruction", "messages", "text"))
        value = [value] if is_row else lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(f"{path.name}: needs a list of rows, not one {type(value).__name__}.")
    for number, row in enumerate(value, start=1):
        yield f"{path.name} row {number}", row


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows by the line on which they start; a cell may hold line breaks."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    header = next(islice(reader, 1), None)
    if header is None:
        raise DataError(f"{path} is empty. Its first line must name the columns.")
    columns = [column.strip() for column in header]
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield f"{path.name}:{line}", BadRow(f"invalid CSV ({error})")
            return
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(columns):
            yield f"{path.name}:{line}", BadRow(f"has {len(cells)} cells for {len(columns)} columns")
        else:
            yield f"{path.name}:{line}", dict(zip(columns, cells, strict=True))
