"""The report of an audit: a terminal table, JSON, and one self-contained HTML page.

Three sentences come first, for a reader who runs no models: what was removed, what was kept, how sure we are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from ...errors import RunError
from ...runs import clean, conforms, read_json, write_json, write_text
from ...terminal import text, visible
from ..base import Score
from .parts import AttackResult, Picture, Remark, RequirementOutcome, Sample, Strip, Summary, Tile, Verdict
from .wording import GOOD, short, words

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 2
NOT_HASHED = "not hashed"  # a model's hash, where nothing tells what it does


@dataclass(frozen=True)
class Report:
    """What one audit found.

    Args:
        columns: per model ("before", "after", "oracle", or the steps of a driver) every metric's score.
        metrics: per metric its name, better, about and panel, in report order.
        axes: what should go and what should stay, on the trade-off plot; None for no plot.
        scale: 1 where those are fractions, 100 where they are percentages.
        manner: how the models were asked.
        summary: the sentences on top, as the suite made them of these figures.
        pictures: what there is to see, of images.
        notices: what a reader should know of these figures: rows cut, rows twice, what was left out.
        outcomes: what became of the requirements, in the order in which they were asked for.
        verdict: what the figures say as a whole; None where the suite judges nothing.
    """

    suite: str
    split: str
    rows: Mapping[str, int]
    metrics: list[dict[str, Any]]
    columns: Mapping[str, Mapping[str, Score]]
    samples: list[Sample] = field(default_factory=list)
    attacks: list[AttackResult] = field(default_factory=list)
    axes: tuple[str, str] | None = None
    scale: float = 1.0
    manner: str = ""
    summary: Summary = field(default_factory=Summary)
    pictures: tuple[Picture, ...] = ()
    notices: tuple[str, ...] = ()
    outcomes: tuple[RequirementOutcome, ...] = ()
    verdict: Verdict | None = None
    provenance: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The column the report is about: "after", or a driver's last step."""
        return "after" if "after" in self.columns else list(self.columns)[-1]

    @property
    def met(self) -> bool:
        """Whether every requirement is met; so it is where there is none."""
        return all(outcome.met for outcome in self.outcomes)

    @property
    def roles(self) -> list[str]:
        """The names of the columns in reading order."""
        return list(self.columns)

    def value(self, metric: str, role: str | None = None) -> float | None:
        """One number; None where it wasn't or couldn't be measured."""
        score = self.columns.get(role or self.main, {}).get(metric)
        return None if score is None else score.value

    def table(self) -> Table:
        """Before, after and oracle side by side, for a terminal."""
        from rich.table import Table

        table = Table(title=text(f"Audit of {self.split} · suite {self.suite}", "table.title"), title_justify="left")
        table.add_column("metric")
        table.add_column("good", style="dim")
        for role in self.roles:
            table.add_column(text(role), justify="right", style="bold" if role == self.main else "")
        panel = None
        for metric in self.metrics:
            if panel is not None and metric["panel"] != panel:
                table.add_section()
            panel = metric["panel"]
            cells = [self._cell(metric["name"], role) for role in self.roles]
            table.add_row(text(words(metric["name"])), GOOD[metric["better"]], *cells)
        for attack in self.attacks:
            table.add_section()
            for name, cells in self._attacked(attack):
                table.add_row(text(name), "", *cells)
        return table

    def _attacked(self, attack: AttackResult) -> list[tuple[str, list[str]]]:
        """A row a series: its first and its last value of every model, "0.03 > 0.39"."""
        curves = {role: curve for role, curve in attack.curves.items() if curve}
        series = sorted({name for curve in curves.values() for name in curve[0] if name != attack.x}, reverse=True)

        def cell(role: str, name: str) -> str:
            points = [point[name] for point in curves.get(role, []) if name in point]
            return f"{points[0]:.2f} > {points[-1]:.2f}" if points else "–"

        return [(f"{attack.name}: {words(name)}", [cell(role, name) for role in self.roles]) for name in series]

    def _cell(self, name: str, role: str) -> str:
        score = self.columns[role].get(name)
        if score is None:
            return "–"
        interval = score.interval()
        spread = f" ±{(interval[1] - interval[0]) / 2:.2g}" if interval and interval[1] > interval[0] else ""
        return f"{short(score.value)}{spread}"

    def json(self) -> dict[str, Any]:
        """Returns everything as plain JSON values, without NaN."""
        return {"format": FORMAT, **asdict(self), "roles": self.roles}

    def csv(self) -> str:
        """One row a model, one column a metric, in report order; empty where there is no value."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        names = [metric["name"] for metric in self.metrics]
        writer.writerow(["name", *names])
        for role in self.roles:
            writer.writerow([role, *(self.value(name, role) for name in names)])
        return lines.getvalue()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """The report a `json()` came from.

        Raises:
            RunError: it is not a report of this version.
        """
        if value.get("format") != FORMAT:
            raise RunError(f"not an audit report of format {FORMAT} (format: {value.get('format')!r}). Audit again.")
        plain = {k: v for k, v in value.items() if k not in ("format", "roles")}
        try:
            columns = plain["columns"]  # JSON's keys are sorted; `roles` has their order
            plain["columns"] = {r: {n: Score(**s) for n, s in columns[r].items()} for r in value["roles"]}
            plain["samples"] = [_sample(sample) for sample in plain["samples"]]
            plain["attacks"] = [_attack(attack) for attack in plain["attacks"]]
            plain["summary"] = Summary(**plain["summary"])
            plain["pictures"] = tuple(_picture(picture) for picture in plain.get("pictures", ()))
            plain["notices"] = tuple(plain.get("notices", ()))
            plain["outcomes"] = tuple(RequirementOutcome(**outcome) for outcome in plain.get("outcomes", ()))
            verdict = plain.get("verdict")
            plain["verdict"] = None if verdict is None else Verdict(**verdict)
            plain["axes"] = None if plain["axes"] is None else tuple(plain["axes"])
            report = cls(**plain)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            why = " ".join(str(error).split())[:200]
            raise RunError(f"the audit report is damaged ({type(error).__name__}: {why}). Audit again.") from None
        report._check()
        return report

    def _check(self) -> None:
        """Refuses values of other types than the fields', which JSON can hold in their place."""
        hints = get_type_hints(type(self))
        odd = [part.name for part in fields(self) if not conforms(getattr(self, part.name), hints[part.name])]
        parts = {"name": str, "better": Literal[*GOOD], "about": str, "panel": str}
        if "metrics" not in odd and not all(
            conforms(metric.get(name), kind) for metric in self.metrics for name, kind in parts.items()
        ):
            odd.append("metrics")
        if "attacks" not in odd and any(
            attack.x not in point for attack in self.attacks for curve in attack.curves.values() for point in curve
        ):
            odd.append("attacks")
        if not self.columns:
            odd.append("columns")
        if odd:
            raise RunError(f"the audit report is damaged: its {odd[0]} are not what an audit writes. Audit again.")

    def save(self, folder: str | Path) -> Path:
        """Writes report.json and report.html into `folder`, without what a killed write left, and returns the page's path."""
        folder = Path(folder)
        for name in ("report.json", "report.html"):
            clean(folder / name)
        write_json(folder / "report.json", self.json())
        write_text(folder / "report.html", self.html())
        return folder / "report.html"

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Reads back what `save` wrote."""
        path = Path(folder) / "report.json"
        try:
            return cls.from_json(read_json(path, RunError, "Give the folder of a finished audit, or audit again."))
        except RunError as error:
            raise RunError(str(error) if str(path) in str(error) else f"{path}: {error}") from None

    def html(self) -> str:
        """One page with everything in it: no script, no network, light or dark as the reader's system is."""
        from .page import render

        return visible(render(self), lines=True)  # a sign that turns the direction of reading works in a page, too


def _sample(value: Mapping[str, Any]) -> Sample:
    return Sample(**{**value, "history": tuple((role, text) for role, text in value.get("history", ()))})


def _attack(value: Mapping[str, Any]) -> AttackResult:
    remark = value.get("remark")
    return AttackResult(**{**value, "remark": None if remark is None else Remark(**remark)})


def _picture(value: Mapping[str, Any]) -> Picture:
    strips = tuple(Strip(strip["label"], tuple(Tile(**tile) for tile in strip["tiles"])) for strip in value["strips"])
    return Picture(value["title"], value["about"], value["svg"], strips)
