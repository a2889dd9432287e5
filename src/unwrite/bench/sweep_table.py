"""The table of a sweep: a bed's contenders from near to the retrained model to far, as dicts, Markdown or for the terminal.

Which figure says how near is each kind of data's own (`sweep_kinds`). References and controls stand above and have no rank.
Clocks are shown only where asked for: without them two sweeps give the same table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from ..terminal import text
from .sweep_kinds import KINDS

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["markdown", "rank_agreement", "summary", "tables"]

Row = Mapping[str, Any]
HEADINGS = {  # in the table's order
    **{name: heading for kind in KINDS for name, heading in kind.headings.items() if name != "cost"},
    "cost": "cost, forwards a row",
    "seconds": "seconds",
}
ALSO_RANKED = {name: heading for kind in KINDS for name, heading in kind.also_ranked.items()}
DIFFER = 0.7  # Kendall's tau below which two rankings are said to differ
RANKED_BY = {name: direction for kind in KINDS for name, direction in kind.ranked_by.items()}
_NOT_FIGURES = ("bed", "contender", "kind", "rank", "ranks", "seeds", "errors")
ORDER = ("reference", "control", "method")


def summary(rows: Iterable[Row], seconds: bool = False) -> list[dict[str, Any]]:
    """An entry a bed and contender, in the table's order.

    Args:
        rows: of `sweep`, in any order.
        seconds: with those of the unlearning.

    Returns:
        [{"bed", "contender", "kind", "rank" from 1 or None, "seeds", metric: {"mean", "sd"} over seeds or None where one has no
        value, ..., "cost", "errors": {seed: what was refused}}]; who has an error isn't ranked. On a bed that is audited by
        answers and by features, also "ranks": {metric: rank from 1, equal figures alike, or None}.
    """
    beds: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        beds.setdefault(row["bed"], {}).setdefault(row["contender"], []).append(row)
    ordered = []
    for contenders in beds.values():
        everyone = [row for some in contenders.values() for row in some]
        metrics = _metrics(everyone)
        entries = [_entry(sorted(some, key=lambda row: row["seed"]), metrics, seconds) for some in contenders.values()]
        by = next((name for name in RANKED_BY if name in metrics), None)
        also = [name for name in ALSO_RANKED if name in metrics]
        for entry in entries if also else ():
            entry["ranks"] = {name: _rank(entry, name, entries) for name in also}
        ordered += _ordered(entries, by)
    return ordered


def _rank(entry: Mapping[str, Any], name: str, entries: Sequence[Mapping[str, Any]]) -> int | None:
    """By one figure, high is good, among the methods that have it."""
    if not _counts(entry, name):
        return None
    return 1 + sum(one[name]["mean"] > entry[name]["mean"] for one in entries if _counts(one, name))


def _counts(entry: Mapping[str, Any], name: str) -> bool:
    return entry["kind"] == "method" and not entry["errors"] and entry[name] is not None


def rank_agreement(entries: Sequence[Mapping[str, Any]]) -> tuple[float, int] | None:
    """Kendall's tau-b of the two other rankings of one bed's entries (see `summary`), and of how many methods.

    None where there are not two such rankings, fewer than two methods, or no difference between them.
    """
    from scipy.stats import kendalltau

    names = list(entries[0].get("ranks", {})) if entries else []
    if len(names) != 2:
        return None
    ranked = [[entry["ranks"][name] for name in names] for entry in entries if None not in entry["ranks"].values()]
    if len(ranked) < 2:
        return None
    tau = float(kendalltau(*zip(*ranked, strict=True)).statistic)
    return None if tau != tau else (tau, len(ranked))


def _metrics(rows: Sequence[Row]) -> list[str]:
    there = {name for row in rows for name, value in row.get("values", {}).items() if value is not None}
    return [*(name for name in HEADINGS if name in there), *sorted(there - set(HEADINGS))]


def _entry(rows: Sequence[Row], metrics: Sequence[str], seconds: bool) -> dict[str, Any]:
    good = [row for row in rows if "error" not in row]
    figures = {name: [row["values"].get(name) for row in good] for name in metrics}
    figures["cost"] = [row["cost"] for row in good]
    if seconds:
        figures["seconds"] = [row["seconds"] for row in good]
    return {
        **{name: rows[0][name] for name in ("bed", "contender", "kind")},
        "rank": None,
        "seeds": [row["seed"] for row in good],
        **{name: _spread(values) for name, values in figures.items()},
        "errors": {row["seed"]: row["error"] for row in rows if "error" in row},
    }


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    return {"mean": fmean(known), "sd": pstdev(known)} if known and len(known) == len(values) else None


def _ordered(entries: Sequence[dict[str, Any]], by: str | None) -> list[dict[str, Any]]:
    """References, controls, methods from near to far, and last those without a rank."""

    def place(entry: Mapping[str, Any]) -> tuple[Any, ...]:
        if entry["kind"] != "method":
            return ORDER.index(entry["kind"]), 0.0, entry["contender"]
        if by is None or entry[by] is None or entry["errors"]:
            return 3, 0.0, entry["contender"]
        far = entry[by]["mean"]
        return 2, -far if RANKED_BY[by] == "higher" else far, entry["contender"]

    ordered = sorted(entries, key=place)
    ranked = [entry for entry in ordered if place(entry)[0] == 2]
    for rank, entry in enumerate(ranked, 1):
        entry["rank"] = rank
    return ordered


@dataclass(frozen=True)
class _Block:
    """One bed's table as text."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def _blocks(rows: Iterable[Row], seconds: bool) -> list[_Block]:
    beds: dict[str, list[dict[str, Any]]] = {}
    for entry in summary(rows, seconds):
        beds.setdefault(entry["bed"], []).append(entry)
    return [_block(bed, entries) for bed, entries in beds.items()]


