"""The report's plots: Vega-Lite specifications drawn to SVG in this process, without JavaScript or network.

Colours are fixed in the drawing and mapped to the dark theme by the page's style sheet, which selects on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...runs import hash_json
from ..images.arrays import Floats

if TYPE_CHECKING:
    from .parts import AttackResult
    from .report import Report

Spec = dict[str, Any]  # of Vega-Lite
INK, MUTED, GRID = "#1f1d1a", "#6b655e", "#e4e0d8"
COLOURS = {"before": "#687180", "after": "#b4532a", "oracle": "#2f7566", "head only": "#8b5aa0", "inside": "#3b6ea5"}
STEPS = ("#b4532a", "#8b5aa0", "#3d6fa8", "#a87a1c", "#4f8a4b", "#a04a63")

DASHES = [[1, 0], [5, 4], [2, 2], [8, 3]]


def colours(roles: Sequence[str]) -> dict[str, str]:
    """One colour a column: the three roles have theirs, a driver's steps take the others in turn."""
    others = [role for role in roles if role not in COLOURS]
    steps = {role: STEPS[i % len(STEPS)] for i, role in enumerate(others)}
    return {role: COLOURS.get(role) or steps[role] for role in roles}


def trade_off(report: Report) -> str:
    """Forgetting against utility, one point a model; the good corner is top left. "" without axes or with fewer than two points."""
    if report.axes is None:
        return ""
    gone, kept = report.axes
    points: list[Spec] = [
        {"model": role, "x": report.value(gone, role), "y": report.value(kept, role)}
        for role in report.roles
        if report.value(gone, role) is not None and report.value(kept, role) is not None
    ]
    if len(points) < 2:
        return ""
    scale = report.scale
    for at, point in enumerate(points):  # names of points that lie together stand below each other
        point["below"] = sum(max(abs(point[a] - other[a]) for a in "xy") < 0.05 * scale for other in points[:at])
    axis = {
        "scale": {"domain": [-0.05 * scale, 1.08 * scale], "nice": False},
        "axis": {"values": [scale * i / 5 for i in range(6)]},
    }
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": f"{_words(gone)} (less: better forgotten)", **axis},
        "y": {"field": "y", "type": "quantitative", "title": f"{_words(kept)} (more: better kept)", **axis},
        "color": _colour(report.roles, legend=False),
    }
    label = {"type": "text", "dy": {"expr": "-11 + 15 * datum.below"}, "fontSize": 13, "fontWeight": 600}
    text = {"text": {"field": "model"}}
    middle = f"datum.x < {0.6 * scale}"  # names near the right edge stand to the left of their point
    marks = [
        {"mark": {"type": "point", "filled": True, "size": 170, "opacity": 1}},
        {"transform": [{"filter": middle}], "mark": {**label, "align": "left", "dx": 9}, "encoding": text},
        {"transform": [{"filter": f"!({middle})"}], "mark": {**label, "align": "right", "dx": -9}, "encoding": text},
    ]
    return _draw({"data": {"values": points}, "encoding": encoding, "layer": marks})


def recovery_chart(report: Report) -> str:
    """Every probe's recovery index with its interval, between the reference at 0 and the model before at 1. "" without any."""
    column = report.columns[report.main]
    names = [metric["name"] for metric in report.metrics if metric["panel"] == "recovery"]
    points: list[Spec] = []
    for name in names:
        score = column.get(name)
        if score is None or score.value is None:
            continue
        low, high = score.interval() or (score.value, score.value)
        points.append({"probe": _words(name.removeprefix("recovery_")), "x": score.value, "low": low, "high": high})
    if not points:
        return ""
    # Reserved by hand: a reader's font may be wider than the one that is measured here.
    labels = {"labelLimit": 0, "minExtent": 7 * max(len(point["probe"]) for point in points), "grid": True}
    row = {"field": "probe", "type": "nominal", "sort": [point["probe"] for point in points], "title": None}
    lowest, highest = min(-0.1, *(point["low"] for point in points)), max(1.1, *(point["high"] for point in points))
    index = {"type": "quantitative", "scale": {"domain": [lowest, highest], "nice": False}}
    axis = {"values": [-1, -0.5, 0, 0.25, 0.5, 0.75, 1, 1.5], "format": "~g"}
    title = "recovery: 0 like never trained, 1 like never unlearned"
    ends = [{"x": 0.0, "of": "oracle"}, {"x": 1.0, "of": "before"}]
    after = COLOURS["after"]
    layers = [
        {
            "data": {"values": ends},
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {
                "x": {"field": "x", **index},
                "color": _colour(["before", "oracle"], legend=False, field="of"),
            },
        },
        {
            "data": {"values": ends},
            "mark": {"type": "text", "dy": -9, "fontSize": 12, "fontWeight": 600},
            "encoding": {
                "x": {"field": "x", **index},
                "y": {"value": 0},
                "text": {"field": "of"},
                "color": _colour(["before", "oracle"], legend=False, field="of"),
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2.5, "color": after},
            "encoding": {
                "y": {**row, "axis": labels},
                "x": {"field": "low", "title": title, "axis": axis, **index},
                "x2": {"field": "high"},
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, "color": after},
            "encoding": {"y": row, "x": {"field": "x", **index}},
        },
    ]
    return _draw({"data": {"values": points}, "layer": layers, "height": 22 * len(points)})


