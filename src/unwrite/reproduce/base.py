"""What a reproduction returns and how it is kept: claim, what was measured, baselines, controls, verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from .. import catalog
from ..beds.budget import Budget, Size
from ..errors import MethodError, unknown
from ..runs import versions, write_json
from ..runs.provenance import commit, machine
from ..terminal import text

Verdict = Literal["reproduced", "partly", "not reproduced", "needs GPU", "too small for a verdict"]


@dataclass(frozen=True)
class Claim:
    """One measured claim.

    Args:
        slug: the system's.
        claim: what the paper says, with its setting.
        setting: what was run here, in one line.
        columns: names of the measured figures.
        rows: {name: figures}, the method and its baselines and controls in the same run, "mean +- sd" already
            formatted or numbers.
        verdict, reason: what follows, and why; the reason names the figures it rests on.
        checks: the single statements the verdict rests on, each true or false.
        seeds: all seeds used.
    """

    slug: str
    claim: str
    setting: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Any, ...]]
    verdict: Verdict
    reason: str
    checks: Mapping[str, bool]
    seeds: tuple[int, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


def verdict_of(checks: Mapping[str, bool]) -> Verdict:
    """reproduced if every check holds, partly if some do."""
    held = sum(checks.values())
    return "reproduced" if held == len(checks) else "partly" if held else "not reproduced"


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
    start = time.time()
    claim = module.run(budget)
    if budget.size == "tiny":  # whether it runs, on so few rows that any figure is chance
        reason = "this budget only shows that the experiment runs; take small"
        claim = replace(claim, verdict="too small for a verdict", reason=reason)
    record = asdict(claim) | {
        "budget": budget.size,
        "seconds": round(time.time() - start, 1),
        "versions": versions(),
        "machine": machine(),
        "commit": commit(),
    }
    return claim, record


def store(record: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Writes results/<slug>.json in the package, or in another folder."""
    home = folder or Path(str(files("unwrite").joinpath("results")))
    path = home / f"{record['slug']}.json"
    write_json(path, record)
    return path


def table(claim: Claim) -> Any:
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
