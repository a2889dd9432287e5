"""The stored comparisons of methods that forget texts, as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .stored import comparisons

__all__ = ["forget"]


def forget() -> str:
    """The stored comparisons of methods that forget texts, and the settings that were tried."""
    parts = [_compared(name, stored) for name, stored in comparisons().items()]
    return "\n\n".join(parts) or "not measured yet"


def _hours(stored: Mapping[str, Any]) -> str:
    """How long a comparison took; of one that was stopped and went on, its unlearning alone."""
    unlearning = sum((one.get("seconds") or {}).get("mean", 0.0) for one in stored["entries"]) * len(stored["seeds"])
    seconds = stored["seconds"] + sum(one["seconds"] for one in stored.get("extensions", ()))
    if seconds >= unlearning:
        return f"{seconds / 3600:.1f} hours in all"
    return f"{unlearning / 3600:.1f} hours of unlearning in a run that was stopped and went on"


def _extensions(stored: Mapping[str, Any]) -> str:
    """What was added later, with its commit and its minutes; empty where nothing was."""
    return "".join(
        f"; {', '.join(f'`{slug}`' for slug in one['methods'])} added at commit {one['commit'][:7]} in {one['seconds'] / 60:.0f} "
        "minutes, with references that came out the same"
        for one in stored.get("extensions", ())
    )


def _compared(name: str, stored: Mapping[str, Any]) -> str:
    from ...bench.forget_report import probe_table, refusals, settings_table, table

    machine, commit = stored["machine"]["cpu"], stored["commit"]
    seeds = ", ".join(map(str, stored["seeds"]))
    left_out = "; ".join(f"`{slug}` ({reason})" for slug, reason in stored["left_out"].items())
    lines = [
        f"### {stored['bed']}",
        "",
        f"![Forget quality against utility of every text method]({name}.svg)",
        "",
        *table(stored),
        "",
        f"Setting: {stored['rule']}. Seeds {seeds}, {machine}, {_hours(stored)}, commit "
        f"{commit[:7]}{_extensions(stored)}. Left out: {left_out or 'none'}.",
    ]
    if refused := refusals(stored):
        lines += ["", f"Refused: {'; '.join(refused)}"]
    if probed := probe_table(stored):
        about = "What comes back, by probe (0: like a model that never learnt it, 1: like one that never forgot):"
        lines += ["", about, "", *probed]
    if stored["tuning"]:
        lines += [
            "",
            "What every setting came to on the tuning authors, those chosen in bold:",
            "",
            *settings_table(stored),
        ]
    return "\n".join(lines)