def attack_curve(attack: AttackResult, roles: Sequence[str]) -> str:
    """An attack's curves: one colour a model, one dash a series."""
    models = [role for role in roles if role in attack.curves]
    points: list[Spec] = [
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
    steps = [role for role in report.roles if role not in ("before", "oracle", "head only", "inside")]
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


def heatmaps(tables: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> str:
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


@dataclass(frozen=True, eq=False)
class Filters:
    """Filters of a convolution to draw, some of their weights marked.

    Args:
        title: what stands above them.
        numbers: of the filters, `[filters]`.
        weights: `[filters, channels, height, width]`.
        marked: in that shape.
    """

    title: str
    numbers: Sequence[int]
    weights: Floats
    marked: NDArray[np.bool_]


def layers_chart(shares: Mapping[str, float], filters: Filters | None = None) -> str:
    """A bar a parameter, in the model's order; filters, where there are some, below."""
    points = [{"parameter": name, "share": share, "text": f"{100 * share:.3g} %"} for name, share in shares.items()]
    top = max(shares.values(), default=0) or 1
    # Reserved by hand: a reader's font may be wider than the one that is measured here.
    names = {"labelLimit": 0, "minExtent": 7.5 * max(map(len, shares), default=0)}
    encoding = {
        "y": {"field": "parameter", "type": "nominal", "sort": list(shares), "title": None, "axis": names},
        "x": {
            "field": "share",
            "type": "quantitative",
            "title": "share selected",
            "axis": {"format": "~%", "tickCount": 5},
            "scale": {"domain": [0, min(1, 1.05 * top)]},
        },
        "text": {"field": "text"},
    }
    marks = [
        {"mark": {"type": "bar", "color": COLOURS["after"]}},
        {"mark": {"type": "text", "align": "left", "dx": 5, "color": MUTED, "fontSize": 11}},
    ]
    bars = {"data": {"values": points}, "encoding": encoding, "layer": marks, "height": 18 * len(points), "width": 430}
    return _draw(bars if filters is None else {"vconcat": [bars, _filters(filters)], "spacing": 28})


PLANE, GAP, ACROSS = 42, 4, 560  # pixels: a channel of a filter, what is between two, all filters of a row


def _filters(filters: Filters) -> Spec:
    """A cell a weight, channels of a filter side by side; a dot on what is marked."""
    cells, captions, size = _cells(filters)
    limit = float(np.abs(filters.weights).max()) or 1.0
    shade = {"domain": [-limit, 0, limit], "range": ["#3d6fa8", "#f3f0ea", "#c9952b"], "interpolate": "rgb"}
    weight = {"field": "weight", "type": "quantitative", "legend": None, "scale": shade}

    def placed(across: str, down: str, **more: Any) -> Spec:
        plain = {"type": "quantitative", "axis": None}
        return {
            "x": {"field": across, "scale": {"domain": [0, size["width"]], "nice": False}, **plain},
            "y": {"field": down, "scale": {"domain": [size["height"], 0], "nice": False}, **plain},
            **more,
        }

    ends = {"x2": {"field": "x2"}, "y2": {"field": "y2"}}
    across = PLANE / max(filters.weights.shape[2:])
    dot = {"type": "point", "filled": True, "color": INK, "opacity": 1, "size": (0.45 * across) ** 2}
    text = {"type": "text", "align": "left", "fontSize": 10, "color": MUTED}
    marked = {"values": [cell for cell in cells if cell["marked"]]}
    return {
        **size,
        "title": {"text": filters.title, "anchor": "start", "fontSize": 12.5, "fontWeight": 500, "color": INK},
        "layer": [
            {"data": {"values": cells}, "mark": "rect", "encoding": placed("x", "y", color=weight, **ends)},
            {"data": marked, "mark": dot, "encoding": placed("middle", "centre")},
            {"data": {"values": captions}, "mark": text, "encoding": placed("x", "y", text={"field": "text"})},
        ],
    }


def _cells(filters: Filters) -> tuple[list[Spec], list[Spec], dict[str, float]]:
    """Where every weight and every caption stands, in pixels from the upper left, and the size of all."""
    _, channels, height, width = filters.weights.shape
    cell = PLANE / max(height, width)
    wide, high = channels * (width * cell + GAP) + 12, height * cell + 28
    columns = max(1, int(ACROSS // wide))
    cells, captions = [], []
    for at, number in enumerate(filters.numbers):
        left, top, own = at % columns * wide, at // columns * high, filters.marked[at]
        told = f"{number}: {int(own.sum())} of {own.size}"
        captions.append({"x": left, "y": top + height * cell + 11, "text": told})
        for (channel, row, column), weight in np.ndenumerate(filters.weights[at]):
            x, y = left + channel * (width * cell + GAP) + column * cell, top + row * cell
            what = {"weight": float(weight), "marked": bool(own[channel, row, column])}
            middle = {"middle": x + cell / 2, "centre": y + cell / 2}
            cells.append({"x": x, "x2": x + cell, "y": y, "y2": y + cell, **middle, **what})
    return cells, captions, {"width": columns * wide, "height": -(-len(filters.numbers) // columns) * high}


def _colour(roles: Sequence[str], *, legend: bool, field: str = "model") -> Spec:
    table = colours(roles)
    scale = {"domain": list(table), "range": list(table.values())}
    return {
        "field": field,
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
        "layout": {"top": {"margin": 24}},  # between the legend of the models and that of the rows
    },
}


def _draw(spec: Spec) -> str:
    import vl_convert

    full = {"width": 430, "height": 270, "config": CONFIG, **spec}
    svg = vl_convert.vegalite_to_svg(json.dumps(full))
    # Ids are unique within one drawing only; a page holds several. Named for what is drawn, the same report is the same page.
    name = hash_json(full)[:8]
    svg = re.sub(r'id="([\w-]+)"', lambda found: f'id="p{name}-{found[1]}"', svg)
    svg = re.sub(r"url\(#([\w-]+)\)", lambda found: f"url(#p{name}-{found[1]})", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)
