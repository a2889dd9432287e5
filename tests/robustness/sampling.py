"""A sample is a folder as {name: bytes}: how whole ones are made, and one way in with its samples.

What reads a line of the command line gets it as a file too (`.flags`), so that one harness damages and repeats all of them alike.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:  # run as a module, not by pytest
    sys.path.insert(0, str(TESTS))

Sample = Mapping[str, bytes]


@dataclass(frozen=True)
class Reader:
    """One way in.

    Args:
        read: gets the folder with the sample's files.
        samples: makes the whole ones, once in a process.
        cost: of one reading, in milliseconds; a costly reader gets fewer mutations.
        damages: the files that are changed, all by default.
        bounded: whether its allocations can be held to a bound; a library that reserves terabytes and uses little can't.
        mend: puts right, after the damage, a sum that would hide it from all later checks.
    """

    read: Callable[[Path], Any]
    samples: Callable[[], list[Sample]]
    cost: float = 1.0
    damages: tuple[str, ...] = ()
    mend: Callable[[Path], None] | None = None
    bounded: bool = True


def written(write: Callable[[Path], Any]) -> Sample:
    """The files that `write` makes in an empty folder."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        paths = [path for path in Path(place).rglob("*") if path.is_file()]
        return {str(path.relative_to(place)): path.read_bytes() for path in paths}


def as_json(name: str, *values: Any) -> Callable[[], list[Sample]]:
    return lambda: [{name: json.dumps(value).encode()} for value in values]


def flags(*lines: str) -> Callable[[], list[Sample]]:
    return lambda: [{"line.flags": line.encode()} for line in lines]


def line_of(folder: Path) -> str:
    return (folder / "line.flags").read_bytes().decode("utf-8", "surrogateescape")
