"""What the pages show of stored sweeps: a table a bed, and every method's rank on every bed."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from .stored import unbroken

__all__ = ["sweep", "sweep_ranks"]


def _sweeps() -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The stored sweeps of methods that forget images: (where and with what, rows), each of one commit."""
    folder = files("unwrite").joinpath("bench", "results")
    names = sorted(one.name for one in folder.iterdir() if one.name.startswith("sweep") and one.name.endswith(".jsonl"))
    read = [list(map(json.loads, folder.joinpath(name).read_text(encoding="utf-8").splitlines())) for name in names]
    return [(header, rows) for header, *rows in read]


def sweep() -> str:
    """The stored sweeps of methods that forget images."""
    from ...bench.sweep_table import markdown

    lines: list[str] = []
    for header, rows in _sweeps():
        peers = sorted({row["peer"] for row in rows if "peer" in row})
        beside = f", beside {', '.join(peers)}" if peers else ""
        foot = f"{header['machine']['cpu']}, one thread a trial, commit {header['commit'][:7]}{beside}."
        lines += [*map(unbroken, markdown(rows, seconds=bool(peers))), "", foot, ""]
    return "\n".join(lines[:-1]) if lines else "not measured yet"


def sweep_ranks() -> str:
    """The rank of every method on every bed that a sweep was stored of, those first that stand well on most."""
    from statistics import median

    from ...bench.sweep_table import summary

    alone = [
        rows for _, rows in _sweeps() if not any("peer" in row for row in rows)
    ]  # beside a peer, ours have its settings
    entries = [one for rows in alone for one in summary(rows)]
    ranks: dict[str, dict[str, int]] = {}
    for one in entries:
        if one["kind"] == "method" and one["rank"] is not None:
            ranks.setdefault(one["contender"], {})[one["bed"]] = one["rank"]
    if not ranks:
        return "not measured yet"
    beds = list(dict.fromkeys(one["bed"] for one in entries))
    ordered = sorted(ranks, key=lambda name: (median(ranks[name].values()), name))
    lines = ["| method | " + " | ".join(beds) + " |", "|---" * (len(beds) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(str(ranks[name].get(bed, "–")) for bed in beds) + " |" for name in ordered]
    return "\n".join(map(unbroken, lines))
