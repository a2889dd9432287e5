"""The comparison of methods that forget texts as tables and as a picture: forget quality against what stayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .labels import Name, placed

__all__ = [
    "HEADS",
    "PROBE_HEADS",
    "cells",
    "picture",
    "probe_cells",
    "probe_table",
    "refusals",
    "settings_table",
    "table",
]

Report = Mapping[str, Any]
HEADS = ("#", "method", "log10 p", "utility", "P", "P par.", "R-L", "R-L kept", "cost", "better")
SIZE = (560, 300)  # of the picture inside its axes, in pixels
REFERENCES = {"before": "the model before", "retrained": "retrained without the forget set"}
# Verdicts from good to bad, each with its mark; one that differs between seeds is marked as the worst of them.
MARKS = {
    REFERENCES["retrained"]: ("#2e4057", "diamond"),
    REFERENCES["before"]: ("#9aa5b1", "diamond"),
    "removal-like": ("#2a9d5c", "circle"),
    "mixed": ("#d9a404", "circle"),
    "suppression-like": ("#d1495b", "square"),
    "suppression by construction": ("#7b5ea7", "triangle-up"),
    "untested": ("#8a929a", "cross"),
    "not forgotten": ("#6b4a3a", "triangle-down"),
    "no verdict": ("#8a929a", "circle"),
}


def cells(report: Report) -> list[tuple[str, ...]]:
    """A line an entry, as texts, of the columns `HEADS`; fits in 80 columns."""
    return [
        (
            "ref." if entry["kind"] == "reference" else str(entry["rank"] or "–"),
            entry["method"],
            _spread(entry.get("forget_quality_log10"), 1),
            _spread(entry.get("model_utility"), 2),
            _mean(entry.get("forget_probability")),
            _mean(entry.get("forget_paraphrase_probability")),
            _mean(entry.get("forget_rouge")),
            _mean(entry.get("retain_rouge")),
            _mean(entry.get("cost"), 1),
            "" if entry["kind"] == "reference" else f"{len(entry['better_than'])}/{len(entry['equal'])}",
        )
        for entry in report["entries"]
        if entry["seeds"]
    ]


def refusals(report: Report) -> list[str]:
    """A text a method that was refused with some of the seeds: which, and why."""
    return [
        f"{entry['method']} with seed{'s' if len(entry['errors']) > 1 else ''} {', '.join(map(str, entry['errors']))}: "
        f"{next(iter(entry['errors'].values()))}"
        for entry in report["entries"]
        if entry["errors"] and entry["seeds"]
    ]


PROBES = ("direct", "paraphrased", "few_shot", "relearned", "relearned_general", "rounded_4", "depth")
PROBE_HEADS = ("method", "direct", "par.", "few shots", "relearnt", "by general", "4 bits", "depth", "verdict")


def probe_cells(report: Report) -> list[tuple[str, ...]]:
    """A line a method that an audit judges: recovery indices, the mean over seeds, and the verdict; columns `PROBE_HEADS`."""
    return [
        (entry["method"], *(_mean(entry.get(f"recovery_{name}")) for name in PROBES), entry["verdict"])
        for entry in report["entries"]
        if entry["seeds"] and entry["verdict"] and entry["kind"] == "method"
    ]


def probe_table(report: Report) -> list[str]:
    """The same as lines of Markdown; none without a verdict."""
    if not (lines := probe_cells(report)):
        return []
    return [
        _line(PROBE_HEADS),
        "|---" * len(PROBE_HEADS) + "|",
        *(_line([f"`{name}`", *more]) for name, *more in lines),
    ]


def _spread(figure: Mapping[str, float] | None, digits: int) -> str:
    return "–" if figure is None else f"{figure['mean']:.{digits}f}±{figure['sd']:.{digits}f}"


def _mean(figure: Mapping[str, float] | None, digits: int = 2) -> str:
    return "–" if figure is None else f"{figure['mean']:.{digits}f}"


def table(report: Report) -> list[str]:
    """The same as lines of Markdown."""
    lines = [_line(HEADS), "|---" * len(HEADS) + "|"]
    return lines + [_line([number, f"`{name}`", *more]) for number, name, *more in cells(report)]


def settings_table(report: Report) -> list[str]:
    """What every setting came to on the tuning authors, as lines of Markdown; those chosen are bold."""
    lines = [_line(("setting", "log10 p", "utility")), "|---|---|---|"]
    for one in report["tuning"]:
        name = f"**{one['contender']}**" if one["chosen"] else one["contender"]
        figures = [one[metric] for metric in ("forget_quality_log10", "model_utility")]
        shown = ("refused", "") if "error" in one else ("–" if value is None else f"{value:.2f}" for value in figures)
        lines.append(_line((name, *shown)))
    return lines


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def picture(report: Report) -> dict[str, Any]:
    """Forget quality against utility, a point a method, marked by its verdict; right and high is good."""
    values = [
        {
            "method": entry["method"],
            "x": entry["forget_quality_log10"]["mean"],
            "y": entry["model_utility"]["mean"],
            "useful": entry["useful"],
            "verdict": REFERENCES.get(entry["method"]) or entry["verdict"] or "no verdict",
        }
        for entry in report["entries"]
        if entry.get("forget_quality_log10") and entry.get("model_utility")
    ]
    across = min(-1.0, 1.05 * min((value["x"] for value in values), default=-1.0)), 0.0
    lowest = min((value["y"] for value in values), default=0.0)
    up = max(0.0, math.floor(10 * lowest - 1) / 10), 1.0
    axis = {"grid": False, "titleFontWeight": "normal", "titleFontSize": 13, "labelFontSize": 12, "tickCount": 6}
    x, y = (
        {"field": field, "type": "quantitative", "scale": {"domain": list(ends), "nice": False, "zero": False}}
        for field, ends in (("x", across), ("y", up))
    )
    axes = {
        "x": {**x, "axis": {**axis, "title": "forget quality, log10 p (0: like the retrained model)"}},
        "y": {**y, "axis": {**axis, "title": "model utility"}},
    }
    seeds = len(report["seeds"])
    where = "other authors" if report["tuning"] else report["rule"].rpartition(", on ")[2]
    told = f"{report['bed']}, settings chosen on {where}, mean of {seeds} seed{'s' if seeds > 1 else ''}"
    if not all(value["useful"] for value in values):
        told += "; pale: utility lost"
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {
            "text": "Forget quality against utility, by method",
            "subtitle": told,
            **{"anchor": "start", "fontSize": 15, "subtitleFontSize": 12, "subtitlePadding": 5},
        },
        **{"background": "white", "padding": 14, "width": SIZE[0], "height": SIZE[1]},
        "data": {"values": _with_names(values, across, up)},
        "layer": _layers(axes, x, y, sorted({value["verdict"] for value in values}, key=_worst)),
        "config": {"view": {"stroke": None}, "font": "Helvetica, Arial, sans-serif"},
    }


def _worst(verdict: str) -> tuple[int, str]:
    """Where a verdict, or the worst of those that seeds differ in, stands among `MARKS`."""
    order = list(MARKS)
    return max(order.index(label) if label in order else len(order) - 1 for label in verdict.split(" or ")), verdict


def _layers(axes: Mapping[str, Any], x: Mapping[str, Any], y: Mapping[str, Any], verdicts: Sequence[str]) -> list[Any]:
    marks = [list(MARKS.values())[_worst(verdict)[0]] for verdict in verdicts]
    legend = {
        "title": None,
        "orient": "bottom",
        "columns": 2,
        "columnPadding": 60,
        "labelLimit": 400,
        "labelFontSize": 12,
    }
    colours, shapes = ({"domain": list(verdicts), "range": list(some)} for some in zip(*marks, strict=True))
    mark = {
        "color": {"field": "verdict", "scale": colours, "legend": legend},
        "shape": {"field": "verdict", "scale": shapes, "legend": legend},
        "opacity": {"condition": {"test": "datum.useful", "value": 0.9}, "value": 0.35},
    }
    line = {"type": "rule", "color": "#8a929a", "strokeWidth": 0.8}
    to = {"x2": {"field": "line_x"}, "y2": {"field": "line_y"}}
    names = {"x": {**x, "field": "name_x"}, "y": {**y, "field": "name_y"}, "text": {"field": "method"}}
    return [
        {"transform": [{"filter": "isValid(datum.line_x)"}], "mark": line, "encoding": {"x": x, "y": y, **to}},
        {"mark": {"type": "point", "filled": True, "size": 80}, "encoding": {**axes, **mark}},
        {"mark": {"type": "text", "fontSize": 12}, "encoding": names},
    ]


def _with_names(
    values: Sequence[Mapping[str, Any]], across: tuple[float, float], up: tuple[float, float]
) -> list[dict[str, Any]]:
    """Points with the place of their names, in the units of the axes."""
    (width, height), (left, right), (low, high) = SIZE, across, up
    names = [
        Name(v["method"], (v["x"] - left) / (right - left) * width, (high - v["y"]) / (high - low) * height)
        for v in values
    ]

    def units(x: float, y: float, of: str) -> dict[str, float]:
        return {f"{of}_x": left + x / width * (right - left), f"{of}_y": high - y / height * (high - low)}

    return [
        {**value, **units(place.x, place.y, "name"), **(units(*place.line, "line") if place.line else {})}
        for value, place in zip(values, placed(names, width, height, size=12, radius=6), strict=True)
    ]
