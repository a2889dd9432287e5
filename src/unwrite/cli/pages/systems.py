"""A page a system: its claim, what was measured here, the control, every check and figure, and how to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ... import catalog
from ...catalog.records import System
from ...reproduce import freshness
from .tables import constants, measured, planned

HOLDS = {True: "holds", False: "**fails**", None: "open: its interval holds both"}
VERDICTS = (
    ("reproduced", "the headline holds and beats its control"),
    ("partly", "the headline holds, a further claim does not or is open"),
    ("not reproduced", "the headline fails, or its control does as well"),
    ("inconclusive", "an interval holds both"),
    ("bed says nothing", "the data leave no room to tell"),
    ("untested here", "nothing of the claim was measured"),
)


def index() -> str:
    """All systems: those that were measured with their headline, then what is planned."""
    lines = [
        "# Systems",
        "",
        "Every verdict is read from the stored result of `unwrite reproduce <slug>`, with its figures, seeds, versions and commit",
        '(`src/unwrite/results/`). "Not reproduced" is a result, too.',
        "",
        "| verdict | means |",
        "|---|---|",
        *(f"| {name} | {meaning} |" for name, meaning in VERDICTS),
        "",
        measured(),
        "",
        "## Planned",
        "",
        "Nothing of these is in the library yet, unless a table elsewhere names it.",
        "",
        planned(),
    ]
    return "\n".join(lines) + "\n"


def page(system: System) -> str:
    """One measured system."""
    result = system.result
    assert result is not None
    return "\n".join(_lines(system, result)) + "\n"


def _lines(system: System, result: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"# {system.slug}", "", f"*{system.title}* ({system.paper}, {system.year})", "")
    yield from (f"**The paper's claim:** {system.claim}", "")
    verdict = freshness.marked(system.slug, result["verdict"])
    yield from (f"**Here: {verdict}.** {_sentence(result['headline'])}", "")
    yield from (_sentence(result["reason"]), "")
    if why := freshness.stale().get(system.slug):
        yield from (f"{freshness.MARK} To be measured again: {why}.", "")
    yield from ("## What was run", "", _sentence(result["claim"]), "", _sentence(result["setting"]), "")
    yield from _checks(result["checks"])
    yield from ("", "## Figures", "", *_figures(result), "")
    yield from _members(system.slug)
    yield from ("## Run it", "", "```sh", f"unwrite reproduce {system.slug}", "```", "", _foot(result))


def _checks(checks: list[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("## Checks", "", "| kind | statement | figure | |", "|---|---|---|---|")
    for check in checks:
        yield f"| {check['kind']} | {_cell(check['text'])} | {_measure(check)} | {HOLDS[check['holds']]} |"


def _measure(check: Mapping[str, Any]) -> str:
    """The figure with its interval and what it is held against; empty where the check is a plain statement."""
    if isinstance(check["value"], bool) or check["value"] is None:
        return ""
    interval = check.get("interval")
    between = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
    held = f" {check['sense']} {check['threshold']:.3g}" if check.get("threshold") is not None else ""
    return f"{check['value']:.3g}{between}{held}"


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    yield "| | " + " | ".join(map(_cell, result["columns"])) + " |"
    yield "|---" * (len(result["columns"]) + 1) + "|"
    for name, row in result["rows"].items():
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        yield "| " + " | ".join(map(_cell, (name, *cells))) + " |"


def _members(slug: str) -> Iterator[str]:
    """What of the library is this system."""
    found = [
        f"- {kind.name} `{record.slug}`, `{record.entry.replace(':', '.')}`"
        for kind in catalog.KINDS[1:]
        for record in kind.own().values()
        if record.system == slug
    ]
    if found:
        yield from ("## In the library", "", *found, "")


def _foot(result: Mapping[str, Any]) -> str:
    machine, commit = result["machine"], result["commit"] or "unknown"
    seeds = ", ".join(map(str, result["seeds"]))
    return (
        f"Budget {result['budget']}, seeds {seeds}, {result['seconds'] / 60:.0f} minutes on {machine['cpu']}, torch "
        f"{result['versions']['torch']}, transformers {result['versions']['transformers']}, commit {commit[:7]}."
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


PAGES: dict[str, Callable[[], str]] = {"constants.md": constants, "systems/index.md": index}
PAGES |= {
    f"systems/{slug}.md": partial(page, system)
    for slug, system in catalog.systems().items()
    if system.result is not None
}
