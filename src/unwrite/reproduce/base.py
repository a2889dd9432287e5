"""What a reproduction returns and how it is kept: claim, what was measured, baselines, controls, checks, verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .. import catalog
from ..beds.budget import Budget, Size
from ..errors import MethodError, unknown
from ..runs import versions, write_json
from ..runs.provenance import commit, machine
from ..terminal import text
from .checks import Check, Verdict, verdict_of
from .freshness import hashes

if TYPE_CHECKING:
    from rich.table import Table

FORM = 2  # of what is stored: 1 had {statement: true or false} and no headline
HEADLINE = 100  # characters at most: it stands in a cell of README's tables


@dataclass(frozen=True)
class Claim:
    """One measured claim; its verdict follows from its checks.

    Args:
        slug: the system's.
        claim: what the paper says, with its setting.
        setting: what was run here, in one line.
        columns: names of the measured figures.
        rows: {name: figures}, the method and its baselines and controls in the same run, "mean +- sd" already
            formatted or numbers.
        headline: at most `HEADLINE` characters with the one figure that matters, made of the rows.
        reason: why the verdict is what it is; names the figures it rests on.
        checks: the statements the verdict rests on; the first claim among them is the headline's.
        seeds: all seeds used.
        too_small: whether the budget only shows that the experiment runs.
    """

    slug: str
    claim: str
    setting: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Any, ...]]
    headline: str
    reason: str
    checks: tuple[Check, ...]
    seeds: tuple[int, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    too_small: bool = False

    def __post_init__(self) -> None:
        if not self.headline or len(self.headline) > HEADLINE:
            raise MethodError(
                f"{self.slug}: the headline has {len(self.headline)} characters, of 1 to {HEADLINE}: {self.headline!r}"
            )
        texts = [check.text for check in self.checks]
        if len({*texts}) < len(texts):
            raise MethodError(f"{self.slug}: two checks say the same: {'; '.join(texts)}")

    @property
    def verdict(self) -> Verdict:
        """What follows from the checks; nothing where the budget is too small."""
        return "too small for a verdict" if self.too_small else verdict_of(self.checks)

    @property
    def holds(self) -> dict[str, bool | None]:
        """{statement: whether it holds}; None where its interval holds both."""
        return {check.text: check.holds for check in self.checks}

    def record(self) -> dict[str, Any]:
        """What is stored of the claim itself."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "too_small"}
        checks = [check.record() for check in self.checks]
        return values | {"form": FORM, "checks": checks, "verdict": self.verdict}


def figure(rows: Mapping[str, Sequence[Any]], name: str, column: int) -> str:
    """A row's figure without its spread, as a headline says it."""
    return str(rows[name][column]).split(" +- ")[0]


def run(slug: str, budget: Budget) -> tuple[Claim, dict[str, Any]]:
    """Runs a system's experiment; the second value is what is stored: the claim with how it was got."""
    catalog.system(slug)
    if budget.size not in get_args(Size):
        raise MethodError(unknown("budget", budget.size, get_args(Size)))
    try:
        module = import_module(f"unwrite.reproduce.{slug.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if slug.replace("-", "_") not in str(error):
            raise
        raise MethodError(f"{slug} is planned: it has no experiment yet. See: unwrite systems") from None
    code = hashes(slug)  # as it is now, not after what may take hours
    start = time.time()
    claim = module.run(budget)
    if budget.size == "tiny":  # whether it runs, on so few rows that any figure is chance
        reason = "this budget only shows that the experiment runs; take small"
        claim = replace(claim, too_small=True, reason=reason)
    record = claim.record() | {
        "budget": budget.size,
        "seconds": round(time.time() - start, 1),
        "versions": versions(),
        "machine": machine(),
        "commit": commit(),
        "hashes": code,
    }
    return claim, record


def store(record: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Writes results/<slug>.json in the package, or in another folder."""
    home = folder or Path(str(files("unwrite").joinpath("results")))
    path = home / f"{record['slug']}.json"
    write_json(path, record)
    return path


def table(claim: Claim) -> Table:
    """The claim as a rich table."""
    from rich.table import Column, Table

    shown = Table(
        "",
        *(Column(text(name)) for name in claim.columns),
        title=text(claim.setting, "table.title"),
        title_justify="left",
        box=None,
        header_style="bold",
    )
    for name, figures in claim.rows.items():
        shown.add_row(text(name), *[text(f"{v:.3g}" if isinstance(v, float) else v) for v in figures])
    return shown
