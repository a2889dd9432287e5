"""unwrite takes knowledge out of a trained model, proves that it is gone, and lets what remains write fast.

    import unwrite
    loaded = unwrite.load("smollm2-135m")
    split = unwrite.landmarks()
    model = unwrite.NPO().apply(loaded.model, split.forget, split.retain, processing_class=loaded.tokenizer)
    unwrite.evaluate(model, split, tokenizer=loaded.tokenizer)

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

__version__ = version("unwrite")

_HOME_OF = {
    "Example": "data",
    "Examples": "data",
    "ForgetSplit": "data",
    "Report": "audit",
    "UnwriteError": "errors",
    "authors": "data",
    "evaluate": "audit",
    "landmarks": "data",
    "load": "models",
    "read": "data",
    "save": "models",
    "split_from": "data",
}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None and name[:1].isupper():
        home = "forget"  # methods, by the catalogue
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
