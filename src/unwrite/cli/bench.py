"""unwrite bench: speed, as ratios against a named peer in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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
        out: also write the figures there, as JSON.
        json: print JSON.
    """
    from ..bench.unlearn_step import run_bench
    from ..reproduce.claims import commit, machine
    from ..runs import versions, write_json

    quiet_libraries()
    rows = run_bench(model, batch, pairs)
    if out is not None:
        write_json(out, {"cases": rows, "versions": versions(), "machine": machine(), "commit": commit()})
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(
        "method", "rows", "ours, s", "peer, s", "ratio", "middle half", "reference once, s", header_style="bold"
    )
    for row in rows:
        low, high = row["middle_half"]
        memory = f"{row['ours_mib']:.0f} / {row['peer_mib']:.0f}"
        figures = (f"{row['ours_s']:.2f}", f"{row['peer_s']:.2f}", f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}")
        table.add_row(row["method"], row["rows"], *figures, memory, f"{row['reference_once_s']:.2f}")
    console().print(table)
