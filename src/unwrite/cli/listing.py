"""unwrite systems, unwrite methods: what there is, and what helps a person choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .. import catalog
from ..catalog.records import OURS, MethodRecord, PlanRecord
from ..reproduce import freshness
from ..terminal import text
from .output import console, label, print_json
from .pages.stored import observed

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

GUARANTEES = MethodRecord.choices["guarantee"]
VERDICT_COLOURS = {"reproduced": "green", "partly": "yellow", "not reproduced": "red", "inconclusive": "blue"}


def systems(*, json: bool = False) -> None:
    """List all systems: family, status, and the verdict measured here (marked where it is to be measured again).

    Args:
        json: print JSON instead of a table.
    """
    rows: list[dict[str, Any]] = [
        {
            "slug": s.slug,
            "family": s.family,
            "status": s.status,
            "verdict": s.verdict,
            "stale": freshness.stale().get(s.slug),
            "title": s.title,
            "paper": s.paper,
        }
        for s in catalog.systems().values()
    ]
    if json:
        print_json(rows)
        return
    cells = [
        [row["slug"], row["family"], _verdict(row["slug"]) or text(row["status"], "dim"), row["title"]] for row in rows
    ]
    console().print(plain_table(["system", "family", "here", "title"], cells))
    _say_what_is_stale(row["slug"] for row in rows)


def methods(
    method: str | None = None,
    *,
    kind: Annotated[Literal["texts", "images"] | None, Parameter(name="--for")] = None,
    json: bool = False,
) -> None:
    """List the forgetting methods, or show one: what it is good for, what it needs, its fields and their defaults.

    Args:
        method: one method's name; all of them without.
        kind: list only those for texts, or only those for images.
        json: print JSON instead of a table.
    """
    if method is not None:
        _one(catalog.plan(method) if method in catalog.plans() else catalog.method(method), json)
        return
    every = catalog.methods().values()
    own, others = ([one for one in every if (one.package == OURS) is ours] for ours in (True, False))
    records: list[MethodRecord | PlanRecord] = [*own, *catalog.plans().values(), *others]
    if kind is not None:
        records = [one for one in records if ("text" if kind == "texts" else kind) in one.forgets]
    if json:
        print_json([{**dataclasses.asdict(record), "observed": list(observed(record.slug))} for record in records])
        return
    headers = ["method", "of", "kind", "intent", "observed", "here"]
    cells = [[m.slug, _of(m), m.kind, m.intent, _seen(m), _verdict(m.system, short=True) or ""] for m in records]
    console().print(plain_table(headers, cells))
    _say_what_is_stale(m.system for m in records if m.system)
    for record in records:
        if record.package != OURS:
            console().print(f"{record.slug} is of the package {record.package}.")
    console().print(_guarantees(records))
    if kind == "images":
        alone = [one.slug for one in records if one.slug not in image_methods()]
        console().print(
            f"Run one: unwrite forget --images FOLDER --by class NAME. From Python only: {', '.join(alone)}."
        )
    console().print(
        f"What one needs and costs, and its fields: unwrite methods {'scrub' if kind == 'images' else 'npo'}"
    )


def _one(record: MethodRecord | PlanRecord, json: bool) -> None:
    """Everything about one method."""
    from .describe import described, field_table, summary
    from .fields import holds_method

    cls = record.load()
    if json:
        seen = list(observed(record.slug))
        print_json(
            {
                **dataclasses.asdict(record),
                "observed": seen,
                "fields": [dataclasses.asdict(one) for one in described(cls)],
            }
        )
        return
    print_ = console().print
    print_(label(record.slug, then=f"  {record.title}"))
    print_(summary(cls))
    print_()
    lines = {
        "published": f"{record.paper} ({record.year})" if record.paper else "",
        "forgets": _of(record).replace("both", "texts and images"),
        "kind": f"{record.kind}; claims {record.intent}; guarantee: {record.guarantee}",
        "approach": f"{record.approach}, on {record.intervention}" if record.approach != "another" else "",
        "needs": ", ".join(record.needs),
        "cost": record.cost,
        "undo": "possible" if record.reversible else "not possible: keep the model before",
        "observed": "; ".join(map(_told, observed(record.slug))),
        "measured": _verdict(record.system) or "no claim of its own",
        "package": record.package,
    }
    for name, words in lines.items():
        if words and (name != "package" or words != OURS):
            print_(label(f"{name:10}", then=words))
    _say_what_is_stale([record.system] if record.system else [])
    print_()
    print_(field_table(cls))
    if holds_method(cls):
        inside = type(cls().chosen).__name__
        print_(f"Flags that it has no field for are of the method in it, {inside} unless --inner names another.")
    print_()
    if isinstance(record, PlanRecord):
        print_(f"In Python, before training: unwrite.forget.{record.use}")
        return
    if "text" in record.forgets:
        print_(f"unwrite forget --method {record.slug} ...")
    elif record.slug in image_methods():
        print_(f"unwrite forget --images FOLDER --by class NAME --method {record.slug} ...")
    else:
        print_(f"unwrite sweep --methods {record.slug} ...")


def image_methods() -> list[str]:
    """The methods that `unwrite forget --images` runs: those that change weights and need nothing but model and pictures."""
    return [
        slug
        for slug, record in catalog.methods().items()
        if "images" in record.forgets and record.kind != "guard" and "training recipe" not in record.needs
    ]


def _guarantees(records: Iterable[MethodRecord | PlanRecord]) -> str:
    """Who gives which guarantee, the strongest first."""
    of = {word: [record.slug for record in records if record.guarantee == word] for word in GUARANTEES}
    parts = [f"{word}: {', '.join(slugs)}" for word, slugs in of.items() if slugs and word != "none"]
    return f"Guarantee of a deletion. {'; '.join(parts)}; all others: none."


def _seen(record: MethodRecord | PlanRecord) -> str:
    """What the battery called it, in a word; by settings that were chosen on the bed, where there are some."""
    verdict = str(next(observed(record.slug), {"verdict": ""})["verdict"])
    return "varies" if " or " in verdict else verdict.removesuffix("-like").removesuffix(" by construction")


def _told(seen: Mapping[str, Any]) -> str:
    """One comparison's figures in words."""
    place = f"{seen['rank']} of {seen['of']}" if seen["rank"] else "without a place, for utility is lost"
    quality = "" if seen["forget_quality"] is None else f", forget quality {seen['forget_quality']:.1f} (log10 p)"
    return f"{seen['verdict']} on {seen['bed']}: {place}{quality}"


def _verdict(system: str | None, *, short: bool = False) -> Text | None:
    """The verdict on a system's claim, marked where it is to be measured again; None without one.

    Args:
        short: in at most 16 characters.
    """
    verdict = catalog.system(system).verdict if system else None
    if system is None or verdict is None:
        return None
    said = verdict.replace("bed says nothing", "no verdict") if short else verdict
    return text(freshness.marked(system, said), VERDICT_COLOURS.get(verdict, "dim"))


def _say_what_is_stale(systems: Iterable[str]) -> None:
    if (foot := freshness.footnote(systems)) is not None:
        console().print(text(foot, "dim"))


def _of(record: MethodRecord | PlanRecord) -> str:
    return "both" if len(record.forgets) > 1 else record.forgets[0]


def plain_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table for 80 columns: the first column is never cut, the last takes what is left."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for number, header in enumerate(headers):
        table.add_column(header, no_wrap=number < len(headers) - 1, overflow="fold")
    for row in rows:
        table.add_row(*(text(cell) if isinstance(cell, str) else cell for cell in row))
    return table
