"""The report's plots: Vega-Lite specifications drawn to SVG in this process, without JavaScript or network.

Colours are fixed in the drawing and mapped to the dark theme by the page's style sheet, which selects on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .report import AttackResult, Report

INK, MUTED, GRID = "#1f1d1a", "#77716a", "#e4e0d8"
COLOURS = {"before": "#7d8694", "after": "#b4532a", "oracle": "#2f7566", "head only": "#8b5aa0"}
STEPS = ("#b4532a", "#8b5aa0", "#3d6fa8", "#a87a1c", "#4f8a4b", "#a04a63")

DASHES = [[1, 0], [5, 4], [2, 2], [8, 3]]


def colours(roles: Sequence[str]) -> dict[str, str]:
    """One colour a column: the three roles have theirs, a driver's steps take the others in turn."""
    others = [role for role in roles if role not in COLOURS]
    steps = {role: STEPS[i % len(STEPS)] for i, role in enumerate(others)}
    return {role: COLOURS.get(role) or steps[role] for role in roles}


def trade_off(report: Report) -> str:
    """Forgetting against utility, one point a model; the good corner is top left. "" with fewer than two points."""
    gone, kept = report.axes
    points = [
        {"model": role, "x": report.value(gone, role), "y": report.value(kept, role)}
        for role in report.roles
        if report.value(gone, role) is not None and report.value(kept, role) is not None
    ]
    if len(points) < 2:
        return ""
    scale = report.scale
    axis = {
        "scale": {"domain": [-0.05 * scale, 1.08 * scale], "nice": False},
        "axis": {"values": [scale * i / 5 for i in range(6)]},
    }
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": f"{_words(gone)} (less: better forgotten)", **axis},
        "y": {"field": "y", "type": "quantitative", "title": f"{_words(kept)} (more: better kept)", **axis},
        "color": _colour(report.roles, legend=False),
    }
    label = {"type": "text", "dy": -11, "fontSize": 13, "fontWeight": 600}
    text = {"text": {"field": "model"}}
    middle = f"datum.x < {0.6 * scale}"  # names near the right edge stand to the left of their point
    marks = [
        {"mark": {"type": "point", "filled": True, "size": 170, "opacity": 1}},
        {"transform": [{"filter": middle}], "mark": {**label, "align": "left", "dx": 9}, "encoding": text},
        {"transform": [{"filter": f"!({middle})"}], "mark": {**label, "align": "right", "dx": -9}, "encoding": text},
    ]
    return _draw({"data": {"values": points}, "encoding": encoding, "layer": marks})


def attack_curve(attack: AttackResult, roles: Sequence[str]) -> str:
    """An attack's curves: one colour a model, one dash a series."""
    models = [role for role in roles if role in attack.curves]
    points: list[dict[str, Any]] = [
        {"model": role, "rows": name, "x": point[attack.x], "y": point[name]}
        for role in models
        for point in attack.curves[role]
        for name in sorted(point)
        if name != attack.x
    ]
    if not points:
        return ""
    names = sorted({str(point["rows"]) for point in points}, reverse=True)
    ticks = sorted({point["x"] for point in points})
    x_axis = {"values": ticks} if len(ticks) <= 8 else {"tickCount": 6, "tickMinStep": 1}
    dash = {
        "field": "rows",
        "type": "nominal",
        "title": None,
        "sort": names,
        "scale": {"domain": names, "range": [DASHES[i % len(DASHES)] for i in range(len(names))]},
        "legend": {"symbolType": "stroke", "symbolStrokeColor": MUTED, "symbolSize": 200},
    }
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": attack.label, "axis": x_axis},
        "y": {
            "field": "y",
            "type": "quantitative",
            "title": "probability of the answers",
            "scale": {"domain": [0, 1]},
            "axis": {"tickCount": 5},
        },
        "color": _colour(models, legend=True),
    }
    layers = [
        {"mark": {"type": "line", "strokeWidth": 2.2}, "encoding": {"strokeDash": dash}},
        {
            "mark": {"type": "point", "size": 34, "filled": True, "opacity": 1},
            "encoding": {"detail": {"field": "rows"}},
        },
    ]
    return _draw({"data": {"values": points}, "encoding": encoding, "layer": layers})


