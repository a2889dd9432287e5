"""The stored results of benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

FORGETTING = ("forget", "forget-smollm2")  # the comparison whose settings were chosen on its own bed first


def stored_result(name: str) -> Any:
    """What `bench/results/<name>.json` holds; None where nothing was stored."""
    path = files("unwrite").joinpath("bench", "results", f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def comparisons() -> dict[str, Any]:
    """{name: stored comparison of methods that forget texts}, with settings of its own first."""
    stored = {name: stored_result(name) for name in FORGETTING}
    return {name: one for name, one in stored.items() if one is not None}


def observed(method: str) -> Iterator[dict[str, Any]]:
    """What the comparisons saw of a method: {"bed", "verdict", "setting", "forget_quality", "utility", "rank", "of"}, one a bed.

    forget_quality: log10 p; rank: among `of` methods that kept the utility, None for one that lost it.
    """
    for report in comparisons().values():
        for entry in report["entries"]:
            if entry["method"] == method and entry["kind"] == "method" and entry["verdict"]:
                quality, utility = (entry.get(name) or {} for name in ("forget_quality_log10", "model_utility"))
                yield {
                    "bed": report["bed"],
                    "verdict": entry["verdict"],
                    "setting": entry["setting"],
                    "forget_quality": quality.get("mean"),
                    "utility": utility.get("mean"),
                    "rank": entry["rank"],
                    "of": sum(one["rank"] is not None for one in report["entries"]),
                }


NO_BREAK = "\u00a0"


def unbroken(text: str) -> str:
    """Intervals and spreads that no line end parts: "1.2 (1.1 to 1.3)" breaks before its bracket alone."""
    text = text.replace(" +- ", f"{NO_BREAK}±{NO_BREAK}")
    return re.sub(r"\([^()|]* to [^()|]*\)", lambda found: found[0].replace(" ", NO_BREAK), text)
