"""The diffusion benchmark as a table and as a picture: right answers over forwards, the plain threshold as the line to beat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
    kept = [row for row in rows if row["against_one_by_one"]["low"] > least and row["kind"] != "control"]
    return sorted(kept, key=lambda row: row["forwards"])


def picture(rows: Sequence[Row]) -> dict[str, Any]:
    """A Vega-Lite specification: few forwards at the left, more at the right, each point with its numbers in the table."""
    values = _points(rows)
    most = max(float(value["forwards"]) for value in values)
    lowest = 10 * (min(float(value["right"]) for value in values) // 10)
    few, many = ([value for value in values if (value["forwards"] <= FEW) is first] for first in (True, False))
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "padding": 14,
        "spacing": 6,
        "hconcat": [
            _side(few, (2, FEW), 460, lowest, first=True),
            _side(many, (FEW, max(FEW + 1, most)), 220, lowest, first=False),
        ],
        "config": {"view": {"stroke": None}, "font": "Helvetica, Arial, sans-serif"},
    }


def _points(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A point a row. The curve's are labelled by their threshold, others by number; what lies on another shares its label."""
    found: list[dict[str, Any]] = []
    labels: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        point = {"kind": SHOWN[row["kind"]], "label": "", **{key: row[key] for key in ("sampler", "forwards", "right")}}
        found.append(point)
        curve = row["kind"] == "curve"
        first = labels.setdefault((round(24 * math.log2(row["forwards"])), round(row["right"]), curve), point)
        label = row["sampler"].removeprefix("threshold ") if curve else str(number)
        first["label"] += f", {label}" if first["label"] else label
    return found


def _side(values: Sequence[Row], domain: Sequence[float], width: int, lowest: float, *, first: bool) -> dict[str, Any]:
    """One of the two panels."""
    at = {"values": [2, 2.5, 3, 4, 5] if first else [8, 16, 32, 64], "grid": False}
    x = {
        "field": "forwards",
        "type": "quantitative",
        "scale": {"type": "log", "domain": domain, "nice": False, "clamp": True},
        "axis": {"title": "forwards an answer" if first else "more forwards", **at},
    }
    y = {
        "field": "right",
        "type": "quantitative",
        "scale": {"domain": [lowest, 100]},
        "axis": {"title": "right answers, %", "tickCount": 6} if first else None,
    }
    colour = {
        "field": "kind",
        "scale": {"domain": list(SHOWN.values()), "range": list(COLOURS)},
        "legend": {"title": None, "orient": "bottom", "columns": 5},
    }
    return {
        "width": width,
        "height": 420,
        "layer": [
            {
                "data": {"values": [value for value in values if value["kind"] == SHOWN["curve"]]},
                "mark": {"type": "line", "color": COLOURS[0]},
                "encoding": {"x": x, "y": y, "order": {"field": "forwards"}},
            },
            {
                "data": {"values": list(values)},
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.95},
                "encoding": {"x": x, "y": y, "color": colour, "tooltip": [{"field": "sampler"}]},
            },
            {
                "data": {"values": [value for value in values if value["kind"] != SHOWN["curve"]]},
                "mark": {"type": "text", "align": "left", "dx": 6, "dy": 4, "fontSize": 10, "color": "#333"},
                "encoding": {"x": x, "y": y, "text": {"field": "label"}},
            },
            {
                "data": {"values": [value for value in values if value["kind"] == SHOWN["curve"]]},
                "mark": {"type": "text", "align": "right", "dx": -6, "dy": -6, "fontSize": 10, "color": "#7a8591"},
                "encoding": {"x": x, "y": y, "text": {"field": "label"}},
            },
        ],
    }


def html(found: Mapping[str, Any]) -> str:
    """A self-contained page: the picture as SVG and the table. Nothing is fetched, no script runs."""
    from html import escape

    import vl_convert

    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(found["rows"])]
    head, _, *body = lines
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in body)
    style = "body{font:15px/1.5 Helvetica,Arial,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    style += "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Samplers</title><style>{style}</style>"
        f"<h1>Right answers over forwards</h1><p>{found['prompts']} prompts. The line is the plain threshold at several values; what "
        f"lies above it gains at equal forwards. Numbers are those of the table.</p>{vl_convert.vegalite_to_svg(picture(found['rows']))}"
        f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></html>"
    )
