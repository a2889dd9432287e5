"""A sampler from one line: parts of the denoising loop joined by "+", each with settings where it needs them.

    threshold(threshold=0.8)+fixed-blocks(size=16)+dual

A part's record in the catalogue says which field of `Sampler` it fills; what is not named keeps its default. "prefix" and "dual"
are caches; "llada" and "dream", first in the line, are those models' own loops.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from .. import catalog
from ..errors import MethodError, naming, unknown
from .fields import fill

CACHES = ("none", "prefix", "dual")
PRESETS = ("llada", "dream")
SEVERAL = ("logits", "edit", "stop")
_PART = re.compile(r"(?P<name>[a-z0-9-]+)(\((?P<settings>[^()]*)\))?")


def sampler_of(text: str, gen_length: int, **settings: Any) -> Any:
    """A `Sampler`.

    Args:
        text: as above.
        gen_length: positions of the answer.
        settings: further fields of `Sampler` that are not parts.

    Raises:
        MethodError: an unknown part or setting, two parts for one field, a line that can't be read.
    """
    from ..diffusion import Sampler

    chosen: dict[str, Any] = {}
    make: Any = Sampler
    for place, word in enumerate(split(text)):
        name, flags = _read(word)
        if name in PRESETS:
            if place or flags:
                raise MethodError(f"{name} stands first and takes no settings. Write {name}+...")
            make = getattr(Sampler, name)
        elif name in CACHES:
            _put(chosen, "cache", name)
        else:
            if name not in catalog.parts():
                raise MethodError(unknown("part", name, [*catalog.parts(), *CACHES, *PRESETS]))
            record = catalog.part(name)
            with naming("settings"):
                _put(chosen, record.kind, fill(record.load(), name, flags))
    several = {kind: value[0] if len(value) == 1 else tuple(value) for kind, value in chosen.items() if kind in SEVERAL}
    if make is not Sampler and settings.get("steps") is None:
        settings["steps"] = gen_length
    sampler = make(gen_length=gen_length, **{key: value for key, value in settings.items() if value is not None})
    return dataclasses.replace(sampler, **{**chosen, **several})


def split(text: str) -> list[str]:
    """The parts of a line; a "+" within parentheses belongs to a setting."""
    parts, depth = [""], 0
    for character in text.replace(" ", ""):
        depth += (character == "(") - (character == ")")
        if character == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _read(word: str) -> tuple[str, dict[str, str]]:
    match = _PART.fullmatch(word)
    if match is None:
        raise MethodError(f"{word!r} is no part. Write name or name(setting=value,...), joined by +.")
    flags = {}
    for pair in filter(None, (match["settings"] or "").split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise MethodError(f"{word!r}: {pair!r} is no setting. Write {match['name']}(setting=value).")
        flags[name] = value
    return match["name"], flags


def _put(chosen: dict[str, Any], kind: str, value: Any) -> None:
    if kind in SEVERAL:
        chosen.setdefault(kind, []).append(value)
    elif kind in chosen:
        raise MethodError(f"two parts for {kind}: {chosen[kind]} and {value}. Name one.")
    else:
        chosen[kind] = value
