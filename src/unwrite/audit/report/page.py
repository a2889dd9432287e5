"""Renders a report as one HTML page. Everything a model or a user wrote is escaped by Jinja's autoescape."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import charts
from .wording import short, words

if TYPE_CHECKING:
    import jinja2

    from .report import Report

PANELS = {
    "recovery": (
        "Recovery",
        "What each probe brings back of what was forgotten: 0 like a model that never learnt it, 1 like one that never forgot.",
    ),
    "forgotten": ("Forgotten", "What the model was asked to lose. Low is good, as low as the retrained model."),
    "kept": ("Kept", "What it had to keep. High is good."),
    "fluency": ("Fluency", "Whether it still writes sentences where it used to answer."),
    "privacy": ("Privacy", "Whether an attacker can tell that the forgotten rows were ever there."),
}
RECOVERY = "Each probe with its 95 % interval, between the retrained model and the model before."
GOOD = {"higher": "higher is better", "lower": "lower is better", "toward_reference": "close to the retrained model"}


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unwrite.audit.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    return environment


def render(report: Report) -> str:
    """Returns the page as text."""
    from markupsafe import Markup, escape

    names = dict(zip(report.axes or (), ("#b4532a", "#2f7566"), strict=False))
    plots = [
        ("What comes back", RECOVERY, charts.recovery_chart(report)),
        ("Forgetting against utility", "The good corner is the upper left.", charts.trade_off(report)),
        ("Step by step", "What is left after each request.", charts.steps_chart(report, names)),
    ]
    plots += [(a.name.capitalize(), a.about, charts.attack_curve(a, report.roles)) for a in report.attacks]
    drawn = [(title, about, Markup(_named(svg, escape(title)))) for title, about, svg in plots if svg]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            summary=report.summary,
            panels=_panels(report),
            first=drawn[:1],
            plots=drawn[1:],
            colour_of=_colour_of(report),
            forget=[s for s in report.samples if s.part == "forget"],
            kept=[s for s in report.samples if s.part != "forget"],
            pictures=[(picture, _as_image(picture.svg)) for picture in report.pictures],
        )
    )


def _named(svg: str, title: str) -> str:
    """A drawing of ours with the name that a screen reader says."""
    return svg.replace("<svg ", f'<svg aria-label="{title}" ', 1)


def _as_image(svg: str) -> str:
    """A drawing that came with the report, as an image: nothing in it can run."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _colour_of(report: Report) -> Callable[[str], str]:
    table = charts.colours(report.roles)
    return lambda role: f"var(--{role.replace(' ', '-')})" if role in charts.COLOURS else table[role]


def _panels(report: Report) -> list[dict[str, Any]]:
    panels = []
    for key, (title, about) in PANELS.items():
        rows = [_row(report, metric) for metric in report.metrics if metric["panel"] == key]
        if rows:
            panels.append({"title": title, "about": about, "rows": rows})
    return panels


def _row(report: Report, metric: dict[str, Any]) -> dict[str, Any]:
    cells, values = [], [report.value(metric["name"], role) for role in report.roles]
    shares = all(value is None or -1e-9 < value < 1 + 1e-9 for value in values)
    for role, value in zip(report.roles, values, strict=True):
        score = report.columns[role].get(metric["name"])
        interval = None if score is None else score.interval()
        spread = f"{short(interval[0])} – {short(interval[1])}" if interval and interval[1] > interval[0] else ""
        bar = None if value is None or not shares else round(100 * value, 1)
        cells.append({"role": role, "text": short(value), "spread": spread, "bar": bar})
    main = report.columns[report.main].get(metric["name"])
    return {
        "label": words(metric["name"]),
        "good": GOOD[metric["better"]],
        "about": metric["about"],
        "note": main.note if main else "",
        "cells": cells,
    }
