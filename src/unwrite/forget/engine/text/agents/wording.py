"""The agents' prompts: text files with turns, in which `$name` stands for what a call fills in.

    --- system
    ...
    --- user
    $query

What is filled in is never read as part of a template, so braces, dollar signs and turns in it stay what they are; texts of people and
models stand between two lines with a mark that they don't hold, and the prompts say that what is between them is no instruction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from string import Template

from .....errors import MethodError, setting
from .chat import Message

__all__ = ["Prompts", "fenced"]

# What each prompt may name; "texts" is what stands between the marks.
NAMES: dict[str, frozenset[str]] = {
    "vanilla": frozenset(),
    "detect": frozenset({"subjects", "texts", "mark"}),
    "erase": frozenset({"subjects", "texts", "mark", "k", "target", "refusal"}),
    "critic": frozenset({"subjects", "texts", "mark", "k", "target"}),
    "ratings": frozenset({"texts", "mark"}),
    "compose": frozenset({"subjects", "texts", "mark"}),
    "choose": frozenset({"subjects", "texts", "mark"}),
    "again": frozenset({"problem"}),
}
ROLES = ("system", "user", "assistant")
_TURN = re.compile(rf"^--- ({'|'.join(ROLES)})[ \t]*$", re.MULTILINE)


class Prompts:
    """All prompts by name, as templates of turns.

    Args:
        texts: {name: the file's text}; those that are missing are the ones that ship.

    Raises:
        MethodError: an unknown name, a text without turns, or one that asks for what it isn't given.
    """

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        given = dict(texts or {})
        if odd := sorted({*given} - {*NAMES}):
            raise MethodError(f"{setting('prompts')}: there is no prompt {odd[0]!r}. Known: {', '.join(NAMES)}.")
        self.texts: dict[str, str] = {**_shipped(), **given}
        self._turns = {name: _turns(name, text) for name, text in self.texts.items()}

    @classmethod
    def of_folder(cls, folder: str | Path) -> Prompts:
        """From files "<name>.txt"; prompts that have none are those that ship.

        Raises:
            MethodError: no folder, no such file in it, or as the class.
        """
        place = Path(folder)
        if not place.is_dir():
            raise MethodError(
                f"{setting('prompts')} is {str(folder)!r}, which is no folder. Give one with <name>.txt files."
            )
        try:
            texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(place.glob("*.txt"))}
        except (OSError, UnicodeDecodeError) as error:
            raise MethodError(
                f"{setting('prompts')}: a file of {place} is no UTF-8 text that can be read ({error})."
            ) from None
        if not texts:
            raise MethodError(f"{setting('prompts')}: {place} has no .txt file. Known prompts: {', '.join(NAMES)}.")
        return cls(texts)

    def messages(self, name: str, **values: str) -> list[Message]:
        """A prompt's turns with the values filled in."""
        return [{"role": role, "content": text.substitute(values)} for role, text in self._turns[name]]


@lru_cache(maxsize=1)
def _shipped() -> dict[str, str]:
    folder = files(__package__).joinpath("prompts")
    return {name: folder.joinpath(f"{name}.txt").read_text(encoding="utf-8") for name in NAMES}


def _turns(name: str, text: str) -> list[tuple[str, Template]]:
    pieces = _TURN.split(text)
    turns = [(role, Template(body.strip())) for role, body in zip(pieces[1::2], pieces[2::2], strict=True)]
    if not turns or pieces[0].strip():
        raise MethodError(
            f"{setting('prompts')}: {name}.txt doesn't begin with a line '--- system' or '--- user'. Put one before each turn."
        )
    for _, template in turns:
        if not template.is_valid():
            raise MethodError(
                f"{setting('prompts')}: {name}.txt has a lone dollar sign. Write $$ for one that is meant."
            )
        if odd := sorted({*template.get_identifiers()} - NAMES[name]):
            known = ", ".join(f"${one}" for one in sorted(NAMES[name])) or "nothing"
            raise MethodError(f"{setting('prompts')}: {name}.txt asks for ${odd[0]}. It is given: {known}.")
    return turns


def fenced(texts: Mapping[str, str]) -> tuple[str, str]:
    """Texts one below another, each between two lines with a mark that is in none of them; returns them and the mark."""
    whole = "\n".join(texts.values())
    number, mark = 0, ""
    while not mark or mark in whole:
        mark = blake2b(f"{number} {whole}".encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()
        number += 1
    return "\n".join(f"<{mark} {name}>\n{text}\n</{mark}>" for name, text in texts.items()), mark