def _block(bed: str, entries: Sequence[Mapping[str, Any]]) -> _Block:
    names = [name for name in entries[0] if name not in _NOT_FIGURES]
    seeds = sorted({seed for entry in entries for seed in (*entry["seeds"], *entry["errors"])})
    several = len(seeds) > 1
    also = entries[0].get("ranks", {})
    return _Block(
        title=f"{bed}, {'seeds' if several else 'seed'} {', '.join(map(str, seeds))}",
        columns=("rank", "model", *(ALSO_RANKED[name] for name in also), *(HEADINGS.get(name, name) for name in names)),
        lines=tuple(
            (
                _place(entry),
                entry["contender"],
                *(str(entry["ranks"][name] or "–") for name in also),
                *(_text(entry[name], several) for name in names),
            )
            for entry in entries
            if entry["seeds"]
        ),
        notes=(*_agreement(entries), *(note for entry in entries for note in _notes(entry))),
    )


def _agreement(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether answers and features rank the methods alike."""
    found = rank_agreement(entries)
    if found is None:
        return []
    tau, methods = found
    says = "they rank differently" if tau < DIFFER else "they rank alike"
    return [
        f"answers against features over {methods} methods: Kendall's tau {tau:.2f}, so {says} (below {DIFFER}: differently)"
    ]


def _place(entry: Mapping[str, Any]) -> str:
    if entry["kind"] != "method":
        return str(entry["kind"])
    return "–" if entry["rank"] is None else str(entry["rank"])


def _text(figures: Mapping[str, float] | None, several: bool) -> str:
    if figures is None:
        return "–"
    mean, sd = (round(figures[name], 9) for name in ("mean", "sd"))  # 1 - 1e-16 and 1 differ in nothing
    return f"{mean:.3g} +- {sd:.2g}" if several else f"{mean:.3g}"


def _notes(entry: Mapping[str, Any]) -> list[str]:
    """What was refused, each sentence once."""
    by_error: dict[str, list[str]] = {}
    for seed, error in entry["errors"].items():
        by_error.setdefault(error, []).append(str(seed))
    return [f"{entry['contender']}, seed {', '.join(seeds)}: {error}" for error, seeds in by_error.items()]


def markdown(rows: Iterable[Row], seconds: bool = False) -> list[str]:
    """Lines of Markdown: a table a bed, with what was refused below it."""
    lines: list[str] = []
    for block in _blocks(rows, seconds):
        lines += [f"**{block.title}**", "", _line(block.columns), "|---" * len(block.columns) + "|"]
        lines += [*map(_line, block.lines), ""]
        lines += [line for note in block.notes for line in (_one_line(note), "")]
    return lines[:-1]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_one_line, cells)) + " |"


def _one_line(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def tables(rows: Iterable[Row], seconds: bool = False) -> list[Table]:
    """The same for the terminal, each bed a rich table, its last lines what was refused."""
    from rich.table import Table

    bed_tables = []
    for block in _blocks(rows, seconds):
        caption = text("\n").join(map(text, block.notes)) if block.notes else None
        how: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "box": None, "header_style": "bold"}
        place, model, *figures = block.columns
        table = Table(title=text(block.title, "table.title"), caption=caption, **how)
        table.add_column(text(place))
        table.add_column(text(model), overflow="fold")
        for name in figures:
            table.add_column(text(name))
        for line in block.lines:
            table.add_row(*map(text, line))
        bed_tables.append(table)
    return bed_tables
