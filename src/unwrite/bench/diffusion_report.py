"""The diffusion benchmark as a table and as a picture: right answers over forwards, the plain threshold as the line to beat."""

from __future__ import annotations

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
COLOURS = ("#9aa5b1", "#d1495b", "#2e4057", "#66a182", "#c9b79c")


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| sampler | forwards an answer | right, % | against the threshold at equal forwards | positions/s | own work |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ahead = row["ahead"]
        points = (
            f"{ahead['points']:+.1f} ({ahead['low']:+.1f} to {ahead['high']:+.1f})" if row["kind"] != "curve" else ""
        )
        speed = f"{row['positions_per_second']:.1f}" if "positions_per_second" in row else ""
        own = f"{100 * row['own_share']:.1f} %" if "own_share" in row else ""
        cells = (row["sampler"], f"{row['forwards']:.1f}", f"{row['right']:.1f}", points, speed, own)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def losing_nothing(rows: Sequence[Row], least: float = -1.0) -> list[Row]:
    """Arms whose interval against one by one ends above `least` points, from few forwards to many."""
    kept = [row for row in rows if row["against_one_by_one"]["low"] > least and row["kind"] != "control"]
    return sorted(kept, key=lambda row: row["forwards"])


def picture(rows: Sequence[Row]) -> dict[str, Any]:
    """A Vega-Lite specification."""
    values = [
        {"sampler": row["sampler"], "kind": SHOWN[row["kind"]], "forwards": row["forwards"], "right": row["right"]}
        for row in rows
    ]
    x = {
        "field": "forwards",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": {"title": "forwards an answer of 64 positions", "values": [2, 4, 8, 16, 32, 64], "grid": False},
    }
    y = {
        "field": "right",
        "type": "quantitative",
        "scale": {"zero": False, "nice": True},
        "axis": {"title": "right answers, %", "tickCount": 6},
    }
    colour = {
        "field": "kind",
        "scale": {"domain": list(SHOWN.values()), "range": list(COLOURS)},
        "legend": {"title": None, "orient": "bottom", "columns": 5},
    }
    named = [value for value in values if value["kind"] != SHOWN["curve"]]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 640,
        "height": 380,
        "background": "white",
        "padding": 14,
        "layer": [
            {
                "data": {"values": [value for value in values if value["kind"] == SHOWN["curve"]]},
                "mark": {"type": "line", "point": True, "color": COLOURS[0]},
                "encoding": {"x": x, "y": y, "order": {"field": "forwards"}},
            },
            {
                "data": {"values": named},
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.95},
                "encoding": {"x": x, "y": y, "color": colour, "tooltip": [{"field": "sampler"}]},
            },
            {
                "data": {"values": named},
                "mark": {"type": "text", "align": "left", "dx": 7, "dy": 3, "fontSize": 9, "color": "#333"},
                "encoding": {"x": x, "y": y, "text": {"field": "sampler"}},
            },
        ],
        "config": {"view": {"stroke": None}, "font": "Helvetica, Arial, sans-serif"},
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
        f"lies above it gains at equal forwards.</p>{vl_convert.vegalite_to_svg(picture(found['rows']))}"
        f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></html>"
    )
