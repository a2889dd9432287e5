"""The diffusion benchmark as a table and as a picture: right answers over forwards, the plain threshold as the line to beat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .labels import Name, placed

Row = Mapping[str, Any]
SHOWN = {
    "curve": "plain threshold",
    "method": "one method",
    "pair": "combined",
    "baseline": "baseline",
    "control": "random control",
}
FEW = 5  # forwards; the picture's left part ends here
COLOURS = ("#9aa5b1", "#d1495b", "#2e4057", "#66a182", "#c9b79c")


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown, numbered as the points of the picture."""
    lines = [
        "| # | sampler | forwards an answer | right, % | against the threshold at equal forwards | positions/s | own work |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(rows, 1):
        ahead = row["ahead"]
        points = (
            f"{ahead['points']:+.1f} ({ahead['low']:+.1f} to {ahead['high']:+.1f})" if row["kind"] != "curve" else ""
        )
        speed = f"{row['positions_per_second']:.1f}" if "positions_per_second" in row else ""
        own = f"{100 * row['own_share']:.1f} %" if "own_share" in row else ""
        cells = (str(number), row["sampler"], f"{row['forwards']:.1f}", f"{row['right']:.1f}", points, speed, own)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def losing_nothing(rows: Sequence[Row], least: float = -1.0) -> list[Row]:
    """Arms whose interval against one by one ends above `least` points, from few forwards to many."""
    arms = [row for row in rows if row["against_one_by_one"]["low"] > least and row["kind"] != "control"]
    return sorted(arms, key=lambda row: row["forwards"])


def picture(rows: Sequence[Row]) -> dict[str, Any]:
    """A Vega-Lite specification: few forwards at the left, more at the right, each point with its numbers in the table."""
    values = _points(rows)
    most = max(float(value["forwards"]) for value in values)
    lowest = 10 * (min(float(value["right"]) for value in values) // 10)
    few, many = ([value for value in values if (value["forwards"] <= FEW) is first] for first in (True, False))
    left, right = Panel((2, FEW), 480, lowest, first=True), Panel((FEW, max(FEW + 1, most)), 220, lowest, first=False)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "padding": 14,
        "spacing": 6,
        "hconcat": [left.drawn(few), right.drawn(many)],
        "config": {"view": {"stroke": None}, "font": "Helvetica, Arial, sans-serif"},
    }


def _points(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A point a row. The curve's are labelled by their threshold, others by number; what lies on another shares its label."""
    points: list[dict[str, Any]] = []
    labels: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        point = {"kind": SHOWN[row["kind"]], "label": "", **{key: row[key] for key in ("sampler", "forwards", "right")}}
        points.append(point)
        curve = row["kind"] == "curve"
        first = labels.setdefault((round(24 * math.log2(row["forwards"])), round(row["right"]), curve), point)
        label = row["sampler"].removeprefix("threshold ") if curve else str(number)
        first["label"] += f", {label}" if first["label"] else label
    return points


HEIGHT, LETTERS = 420, 12  # of a panel, and of the numbers in it, in pixels


@dataclass(frozen=True)
class Panel:
    """One of the two panels.

    Args:
        domain: the forwards at its left and right edge, on a logarithmic axis.
        width: in pixels.
        lowest: the share of right answers at its lower edge; the upper is 100.
        first: whether it is the left one, which has the axis of right answers.
    """

    domain: tuple[float, float]
    width: int
    lowest: float
    first: bool

    def drawn(self, values: Sequence[Row]) -> dict[str, Any]:
        """Its Vega-Lite specification: the threshold's line, all points, and their names where there is room."""
        x, y = self._axes()
        colour = {
            "field": "kind",
            "scale": {"domain": list(SHOWN.values()), "range": list(COLOURS)},
            "legend": {"title": None, "orient": "bottom", "columns": 5, "labelFontSize": LETTERS},
        }
        at = {"x": {**x, "field": "name_forwards"}, "y": {**y, "field": "name_right"}}
        line = {"x": x, "y": y, "x2": {"field": "line_forwards"}, "y2": {"field": "line_right"}}
        named = self._named(values)
        curve = [value for value in values if value["kind"] == SHOWN["curve"]]
        mark: dict[str, Any] = {"type": "text", "fontSize": LETTERS}
        grey = {"condition": {"test": f"datum.kind === '{SHOWN['curve']}'", "value": "#5d6873"}, "value": "#222"}
        return {
            "width": self.width,
            "height": HEIGHT,
            "layer": [
                {
                    "data": {"values": curve},
                    "mark": {"type": "line", "color": COLOURS[0]},
                    "encoding": {"x": x, "y": y, "order": {"field": "forwards"}},
                },
                {
                    "data": {"values": [value for value in named if "line_right" in value]},
                    "mark": {"type": "rule", "color": "#8a929a", "strokeWidth": 0.8},
                    "encoding": line,
                },
                {
                    "data": {"values": list(values)},
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.95},
                    "encoding": {"x": x, "y": y, "color": colour, "tooltip": [{"field": "sampler"}]},
                },
                {
                    "data": {"values": named},
                    "mark": mark,
                    "encoding": {**at, "text": {"field": "label"}, "color": grey},
                },
            ],
        }

    def _axes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        ticks = {"values": [2, 2.5, 3, 4, 5] if self.first else [8, 16, 32, 64], "grid": False}
        size = {"labelFontSize": LETTERS, "titleFontSize": LETTERS}
        x = {
            "field": "forwards",
            "type": "quantitative",
            "scale": {"type": "log", "domain": list(self.domain), "nice": False, "clamp": True},
            "axis": {"title": "forwards an answer" if self.first else "more forwards", **ticks, **size},
        }
        y = {
            "field": "right",
            "type": "quantitative",
            "scale": {"domain": [self.lowest, 100]},
            "axis": {"title": "right answers, %", "tickCount": 6, **size} if self.first else None,
        }
        return x, y

    def _named(self, values: Sequence[Row]) -> list[dict[str, Any]]:
        """Points with the place of their name, in the units of the axes."""
        low, high = map(math.log, self.domain)
        across, down = (high - low) / self.width, (100 - self.lowest) / HEIGHT
        names = [Name(v["label"], (math.log(v["forwards"]) - low) / across, (100 - v["right"]) / down) for v in values]

        def units(x: float, y: float, of: str) -> dict[str, float]:
            return {f"{of}_forwards": math.exp(low + across * x), f"{of}_right": 100 - down * y}

        return [
            {**value, **units(place.x, place.y, "name"), **(units(*place.line, "line") if place.line else {})}
            for value, place in zip(values, placed(names, self.width, HEIGHT, size=LETTERS), strict=True)
            if value["label"]
        ]


def html(results: Mapping[str, Any]) -> str:
    """A self-contained page: the picture as SVG and the table. Nothing is fetched, no script runs."""
    from html import escape

    import vl_convert

    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(results["rows"])]
    head, _, *body = lines
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in body)
    svg = vl_convert.vegalite_to_svg(picture(results["rows"]))
    drawn = svg.replace("<svg ", '<svg role="img" aria-label="Right answers over forwards, a point a sampler" ', 1)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<link rel=icon href=data:,><title>Samplers</title><style>{STYLE}</style></head><body><main>"
        f"<h1>Right answers over forwards</h1><p>{results['prompts']} prompts. The line is the plain threshold at several values; what "
        f"lies above it gains at equal forwards. Numbers are those of the table.</p><div class=wide>{drawn}</div>"
        f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div></main></body></html>"
    )


# Light alone, as the picture is; what is wider than the screen scrolls inside its own box, the sampler's name staying in sight.
STYLE = (
    ":root{color-scheme:light}body{font:15px/1.5 Helvetica,Arial,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;"
    "background:#fff;color:#1f1d1a}.wide{overflow-x:auto;margin:1rem 0}svg{max-width:none}table{border-collapse:collapse}"
    "td,th{padding:.25rem .8rem;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}"
    "td:nth-child(2),th:nth-child(2){position:sticky;left:0;background:#fff;min-width:7rem}td:nth-child(n+3){white-space:nowrap}"
)
