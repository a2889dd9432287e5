"""Methods that change what a model knows or says. Nothing here imports torch until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import catalog
from .._lazy import lazily

if TYPE_CHECKING:
    from .base import Edit, Guard, Method, Objective, Phase
    from .engine.batch import PairedBatch
    from .engine.loss import Loss, PerPosition, PerRow, PerToken
    from .engine.text.arguments import UnlearnArguments
    from .engine.text.stopping import StopWhenForgotten
    from .engine.text.trainer import UnlearnTrainer

_HOMES = {
    "engine.text.arguments": ("UnlearnArguments",),
    "base": ("Edit", "Guard", "Method", "Objective", "Phase"),
    "engine.batch": ("PairedBatch",),
    "engine.loss": ("Loss", "PerPosition", "PerRow", "PerToken"),
    "engine.text.stopping": ("StopWhenForgotten",),
    "engine.text.trainer": ("UnlearnTrainer",),
}

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


_find, _names = lazily(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    """A name of the list above, or a method's class by the catalogue."""
    entries = {record.entry.split(":")[1]: record for record in catalog.methods().values()}
    return entries[name].load() if name in entries else _find(name)


def __dir__() -> list[str]:
    return [*_names(), *(record.entry.split(":")[1] for record in catalog.methods().values())]
