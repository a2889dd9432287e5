"""What the figures of an audit depend on besides the models: data, suite, versions, machine."""

from __future__ import annotations

import importlib.metadata
import platform

from .base import Suite
from .context import Split


def provenance(split: Split, suite: Suite) -> dict[str, str | float]:
    """Returns what the figures depend on by its name, as the report shows it."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        "data": split.hash,
        "suite": suite.name,
        **versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
