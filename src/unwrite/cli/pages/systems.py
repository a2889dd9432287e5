"""A page a system: its claim, what was measured here, the control, every check and figure, and how to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ... import catalog
from ...catalog.records import System
from ...reproduce import freshness
from .tables import constants, measured, planned, unbroken

HOLDS = {True: "holds", False: "**fails**", None: "open: its interval reaches to both sides"}
REASONS = {
    "before": "it was measured before results held hashes of their code, which would show whether that code has changed since",
    "dirty": "it was measured with changes that were in no commit",
}
VERDICTS = (
    ("reproduced", "the headline holds and beats its control"),
    ("partly", "the headline holds, a further claim does not or is open"),
    ("not reproduced", "the headline fails, or its control does as well"),
    ("inconclusive", "the interval of a figure that decides reaches to both sides of its threshold"),
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
        "## Measured",
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
    yield from ("[All systems, and what the verdicts mean](index.md)", "")
    yield from (f"**The paper's claim:** {system.claim}", "")
    yield from (f"**As the paper measures it:** {_sentence(result['claim'])}", "")
    verdict = freshness.marked(system.slug, result["verdict"])
    yield from (f"**Here: {verdict}.** {_sentence(result['headline'])}", "")
    yield from (_sentence(result["reason"]), "")
    if why := freshness.stale().get(system.slug):
        yield from (f"{freshness.MARK} To be measured again ({REASONS.get(why.split()[0], why)}).", "")
    yield from ("## What was run", "", _sentence(result["setting"]), "")
    yield from _checks(result["checks"])
    yield from ("", "## Figures", "", *_figures(result), "")
    yield from _members(system.slug)
    yield from ("## Run it", "", "```sh", f"unwrite reproduce {system.slug}", "```", "", _foot(result))


def _checks(checks: list[Mapping[str, Any]]) -> Iterator[str]:
    figures = [_measure(check) for check in checks]
    head = ("statement", "kind", "outcome", *(["figure"] if any(figures) else []))
    yield from ("## Checks", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|")
    for check, figure in zip(checks, figures, strict=True):
        cells = (_cell(check["text"]), check["kind"], HOLDS[check["holds"]], figure)
        yield f"| {' | '.join(cells[: len(head)])} |"


def _measure(check: Mapping[str, Any]) -> str:
    """The figure with its interval and what it is held against; empty where the check is a plain statement."""
    if isinstance(check["value"], bool) or check["value"] is None:
        return ""
    interval = check.get("interval")
    between = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
    held = f" {check['sense']} {check['threshold']:.3g}" if check.get("threshold") is not None else ""
    return unbroken(f"{check['value']:.3g}{between}{held}")


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    yield "| arm | " + " | ".join(map(_cell, result["columns"])) + " |"
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
    minutes = max(1, round(result["seconds"] / 60))
    return (
        f"Budget {result['budget']}, seeds {seeds}, {minutes} minute{'s' if minutes > 1 else ''} on {machine['cpu']}, torch "
        f"{result['versions']['torch']}, transformers {result['versions']['transformers']}, commit {commit[:7]}."
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _cell(text: str) -> str:
    return unbroken(str(text).replace("|", "\\|").replace("\n", " "))


PAGES: dict[str, Callable[[], str]] = {"constants.md": constants, "systems/index.md": index}
PAGES |= {
    f"systems/{slug}.md": partial(page, system)
    for slug, system in catalog.systems().items()
    if system.result is not None
}
