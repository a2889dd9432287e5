"""Rows on disk, one a line behind a line that says what made them; a killed writer loses at most the line it was at."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import RunError, notice, setting
from ..runs import Malformed, conforms, hash_file, hash_json, parse_json, versions
from ..runs.provenance import commit, machine

__all__ = ["SweepFile", "begun_with", "opened"]

MARK = b'{"sweep": '  # how the first line begins


def begun_with() -> dict[str, Any]:
    """The first line: hash of unwrite's code and all versions, which all rows must share; commit and machine, for the reader."""
    home = Path(str(files("unwrite")))
    code = {str(path.relative_to(home)): hash_file(path) for path in sorted(home.rglob("*.py"))}
    return {
        "sweep": 1,
        "code": hash_json(code),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
    }


@dataclass
class SweepFile:
    """Rows by key, and the file they are kept in."""

    file: BinaryIO
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def append(self, row: Mapping[str, Any]) -> None:
        """Keeps a row, on the disk when this returns."""
        self._write(row)
        self.rows[row["key"]] = dict(row)

    def _write(self, line: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(dict(line), ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def opened(path: Path, header: Mapping[str, Any]) -> Iterator[SweepFile]:
    """The file, made if it isn't there, for this process alone.

    Raises:
        RunError: it isn't a sweep's, is damaged, was begun with other code or versions, or another sweep writes to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another sweep is writing to {path}. Wait for it, or choose another {setting('out')}."
            ) from None
        except OSError as error:
            notice(
                f"{path} lies on a file system without locks ({error.strerror}), so a second sweep that writes to it at the "
                "same time can't be told. Start none."
            )
        file.seek(0)
        whole = _whole(file.read(), path)
        file.truncate(len(whole))
        sweep = SweepFile(file)
        if not whole:
            sweep._write(header)
        else:
            first, *rows = _lines(whole, path)
            _same(first, header, path)
            sweep.rows = {row["key"]: row for row in rows}
        yield sweep


def _whole(content: bytes, path: Path) -> bytes:
    """Without a last line that was cut off."""
    if not (content.startswith(MARK) or MARK.startswith(content)):
        raise RunError(f"{path} holds no sweep. Choose another {setting('out')}.")
    return content[: content.rfind(b"\n") + 1]


def _lines(content: bytes, path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(content.rstrip(b"\n").split(b"\n"), 1):
        try:
            row = parse_json(line)
            first = number == 1
            if not isinstance(row, dict) or not (
                conforms(row.get("versions"), Mapping[str, str]) if first else conforms(row.get("key"), str)
            ):
                raise Malformed("it is no row of a sweep")
            if not first and row["key"] in {one.get("key") for one in lines}:
                raise Malformed("its key stands in an earlier line too")
        except Malformed as error:
            raise RunError(
                f"{path} is damaged in line {number}: {error}. Remove that line, or choose another {setting('out')}."
            ) from None
        lines.append(row)
    return lines


def _same(first: Mapping[str, Any], header: Mapping[str, Any], path: Path) -> None:
    old, new = first.get("versions", {}), header["versions"]
    other = [
        f"{name} {old.get(name, 'absent')} (now {new.get(name, 'absent')})"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if first.get("code") != header["code"] or first["sweep"] != header["sweep"]:
        other.insert(0, f"other code of unwrite (commit {first.get('commit')}, now {header['commit']})")
    if other:
        raise RunError(
            f"{path} was begun with {', '.join(other)}, and figures of two don't belong in one table. "
            f"Choose another {setting('out')}, or delete it."
        )
