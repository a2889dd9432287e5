"""unwrite bench: speed, as ratios against a named peer in one run."""

from __future__ import annotations

import json as json_library
from pathlib import Path
from typing import Any, Literal

from .output import console, print_json, quiet_libraries


def bench(
    what: Literal["unlearn-step"],
    *,
    model: str = "smollm2-135m",
    batch: int = 4,
    pairs: int = 9,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Time one optimiser step against the same method as open-unlearning computes it.

    Args:
        what: the benchmark.
        model: what to time it on.
        batch: forget rows a step.
        pairs: paired repeats.
        out: also write the figures there, as JSON, after every case; a stopped run goes on from it.
        json: print JSON.
    """
    from ..bench.unlearn_step import run_bench
    from ..reproduce.claims import commit, machine
    from ..runs import versions, write_json

    quiet_libraries()
    setting = {"versions": versions(), "machine": machine(), "commit": commit()}

    def keep(found: list[dict[str, Any]]) -> None:
        console().print(f"[dim]{len(found)} of 4 cases[/]")
        if out is not None:
            write_json(out, {"cases": found, "complete": len(found) == 4, **setting})

    rows = run_bench(model, batch, pairs, _stopped(out, setting, batch, pairs), keep)
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(
        *("method", "rows", "ours, s", "peer, s", "ratio", "middle half"),
        *("peak MiB, ours / peer", "reference once, s"),
        header_style="bold",
    )
    for row in rows:
        low, high = row["middle_half"]
        figures = (f"{row['ours_s']:.2f}", f"{row['peer_s']:.2f}", f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}")
        memory = f"{row['ours_mib']:.0f} / {row['peer_mib']:.0f}"
        table.add_row(row["method"], row["rows"], *figures, memory, f"{row['reference_once_s']:.2f}")
    console().print(table)


def _stopped(out: Path | None, setting: dict[str, Any], batch: int, pairs: int) -> list[dict[str, Any]]:
    """The cases of a run of the same setting that was stopped."""
    if out is None or not out.exists():
        return []
    stored = json_library.loads(out.read_text(encoding="utf-8"))
    same = all(stored.get(name) == value for name, value in setting.items())
    alike = all((case["batch"], case["pairs"]) == (batch, pairs) for case in stored["cases"])
    return list(stored["cases"]) if same and alike and not stored.get("complete", True) else []
