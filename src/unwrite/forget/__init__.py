"""Methods that change what a model knows or says. Nothing here imports torch until a name is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .. import catalog

if TYPE_CHECKING:
    from .base import Edit, Guard, Method, Objective, Phase
    from .batch import PairedBatch
    from .loss import Loss, PerPosition, PerRow, PerToken
    from .stopping import StopWhenForgotten
    from .trainer import UnlearnArguments, UnlearnTrainer

_HOMES = {
    "base": ("Edit", "Guard", "Method", "Objective", "Phase"),
    "batch": ("PairedBatch",),
    "loss": ("Loss", "PerPosition", "PerRow", "PerToken"),
    "stopping": ("StopWhenForgotten",),
    "trainer": ("UnlearnArguments", "UnlearnTrainer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Edit",
    "Guard",
    "Loss",
    "Method",
    "Objective",
    "PairedBatch",
    "PerPosition",
    "PerRow",
    "PerToken",
    "Phase",
    "StopWhenForgotten",
    "UnlearnArguments",
    "UnlearnTrainer",
]


def __getattr__(name: str) -> Any:
    """A name of the list above, or a method's class by the catalogue."""
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        entries = {record.entry.split(":")[1]: record for record in catalog.methods().values()}
        if name not in entries:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = entries[name].load()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *(record.entry.split(":")[1] for record in catalog.methods().values())]
