"""All beds on which methods are compared, by name, whatever kind of data they are of."""

from __future__ import annotations

from ..errors import MethodError, unknown
from .emoji import BEDS as EMOJI
from .fashion import BEDS as FASHION
from .images import BEDS as IMAGES
from .images import Bed
from .manipulated import BEDS as MANIPULATED
from .manipulated import bed_named as manipulated_named
from .persons import BEDS as PERSONS
from .text_beds import BEDS as TEXTS
from .text_beds import TextBed
from .worst_case import BEDS as WORST_CASE
from .worst_case import bed_named as worst_case_named

__all__ = ["bed_named", "beds"]


def beds() -> dict[str, Bed | TextBed]:
    """Every bed by its name."""
    return {**IMAGES, **FASHION, **EMOJI, **MANIPULATED, **PERSONS, **WORST_CASE, **TEXTS}


def bed_named(name: str) -> Bed | TextBed:
    """One of `beds`, or one with its setting: "digits/poisoned@0.5", an identified share, "digits/worst-case@low-loss", a selector.

    Raises:
        MethodError: there is none of this name; a setting that has no meaning.
    """
    base = name.partition("@")[0]
    if base in MANIPULATED:
        return manipulated_named(name)
    if base in WORST_CASE:
        return worst_case_named(name)
    if name not in (known := beds()):
        raise MethodError(unknown("bed", name, known))
    return known[name]
