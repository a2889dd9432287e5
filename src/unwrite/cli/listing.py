"""unwrite systems, unwrite methods: what there is, and what helps a person choose."""

from __future__ import annotations

import dataclasses

from .. import catalog
from ..catalog.records import OURS
from ..terminal import text
from .output import console, print_json

VERDICT_COLOURS = {"reproduced": "green", "partly": "yellow", "not reproduced": "red", "needs GPU": "blue"}


def systems(*, json: bool = False) -> None:
    """List all systems: family, status, and the verdict measured here.

    Args:
        json: print JSON instead of a table.
    """
    rows = [
        {
            "slug": s.slug,
            "family": s.family,
            "status": s.status,
            "verdict": s.verdict,
            "title": s.title,
            "paper": s.paper,
        }
        for s in catalog.systems().values()
    ]
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("slug", "family", "status", "verdict", "title", box=None, header_style="bold")
    for row in rows:
        verdict = row["verdict"] or ""
        colour = VERDICT_COLOURS.get(verdict, "dim")
        table.add_row(row["slug"], row["family"], row["status"], text(verdict, colour), row["title"])
    console().print(table)


def methods(*, json: bool = False) -> None:
    """List the forgetting methods: what each intends, needs, guarantees and costs.

    Args:
        json: print JSON instead of a table.
    """
    if json:
        print_json([dataclasses.asdict(record) for record in catalog.methods().values()])
        return
    from rich.table import Table

    records = catalog.methods().values()
    headers = ["method", "kind", "intent", "needs", "guarantee", "cost", "undo"]
    others = any(record.package != OURS for record in records)
    table = Table(*headers, *(["package"] if others else []), header_style="bold", show_lines=False)
    for record in records:
        needs = ", ".join(need for need in record.needs if need != "forget set")
        undo = "yes" if record.reversible else "no"
        cells = [record.slug, record.kind, record.intent, needs, record.guarantee, record.cost, undo]
        table.add_row(*map(text, cells + [record.package] * others))
    console().print(table)
