"""What a step costs, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["NATIVE", "checks", "groups", "head", "part_cells", "step_cells"]

NATIVE = "CTranslate2, float32"
Row = Mapping[str, Any]


def groups(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(threads, tokens of the prompt), in the order of the rows."""
    return list(dict.fromkeys((row["threads"], row["prompt"]) for row in rows))


def head(rows: Sequence[Row]) -> list[str]:
    """Heads of a table of `step_cells`."""
    return ["milliseconds of a step", "floors", *(_rows(size) for size in _sizes(rows))]


def step_cells(rows: Sequence[Row], threads: int, prompt: int) -> list[list[str]]:
    """A contender a row: the floors of the fewest and the most rows, then milliseconds by rows, and how many times as fast as transformers'."""
    table: dict[str, dict[int, Row]] = {}
    for row in rows:
        if (row["threads"], row["prompt"]) == (threads, prompt):
            table.setdefault(row["contender"], {})[row["rows"]] = row
    cells = []
    for name, known in table.items():
        floor = " to ".join(dict.fromkeys(f"{1000 * known[size]['floor']:.1f}" for size in (min(known), max(known))))
        cells.append([name, floor, *(_cell(known.get(size)) for size in _sizes(rows))])
    return cells


def part_cells(rows: Sequence[Row], threads: int, prompt: int, size: int) -> list[list[str]]:
    """A part a row: milliseconds of a step of so many rows, by contender; heads are in the first row."""
    told = {
        row["contender"]: row["parts"]
        for row in rows
        if row["parts"] and (row["threads"], row["prompt"], row["rows"]) == (threads, prompt, size)
    }
    parts = list(dict.fromkeys(part for each in told.values() for part in each))
    body = [[part, *(f"{1000 * each.get(part, 0):.1f}" for each in told.values())] for part in parts]
    return [[f"{_rows(size)}, milliseconds", *told], *body]


def checks(rows: Sequence[Row], threads: int | None = None) -> Iterator[tuple[str, float, float, float | None]]:
    """(what is promised, the figure, its bound, the same figure of the floors where the machine bounds it), at the most threads and the
    shortest prompt; a figure should not be above its bound."""
    threads = threads or max(row["threads"] for row in rows)
    prompt = min(row["prompt"] for row in rows)
    there = [row for row in rows if (row["threads"], row["prompt"]) == (threads, prompt)]
    seconds = {(row["contender"], row["rows"]): row["seconds"] for row in there}
    floors = {
        (row["contender"], row["rows"]): row["floor"] for row in there if "rate" in row
    }  # where arithmetic was measured
    exact, bf16, whole = "compiled, fewest exact bytes", "compiled, exact bfloat16", "compiled, float32"
    native = seconds.get((NATIVE, 1))
    if native:
        for name, bound in ((whole, 0.9), (bf16, 0.7)):
            if (name, 1) in seconds:
                yield f"{name}, one row, of CTranslate2's float32", seconds[name, 1] / native, bound, None
    if {(exact, 1), (bf16, 1)} <= {*seconds}:
        yield f"{exact}, one row, of exact bfloat16", seconds[exact, 1] / seconds[bf16, 1], 1.0, None
    for name in (whole, bf16, exact):
        if {(name, 1), (name, 8)} <= {*seconds}:
            eight, one = (name, 8), (name, 1)
            allowed = floors[eight] / floors[one] if floors else None
            yield f"{name}, eight rows, of one", seconds[eight] / seconds[one], 1.4, allowed


def _sizes(rows: Sequence[Row]) -> list[int]:
    return sorted({row["rows"] for row in rows})


def _rows(size: int) -> str:
    return "1 row" if size == 1 else f"{size} rows"


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{1000 * row['seconds']:.1f} ({row['ratio']:.2f}x)"
