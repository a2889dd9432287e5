"""Pictures of the documentation: Vega-Lite drawn to SVG from stored results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ... import catalog
from ...bench.labels import Name, placed
from .stored import FORGETTING, stored_result


def cache_picture() -> str | None:
    """The stored comparison of caches as an SVG; None if it was not stored."""
    stored = stored_result("cache")
    if stored is None:
        return None
    import vl_convert

    from ...bench.caches_report import picture

    return str(vl_convert.vegalite_to_svg(picture(stored["rows"])))


def diffusion_picture() -> str | None:
    """The same as an SVG; None if it was not stored."""
    stored = stored_result("diffusion")
    if stored is None:
        return None
    import vl_convert

    from ...bench.diffusion_report import picture

    return str(vl_convert.vegalite_to_svg(picture(stored["rows"])))


def forget_picture(name: str) -> str | None:
    """A comparison of methods that forget texts as an SVG; None if it was not stored."""
    stored = stored_result(name)
    if stored is None:
        return None
    import vl_convert

    from ...bench.forget_report import picture

    return str(vl_convert.vegalite_to_svg(picture(stored)))


# One axis a measure: its title, and what is shown on it.
PICTURED = {
    "probability of the answer, per token (0 to 1)": {
        "forget_probability": "forgotten questions",
        "forget_paraphrase_probability": "the same, in other words",
    },
    "ROUGE-L recall of the model's earlier answers (0 to 1)": {
        "neighbours_rouge": "neighbours, never trained on",
        "general_rouge": "general knowledge, never trained on",
    },
}


def demo_picture() -> str | None:
    """The stored demo as an SVG of bars, before and after; None if it was not stored."""
    stored = stored_result("demo")
    if stored is None:
        return None
    import vl_convert

    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {
            "text": "A real model forgets one landmark",
            "subtitle": "SmolLM2-135M-Instruct before and after, as unwrite demo measured it",
            "anchor": "start",
            "fontSize": 15,
            "subtitleFontSize": 13,
            "subtitlePadding": 5,
        },
        "background": "white",
        "padding": 14,
        "spacing": 18,
        "vconcat": [_bars(stored["figures"], measure, labels) for measure, labels in PICTURED.items()],
        "config": {"view": {"stroke": None}, "font": "Helvetica, Arial, sans-serif"},
    }
    return str(vl_convert.vegalite_to_svg(spec))


def _bars(figures: Any, measure: str, labels: dict[str, str]) -> dict[str, Any]:
    """One measure on its own axis: two bars a row, before and after."""
    values = [
        {"what": label, "when": when, "value": figures[name][when]}
        for name, label in labels.items()
        if name in figures
        for when in ("before", "after")
    ]
    # Of one width for both, so that the axes stand below each other.
    axis = {
        "labelLimit": 400,
        "labelFontSize": 13,
        "labelPadding": 7,
        "minExtent": 230,
        "title": None,
        "ticks": False,
        "domain": False,
    }
    return {
        "data": {"values": values},
        "width": 420,
        "mark": {"type": "bar", "cornerRadiusEnd": 2, "height": 11},
        "encoding": {
            "y": {"field": "what", "type": "nominal", "sort": None, "axis": axis},
            "yOffset": {"field": "when", "sort": ["before", "after"]},
            "x": {
                "field": "value",
                "type": "quantitative",
                "scale": {"domain": [0, 1]},
                "axis": {
                    "title": measure,
                    "titleFontSize": 13,
                    "titleFontWeight": "normal",
                    "labelFontSize": 12,
                    "grid": False,
                },
            },
            "color": {
                "field": "when",
                "sort": ["before", "after"],
                "scale": {"domain": ["before", "after"], "range": ["#9aa5b1", "#d1495b"]},
                "legend": {"title": None, "orient": "top", "labelFontSize": 13, "offset": 8},
            },
        },
    }


def methods_picture() -> str | None:
    """Forgetting against utility of every text method that was measured on the invented authors, as an SVG."""
    result = catalog.system("uld").result
    if result is None:
        return None
    import vl_convert

    at = [result["columns"].index(name) for name in ("forget probability", "model utility")]
    values = [
        {
            "method": name,
            "forget": _mean(row[at[0]]),
            "utility": _mean(row[at[1]]),
            "kind": REFERENCES.get(name, "a method"),
        }
        for name, row in result["rows"].items()
    ]
    return str(vl_convert.vegalite_to_svg(_scatter(_placed(values))))


SIZE = (560, 300)  # of the scatter inside its axes, in pixels
UTILITY = (0.4, 0.9)


def _placed(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the place of the name, in the units of the axes."""
    (width, height), (low, high) = SIZE, UTILITY
    names = [Name(v["method"], v["forget"] * width, (high - v["utility"]) / (high - low) * height) for v in values]

    def units(x: float, y: float, of: str) -> dict[str, float]:
        return {f"{of}_forget": x / width, f"{of}_utility": high - y / height * (high - low)}

    return [
        {**value, **units(place.x, place.y, "name"), **(units(*place.line, "line") if place.line else {})}
        for value, place in zip(values, placed(names, width, height, size=12, radius=6), strict=True)
    ]


REFERENCES = {"target": "the model before", "oracle": "retrained without the forget set"}


def _mean(cell: str) -> float:
    return float(str(cell).split(" +- ")[0])


def _scatter(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Points with their names beside them; left and high is good."""
    x = {"field": "forget", "type": "quantitative", "scale": {"domain": [0, 1]}}
    y = {"field": "utility", "type": "quantitative", "scale": {"domain": list(UTILITY), "zero": False}}
    colours = {"domain": ["a method", *REFERENCES.values()], "range": ["#d1495b", "#9aa5b1", "#2e4057"]}
    kind = {
        "field": "kind",
        "scale": colours,
        "legend": {"title": None, "orient": "bottom", "labelLimit": 400, "labelFontSize": 12},
    }
    axis = {"grid": False, "titleFontWeight": "normal", "titleFontSize": 13, "labelFontSize": 12}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {
            "text": "Forgetting against utility, by method",
            "subtitle": "40 invented authors, 4 forgotten, a model of 3.4 million weights, 3 seeds; baselines stopped at one level",
            "anchor": "start",
            "fontSize": 15,
            "subtitleFontSize": 12,
            "subtitlePadding": 5,
        },
        "background": "white",
        "padding": 14,
        "width": SIZE[0],
        "height": SIZE[1],
        "data": {"values": values},
        "layer": [
            {
                "transform": [{"filter": "isValid(datum.line_forget)"}],
                "mark": {"type": "rule", "color": "#8a929a", "strokeWidth": 0.8},
                "encoding": {"x": x, "y": y, "x2": {"field": "line_forget"}, "y2": {"field": "line_utility"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {
                    "x": {
                        **x,
                        "axis": {**axis, "title": "probability of the forgotten answers (less is more forgotten)"},
                    },
                    "y": {**y, "axis": {**axis, "title": "model utility"}},
                    "color": kind,
                },
            },
            {
                "mark": {"type": "text", "fontSize": 12},
                "encoding": {
                    "x": {**x, "field": "name_forget"},
                    "y": {**y, "field": "name_utility"},
                    "text": {"field": "method"},
                },
            },
        ],
        "config": {"view": {"stroke": None}, "font": "Helvetica, Arial, sans-serif"},
    }


PICTURES: dict[str, Callable[[], str | None]] = {
    "cache.svg": cache_picture,
    "demo.svg": demo_picture,
    "diffusion.svg": diffusion_picture,
    **{f"{name}.svg": partial(forget_picture, name) for name in FORGETTING},
    "methods.svg": methods_picture,
}
