"""The decoding benchmark as tables: every cell, what was promised, and where the time goes.

What drafting can't change is the prompt's forward: with a text of n tokens written for nothing, a call would still take the
prefill, so ratio <= peer's seconds / prefill's seconds. And at t tokens a forward of m rows, a token costs at least
cost(m) / t: what is above that is the strategy's and the engine's own work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..beds.prompts import KINDS

Row = Mapping[str, Any]
FLOOR = 0.97  # the upper end of every strategy's interval must reach it
RIVALS = ("transformers, prompt lookup", "transformers, assisted", "CTranslate2, float32")
PEERS = ("transformers", *RIVALS, "CTranslate2, int8", "llama.cpp", "Llama.generate")
# (runtime, kind): best strategy's ratio aimed at, greedy
TARGETS = {
    ("transformers", "edit"): 6.0,
    ("transformers", "summarise"): 6.0,
    ("transformers", "code"): 5.0,
    ("transformers", "chat"): 5.0,
    ("llama.cpp q8_0", "edit"): 1.8,
}


def cells(rows: Iterable[Row], runtime: str, temperature: float) -> list[str]:
    """Markdown: ratios with their intervals, a line a strategy."""
    own = [row for row in rows if (row["runtime"], row["temperature"]) == (runtime, temperature)]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in own)]
    lines = ["| strategy | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    by_name: dict[str, dict[str, Row]] = {}
    for row in own:
        by_name.setdefault(row["strategy"], {})[row["kind"]] = row
    for name, by_kind in by_name.items():
        texts = [
            f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})"
            for r in (by_kind[kind] for kind in kinds)
        ]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    copied = [next(row["copy_rate"] for row in own if row["kind"] == kind) for kind in kinds]
    lines.append("| *tokens that end an earlier 4-gram* | " + " | ".join(f"{rate:.0%}" for rate in copied) + " |")
    return lines


def fastest(rows: Sequence[Row], runtime: str) -> list[str]:
    """Markdown: a line a kind of greedy text, with what else runs the model, plain decoding, and the strategy that is fastest."""
    greedy = [row for row in rows if (row["runtime"], row["temperature"]) == (runtime, 0)]
    ratios = {(row["strategy"], row["kind"]): row["ratio"] for row in greedy}
    peers = [name for name in PEERS if name != runtime and any(name == strategy for strategy, _ in ratios)]
    lines = ["| kind of text | " + " | ".join([*peers, "plain"]) + " | fastest |", "|---" * (len(peers) + 3) + "|"]
    for kind in KINDS:
        best = _best(greedy, runtime, kind)
        if best is not None:
            figures = [f"{ratios[name, kind]:.2f}" if (name, kind) in ratios else "" for name in (*peers, "plain")]
            lines.append(f"| {kind} | " + " | ".join(figures) + f" | **{best['ratio']:.2f}** {best['strategy']} |")
    return lines


def checks(rows: Sequence[Row]) -> dict[str, bool]:
    """What was promised, and whether it holds."""
    ours = [row for row in rows if row["strategy"] not in PEERS]
    slow = [row for row in ours if row["ratio_high"] < FLOOR]
    greedy = [row for row in rows if row["temperature"] == 0]
    promises = {f"no strategy below {FLOOR} of plain decoding in any of {len(ours)} cells": not slow}
    for kind in KINDS:
        rivals = {row["strategy"]: row["ratio"] for row in greedy if row["kind"] == kind and row["strategy"] in RIVALS}
        best = _best(greedy, "transformers", kind)
        if rivals and best:
            promises[f"{kind}: ahead of {'; '.join(rivals)}"] = best["ratio"] > max(rivals.values())
    for (runtime, kind), target in TARGETS.items():
        best = _best(greedy, runtime, kind)
        if best:
            promises[f"{runtime}, {kind}: {target:g}x"] = best["ratio"] >= target
    return promises


def slow_cells(rows: Iterable[Row]) -> list[str]:
    """Cells whose whole interval lies below the floor, spelled out."""
    return [
        f"{row['strategy']} on {row['runtime']}, {row['kind']}, temperature {row['temperature']:g}: {row['ratio']:.2f}"
        for row in rows
        if row["strategy"] not in PEERS and row["ratio_high"] < FLOOR
    ]


def bounds(rows: Sequence[Row], costs: Mapping[str, Mapping[Any, float]]) -> list[str]:
    """Markdown: for the best greedy strategy of every kind, what its time went on and what bounds it."""
    lines = [
        "| runtime | kind | best | ratio | after the prompt | tokens/forward | rows/forward | prefill | forwards | own work | "
        "if writing were free |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    greedy = [row for row in rows if row["temperature"] == 0]
    for runtime in dict.fromkeys(row["runtime"] for row in greedy):
        for kind in KINDS:
            best = _best(greedy, runtime, kind)
            if best is None:
                continue
            seconds = best["seconds"]
            total = sum(seconds.values())
            own = total - seconds["prefill"] - seconds["forward"]
            lines.append(
                f"| {runtime} | {kind} | {best['strategy']} | {best['ratio']:.2f} | {best['writing_ratio']:.2f} | "
                f"{best['tokens_per_forward']:.2f} | {best['rows_per_forward']:.1f} | {seconds['prefill'] / total:.0%} | "
                f"{seconds['forward'] / total:.0%} | {own / total:.0%} | {best['ratio'] * total / seconds['prefill']:.1f}x |"
            )
    lines += ["", "Seconds of a forward of n rows over one of a single row, measured at the end of the run:", ""]
    sizes = [str(size) for size in (1, 2, 4, 8, 16, 32, 48)]
    lines += ["| rows | " + " | ".join(sizes) + " | one row, ms |", "|---|" + "---|" * (len(sizes) + 1)]
    for runtime, curve in costs.items():
        known = {str(size): value for size, value in curve.items()}
        ratios = [f"{known[size] / known['1']:.2f}" if size in known else "-" for size in sizes]
        lines.append(f"| {runtime} | " + " | ".join(ratios) + f" | {1000 * known['1']:.0f} |")
    return lines


def _best(rows: Iterable[Row], runtime: str, kind: str) -> Row | None:
    candidates = [
        row for row in rows if (row["runtime"], row["kind"]) == (runtime, kind) and row["strategy"] not in PEERS
    ]
    return max(candidates, key=lambda row: row["ratio"], default=None)
