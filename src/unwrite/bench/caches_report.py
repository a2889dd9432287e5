"""The comparison of caches as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .labels import Name, placed

__all__ = ["cells", "picture"]

HEAD = ("cache", "bytes of 16 bit", "perplexity", "needles", "seconds a token", "middle half")
WIDTH, HEIGHT, LETTERS = 620, 380, 11
Row = Mapping[str, Any]


def cells(rows: Sequence[Row], tokens: int) -> list[list[str]]:
    """What the table shows of one length, a list a row; heads are `HEAD`."""
    return [_cells(row) for row in rows if row["tokens"] == tokens]


def _cells(row: Row) -> list[str]:
    if "refused" in row:
        return [row["cache"], "refused", *["-"] * 4]
    return [
        row["cache"],
        f"{row['of_16_bit']:.3f}",
        f"{row['perplexity']:.2f}",
        f"{row['right']} of {row['asked']}",
        f"{row['step_ratio']:.2f}",
        f"{row['step_ratio_low']:.2f} to {row['step_ratio_high']:.2f}",
    ]


def picture(rows: Sequence[Row]) -> dict[str, Any]:
    """Perplexity over bytes at the longest prompt, a point a cache, as a Vega-Lite specification."""
    longest = max(row["tokens"] for row in rows)
    shown = [row for row in rows if row["tokens"] == longest and "refused" not in row]
    low, high = (
        math.log(min(row["of_16_bit"] for row in shown) / 1.3),
        math.log(max(row["of_16_bit"] for row in shown) * 1.3),
    )
    least, most = (math.log(worst(row["perplexity"] for row in shown)) for worst in (min, max))
    room = max(most - least, 0.1)
    least, most = least - 0.1 * room, most + 0.1 * room
    across, down = (high - low) / WIDTH, (most - least) / HEIGHT
    points = [
        ((math.log(row["of_16_bit"]) - low) / across, (most - math.log(row["perplexity"])) / down) for row in shown
    ]
    places = placed(
        [Name(row["cache"], x, y) for row, (x, y) in zip(shown, points, strict=True)], WIDTH, HEIGHT, size=LETTERS
    )
    values = [
        {
            "cache": row["cache"],
            "bytes": row["of_16_bit"],
            "perplexity": row["perplexity"],
            "whose": "unwrite" if row["peer"] is None else "peers",
            "name_bytes": math.exp(low + across * place.x),
            "name_perplexity": math.exp(most - down * place.y),
        }
        for row, place in zip(shown, places, strict=True)
    ]
    size = {"labelFontSize": LETTERS, "titleFontSize": LETTERS}
    x = {"type": "quantitative", "scale": {"type": "log", "domain": [math.exp(low), math.exp(high)], "nice": False}}
    y = {"type": "quantitative", "scale": {"type": "log", "domain": [math.exp(least), math.exp(most)], "nice": False}}
    across_title = {
        "title": f"bytes of a prompt of {longest:,} tokens, of a full cache in 16 bit",
        "grid": False,
        **size,
    }
    down_title = {"title": "perplexity behind it", "grid": False, **size}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": values},
        "layer": [
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {
                    "x": {**x, "field": "bytes", "axis": across_title},
                    "y": {**y, "field": "perplexity", "axis": down_title},
                    "color": {"field": "whose", "type": "nominal", "title": None},
                },
            },
            {
                "mark": {"type": "text", "fontSize": LETTERS},
                "encoding": {
                    "x": {**x, "field": "name_bytes"},
                    "y": {**y, "field": "name_perplexity"},
                    "text": {"field": "cache"},
                },
            },
        ],
        "config": {"view": {"stroke": None}, "font": "Helvetica, Arial, sans-serif"},
    }
