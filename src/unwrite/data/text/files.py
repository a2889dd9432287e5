"""Rows of files and folders, each with its place: "forget.jsonl:3", "forget.json row 3", "notes.txt".

JSON Lines, JSON, CSV and texts are read by the standard library, because a bad row must be named by its line;
Parquet by pyarrow, and folders of `save_to_disk` by `datasets`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ... import hub
from ...errors import DataError, unknown
from ..stored import stored_rows
from .layouts import ANSWERS, CHATS, QUESTIONS, BadRow
from .sizes import check_columns, checked_gzip, checked_parquet, most_bytes, too_large
from .values import Flaw

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
TEXTS = (".txt", ".md")
SUFFIXES = (*TABLES, *TEXTS)
CODE = (
    ".py",
    ".pyi",
    ".js",
    ".ts",
    ".java",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cs",
    ".go",
    ".rs",
    ".rb",
    ".php",
    ".sh",
    ".sql",
)
DOCUMENTS = (*TEXTS, *CODE)  # a whole file is one row
COMPILED = "__pycache__"  # beside Python files, made by running them
MOST_DIGITS = 4000  # Python refuses to parse more than 4,300

Rows = Iterator[tuple[str, Any]]


def suffix_of(path: Path) -> str:
    """The kind of a file by its name: .jsonl of "forget.jsonl" and of "forget.jsonl.gz"."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def stem_of(path: Path) -> str:
    """The name of a file without its suffixes that we know."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return Path(name).stem if suffix_of(path) in SUFFIXES else path.name


def located(source: str | Path) -> tuple[Path, str | None]:
    """A path and the part of it that is meant: "data/forget@train" is the part train of data/forget."""
    text = str(source)
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~ of a user who isn't there
        path = Path(text)
    head, at, part = str(path).rpartition("@")
    if at and head and part and not os.path.exists(path) and os.path.exists(head):
        return Path(head), part
    return path, None


def rows_in(path: Path, part: str | None = None) -> Rows:
    """The rows of a file or folder, each with its place.

    Raises:
        DataError: it isn't there, can't be read, or is of no kind we know; a bad row is a `BadRow` in its place.
    """
    if os.path.isdir(path):
        return _folder(path, part)
    suffix = suffix_of(path)
    if suffix not in SUFFIXES and suffix not in CODE:
        raise DataError(f"{path}: {unknown('file type', suffix or path.name, SUFFIXES)}")
    if not os.path.isfile(path):
        there = _neighbours(path)
        raise DataError(f"there is no file {path}.{f' Beside it: {there}.' if there else ' Check the path.'}")
    if suffix == ".json":
        return _json(path, part)
    if part is not None:
        raise DataError(f"{path} has no parts, so {part!r} means nothing. Leave out @{part}.")
    readers: dict[str, Callable[[Path], Rows]] = {
        ".jsonl": lambda path: _jsonl(path, _decoded(path)),
        ".csv": lambda path: _csv(path, ","),
        ".tsv": lambda path: _csv(path, "\t"),
        ".parquet": _parquet,
    }
    return readers.get(suffix, _document)(path)


def numbered(rows: Iterable[Any], place: str) -> Rows:
    """Rows with their number as their place."""
    for number, row in enumerate(rows, start=1):
        yield f"{place}:{number}", row


def _neighbours(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if suffix_of(entry) in SUFFIXES)
    except (OSError, ValueError):
        return ""
    return ", ".join(names[:5])


def _folder(path: Path, part: str | None) -> Rows:
    """A folder of `datasets.save_to_disk`, or one of texts alone."""
    try:
        entries = sorted(one for one in path.iterdir() if not one.name.startswith(".") and one.name != COMPILED)
    except OSError as error:
        raise DataError(f"can't read {path} ({error.strerror}). Check its permissions.") from error
    names = {entry.name for entry in entries}
    if {"dataset_dict.json", "state.json"} & names:
        return _saved(path, part)
    tables = [name for name in sorted(names) if suffix_of(Path(name)) in TABLES]
    texts = [entry for entry in entries if suffix_of(entry) in DOCUMENTS and not entry.is_dir()]
    if tables or not texts:
        give = f"one of its files ({', '.join(tables[:5])})" if tables else f"a file ({', '.join(SUFFIXES)})"
        raise DataError(f"{path} is a folder, and none of texts or of a saved data set. Give {give}.")
    if other := sorted(names - {entry.name for entry in texts}):
        raise DataError(
            f"{path} holds {len(texts)} texts and {len(other)} other entries (first: {other[0]}), which would be left "
            f"out. Give a folder with nothing but {' and '.join(TEXTS)} files or source code."
        )
    if part is not None:
        raise DataError(f"{path} is a folder of texts and has no part {part!r}. Leave out @{part}.")
    return (pair for entry in texts for pair in _document(entry))


def _saved(path: Path, part: str | None) -> Rows:
    import datasets

    place = f"{path.name}@{part}" if part else path.name
    try:
        data = datasets.load_from_disk(str(path))
        if isinstance(data, datasets.DatasetDict):
            data = data[_chosen(path.name, list(data), part)]
        elif part is not None:
            raise DataError(f"{path} is one data set without splits. Leave out @{part}.")
        data.data.validate(full=True)  # offsets beyond the data end the process
        if data.data.nbytes > most_bytes():
            raise too_large(path, data.data.nbytes)
        # Read within the block: what is broken in a file may show only when it is decoded.
        with hub.closed():
            rows = list(stored_rows(data))
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"can't read the saved data set {path} ({_reason(error)}). Save it anew.") from error
    return numbered(rows, place)


def _chosen(place: str, names: list[str], part: str | None) -> str:
    """The part that is meant: the one there is, or the one named."""
    if part is None and len(names) == 1:
        return names[0]
    if part is None:
        raise DataError(f"{place} holds {len(names)} sets of rows ({', '.join(names)}). Name one: {place}@{names[0]}.")
    if part not in names:
        raise DataError(f"{place}: {unknown('part', part, names)}")
    return part


def _parquet(path: Path) -> Rows:
    try:
        rows = checked_parquet(path)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises its own, OSError, ValueError, OverflowError and others on broken files
        raise DataError(f"{path} is not a Parquet file that can be read ({_reason(error)}).") from error
    return numbered(rows, path.name)


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]


def _bytes(path: Path) -> bytes:
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path) as file:
                return checked_gzip(path, file)
        return path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no whole gzip file ({_reason(error)}). Fetch or pack it anew.") from error
    except OSError as error:
        raise DataError(f"can't read {path} ({error.strerror or _reason(error)}). Check its permissions.") from error


def _decoded(path: Path) -> str:
    """The file as text, line breaks as \\n."""
    data = _bytes(path)
    if (zero := data.find(b"\0")) >= 0:
        line = data[:zero].count(b"\n") + 1
        raise DataError(f"{path.name}:{line}: a zero byte, so not UTF-8 text (UTF-16?). Save the file as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}:{line}: not UTF-8 text. Save the file as UTF-8.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _document(path: Path) -> Rows:
    """A whole file as one document."""
    text = _decoded(path)
    yield path.name, {"text": text} if text.strip() else BadRow("is empty")


class _Reader:
    """Parses JSON strictly: a name given twice and a number too long to parse leave a `Flaw` in their place."""

    def __init__(self) -> None:
        self.flaws = 0
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._number)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for name in names if names.count(name) > 1)
            row[double] = self._flaw(f"names {double!r} twice")
        return row

    def _number(self, digits: str) -> Any:
        return int(digits) if len(digits) <= MOST_DIGITS else self._flaw(f"holds a number of {len(digits)} digits")

    def _flaw(self, reason: str) -> Flaw:
        self.flaws += 1
        return Flaw(reason)

    def row(self, value: Any) -> Any:
        """The value, or a `BadRow` where there is a flaw in it."""
        stack = [value] if self.flaws else []
        while stack:
            item = stack.pop()
            if isinstance(item, Flaw):
                return BadRow(item.reason)
            stack.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        return value


def _jsonl(path: Path, text: str) -> Rows:
    # Not splitlines(): a JSON string may hold U+2028 and its kin as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path.name}:{number}", _parsed(line.strip())


def _parsed(line: str) -> Any:
    reader = _Reader()
    try:
        return reader.row(reader.decoder.decode(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return BadRow(f"invalid JSON ({getattr(error, 'msg', 'nested too deeply')})")


def _json(path: Path, part: str | None) -> Rows:
    """A list of rows, or an object of such lists ({"data": [...]}, {"train": [...], "val": [...]}), or JSON Lines."""
    text = _decoded(path)
    reader = _Reader()
    try:
        value = reader.decoder.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and part is None and isinstance(_parsed(text.lstrip().split("\n", 1)[0]), dict):
            return _jsonl(path, text)  # one row a line, as the files of TOFU are
        raise DataError(f"{path.name}:{error.lineno}: invalid JSON ({error.msg}).") from None
    except RecursionError:
        raise DataError(f"{path.name}{_deep_row(text)}: invalid JSON (nested too deeply). Mend the row.") from None
    rows, place = _rows_within(value, path.name, part)
    return ((f"{place} row {number}", reader.row(row)) for number, row in enumerate(rows, start=1))


def _deep_row(text: str) -> str:
    """Which row of a list nests too deeply, as " row 3"; "" where that can't be said."""
    position = text.find("[") + 1
    if not position or text[: position - 1].strip():
        return ""
    for number in range(1, text.count(",") + 2):
        try:
            position += len(text[position:]) - len(text[position:].lstrip(" \n\t,"))
            _, position = json.JSONDecoder().raw_decode(text, position)
        except RecursionError:
            return f" row {number}"
        except ValueError:
            return ""
    return ""


