"""The stored decoding benchmark, as pages show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .stored import stored_result, unbroken

__all__ = ["decode", "decode_sampled", "decode_short"]


def decode() -> str:
    """The stored decoding benchmark, greedy: cells, checks and bounds."""
    stored = _stored()
    if not stored:
        return "not measured yet"
    from ...bench import decode_report as report

    rows, lines = [row for one in stored for row in one["rows"]], []
    costs = {runtime: curve for one in stored for runtime, curve in one["costs"].items()}
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        lines += [f"**{runtime}**, greedy", "", *map(unbroken, report.cells(rows, runtime, 0.0)), ""]
    lines += ["| promised | holds |", "|---|---|"]
    lines += [f"| {what} | {'yes' if holds else '**no**'} |" for what, holds in report.checks(rows).items()]
    if slow := report.slow_cells(rows):
        lines += ["", "Below the floor: " + "; ".join(slow) + "."]
    lines += [
        "",
        "What limits the fastest strategy for each kind of text:",
        "",
        *report.bounds(rows, costs),
        "",
        "\n\n".join(map(_foot, stored)),
    ]
    return "\n".join(lines)


def _stored() -> list[Mapping[str, Any]]:
    """What `bench decode` found: on transformers, or all of it, then what was measured on llama.cpp alone."""
    return [one for name in ("decode", "decode-llamacpp") if (one := stored_result(name)) is not None]


def _foot(stored: Mapping[str, Any]) -> str:
    machine = stored["machine"]
    processor = f"{machine['cpu']} ({machine['vectors']})" if "vectors" in machine else machine["cpu"]
    commit = stored["commit"] or "unknown"
    runtimes = " and ".join(dict.fromkeys(row["runtime"].split()[0] for row in stored["rows"]))
    return (
        f"{runtimes}: {stored['tokens']} tokens a text where nothing else is said, {stored['threads']} threads, {processor}, "
        f"a run of {stored['seconds'] / 60:.0f} minutes, commit {commit[:7]}."
    )


def decode_sampled() -> str:
    """The stored decoding benchmark at temperatures above 0."""
    stored = _stored()
    if not stored:
        return "not measured yet"
    from ...bench import decode_report as report

    lines = []
    for one in stored:
        rows = one["rows"]
        tokens = {
            (r["runtime"], r["temperature"]): r.get("tokens", one["tokens"]) for r in rows if r["temperature"] > 0
        }
        for (runtime, heat), count in tokens.items():
            lines += [f"**{runtime}**, temperature {heat:g}, {count} tokens a text", ""]
            lines += [*map(unbroken, report.cells(rows, runtime, heat)), ""]
    return "\n".join([*lines, "\n\n".join(map(_foot, stored))])


def decode_short() -> str:
    """The stored decoding benchmark on transformers in few figures."""
    stored = _stored()
    if not stored:
        return "not measured yet"
    from ...bench import decode_report as report

    return "\n".join([*map(unbroken, report.fastest(stored[0]["rows"], "transformers")), "", _foot(stored[0])])
