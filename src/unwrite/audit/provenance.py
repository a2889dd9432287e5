"""What the figures of an audit depend on besides the models."""

from __future__ import annotations

from ..data.images.splits import ImageSplit
from ..data.text.examples import ForgetSplit
from .base import Suite


def provenance(split: ForgetSplit | ImageSplit, suite: Suite) -> dict[str, str | float]:
    """What a score depends on besides the models: data, suite, versions, machine."""
    import importlib.metadata
    import platform

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        "data": split.hash,
        "suite": suite.name,
        **versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