def _rows_within(value: Any, name: str, part: str | None) -> tuple[list[Any], str]:
    """The list of rows in a JSON value, and what to call the place."""
    sets = _sets_in(value)
    if sets:
        chosen = _chosen(name, list(sets), part)
        return sets[chosen], f"{name}@{chosen}" if len(sets) > 1 else name
    if part is not None:
        raise DataError(f"{name} holds one set of rows, so {part!r} means nothing. Leave out @{part}.")
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise DataError(f"{name}: needs a list of rows, not one {type(value).__name__}.")
    return value, name


def _sets_in(value: Any) -> Mapping[str, list[Any]]:
    """The lists of rows in an object, or in the one object of a list, by name; none where the object is a row."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or {*QUESTIONS, *ANSWERS, *CHATS, "text"} & {name.casefold() for name in value}:
        return {}
    return {
        name: part
        for name, part in value.items()
        if isinstance(part, list) and part and all(isinstance(row, dict) for row in part)
    }


def _csv(path: Path, delimiter: str) -> Rows:
    """Rows by the line on which they start; a cell may hold line breaks."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(islice(reader, 1), None)
    except csv.Error as error:
        raise DataError(f"{path.name}:1: invalid CSV ({error}). Its first line must name the columns.") from None
    if header is None:
        raise DataError(f"{path} is empty. Its first line must name the columns.")
    columns = [column.strip() for column in header]
    check_columns(path, columns)
    return _csv_rows(path, reader, columns)


def _csv_rows(path: Path, reader: Any, columns: list[str]) -> Rows:
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