def steps_chart(report: Report, names: Mapping[str, str]) -> str:
    """How metrics move over a driver's steps (columns other than references). names: metric -> colour."""
    steps = [role for role in report.roles if role not in ("before", "oracle", "head only")]
    points = [
        {"step": role, "metric": _words(name), "y": report.value(name, role)}
        for role in (["before", *steps] if "before" in report.columns else steps)
        for name in names
        if report.value(name, role) is not None
    ]
    if len(steps) < 2 or not points:
        return ""
    encoding = {
        "x": {"field": "step", "type": "ordinal", "title": None, "sort": None, "axis": {"labelAngle": 0}},
        "y": {"field": "y", "type": "quantitative", "title": None, "axis": {"tickCount": 5}},
        "color": {
            "field": "metric",
            "type": "nominal",
            "title": None,
            "scale": {"domain": [_words(n) for n in names], "range": list(names.values())},
        },
    }
    mark = {"type": "line", "point": {"size": 40, "filled": True}, "strokeWidth": 2.2}
    return _draw({"data": {"values": points}, "encoding": encoding, "mark": mark})


def heatmaps(tables: Mapping[str, Any], names: Sequence[str]) -> str:
    """One matrix a model side by side: counts `[true, said]`, shaded by their share of the row."""
    cells = [
        {"model": role, "true": names[i], "said": names[j], "share": count / max(1, int(sum(row)))}
        for role, table in tables.items()
        for i, row in enumerate(table.tolist())
        for j, count in enumerate(row)
    ]
    axis = {"type": "nominal", "sort": list(names), "axis": {"labelAngle": 0, "labelOverlap": True}}
    encoding = {
        "x": {"field": "said", "title": "said", **axis},
        "y": {"field": "true", "title": "true", **axis},
        "color": {
            "field": "share",
            "type": "quantitative",
            "legend": None,
            "scale": {"range": ["#00000008", "#b4532a"]},
        },
        "facet": {"field": "model", "sort": list(tables), "title": None, "columns": 2, "header": {"labelColor": INK}},
    }
    return _draw({"data": {"values": cells}, "mark": "rect", "encoding": encoding, "width": 190, "height": 190})


def layers_chart(shares: Mapping[str, float]) -> str:
    """A bar a parameter, in the model's order."""
    points = [{"parameter": name, "share": share} for name, share in shares.items()]
    encoding = {
        "y": {"field": "parameter", "type": "nominal", "sort": list(shares), "title": None},
        "x": {"field": "share", "type": "quantitative", "title": "share selected", "axis": {"format": "%"}},
    }
    mark = {"type": "bar", "color": COLOURS["after"]}
    return _draw({"data": {"values": points}, "mark": mark, "encoding": encoding, "height": 18 * len(points)})


def _colour(roles: Sequence[str], *, legend: bool) -> dict[str, Any]:
    table = colours(roles)
    scale = {"domain": list(table), "range": list(table.values())}
    return {
        "field": "model",
        "type": "nominal",
        "scale": scale,
        "title": None,
        **({} if legend else {"legend": None}),
    }


def _words(name: str) -> str:
    return name.replace("_", " ")


CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": INK,
        "titleFontWeight": 500,
        "titleFontSize": 12.5,
        "labelFontSize": 12,
        "titlePadding": 10,
        "gridColor": GRID,
        "domain": False,
        "ticks": False,
        "labelPadding": 7,
    },
    "legend": {
        "labelColor": INK,
        "labelFontSize": 12.5,
        "orient": "top",
        "symbolStrokeWidth": 2.2,
        "symbolBaseStrokeColor": MUTED,
        "columnPadding": 18,
    },
}


_drawn = 0


def _draw(spec: dict[str, Any]) -> str:
    global _drawn
    import vl_convert

    _drawn += 1
    full = {"width": 430, "height": 270, "config": CONFIG, **spec}
    svg = vl_convert.vegalite_to_svg(json.dumps(full))
    # Ids are unique within one drawing only; a page holds several.
    svg = re.sub(r'id="([\w-]+)"', rf'id="p{_drawn}-\1"', svg)
    svg = re.sub(r"url\(#([\w-]+)\)", rf"url(#p{_drawn}-\1)", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)
