"""All beds on which methods are compared, by name, whatever kind of data they are of."""

from __future__ import annotations

from ..errors import MethodError, unknown
from .images import BEDS as IMAGES
from .images import Bed
from .text_beds import BEDS as TEXTS
from .text_beds import TextBed

__all__ = ["bed_named", "beds"]


def beds() -> dict[str, Bed | TextBed]:
    """Every bed by its name."""
    return {**IMAGES, **TEXTS}


def bed_named(name: str) -> Bed | TextBed:
    """One of `beds`.

    Raises:
        MethodError: there is none of this name.
    """
    if name not in (known := beds()):
        raise MethodError(unknown("bed", name, known))
    return known[name]
