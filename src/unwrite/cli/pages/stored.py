"""The stored results of benchmarks."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def stored_result(name: str) -> Any:
    """What `bench/results/<name>.json` holds; None where nothing was stored."""
    path = files("unwrite").joinpath("bench", "results", f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
