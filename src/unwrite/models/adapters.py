"""Which base an adapter may stand on: what its own file names is a wish of whoever wrote it, not of who loads it.

Without a word from the user that is a bundled model, a folder inside the adapter's own, or what `unwrite.json` beside it notes: a folder, or
a revision of a model of the Hub that is in the local cache already. Any other, and above all what would be fetched, is asked for by name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .. import hub
from ..errors import ModelError, notice, setting
from .bundled import BUNDLED
from .checkpoints import read_json

__all__ = ["ADAPTER", "adapter_base", "noted_of_hub"]

ADAPTER = "adapter_config.json"


def adapter_base(folder: Path, given: str | None) -> str:
    """The name of an adapter's base, for `load`.

    Args:
        folder: the adapter's.
        given: the base that the user named; one that the adapter doesn't name is taken with a notice.

    Raises:
        ModelError: none is named, or one of the Hub or outside the adapter's folder that the user has not named.
    """
    file = folder / ADAPTER
    named = read_json(file).get("base_model_name_or_path")
    if given is not None:
        if named and not _same_model(given, str(named), folder):
            notice(f"{file} names {named} as its base, and {given} is used, as {setting('base')} says.")
        return given
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"{file} names no base model. Give it by {setting('base')}, or set base_model_name_or_path in it."
        )
    place = next((place for place in _places(folder, named) if os.path.exists(place)), None)
    if place is not None:
        if not (_is_inside(place, folder) or _noted(folder, named)) and named not in BUNDLED:
            raise ModelError(_ask(file, named, "lies outside its folder", os.path.abspath(place)))
        return str(place)
    whole = named if hub.is_explicit(named) else hub.PREFIX + named
    if named not in BUNDLED and hub.repository(whole) is not None and hub.path_reason(named) is None:
        raise ModelError(_ask(file, named, "would be a model of the Hub", whole))
    return named


def noted_of_hub(folder: Path) -> tuple[str, str] | None:
    """Name and revision of the Hub's model that unwrite itself trained an adapter on; None where it notes no such."""
    file, note = folder / ADAPTER, folder / "unwrite.json"
    if not note.exists():
        return None
    named, noted = read_json(file).get("base_model_name_or_path"), read_json(note)
    revision = noted.get("revision")
    if not isinstance(named, str) or noted.get("base") != named or not isinstance(revision, str):
        return None
    if named in BUNDLED or any(os.path.exists(place) for place in _places(folder, named)):
        return None
    name = hub.PREFIX + named
    return (name, revision) if hub.repository(name) is not None and re.fullmatch("[0-9a-f]{40}", revision) else None


def _ask(file: Path, named: str, where: str, base: str) -> str:
    return (
        f"{file} names {named} as its base, which {where}. If that is the one you want, say so: {setting('base', base)}"
    )


def _is_inside(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def _noted(folder: Path, base: str) -> bool:
    """Whether unwrite itself wrote the adapter, on a base in that folder."""
    note = folder / "unwrite.json"
    return Path(base).is_absolute() and note.exists() and read_json(note).get("base") == base


def _same_model(given: str, named: str, folder: Path) -> bool:
    if given.removeprefix(hub.PREFIX) == named.removeprefix(hub.PREFIX):
        return True
    places = [place for place in _places(folder, named) if os.path.exists(place)]
    return os.path.exists(given) and any(os.path.samefile(given, place) for place in places)


def _places(folder: Path, named: str) -> tuple[Path, Path]:
    """Where `named` may lie: in the adapter's folder, and from the working folder."""
    return folder / named, Path(os.path.expanduser(named))
