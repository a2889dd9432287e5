"""What the agents' replies must be, and what is taken from them: a subject or None, k texts, k ratings, a letter.

A reply of another form raises `BadReply`, never with what the reply said: that may be what must not be shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from .subjects import Subjects

__all__ = ["BadReply", "Detected", "detection", "letter", "ratings", "selected", "variants"]

# Names of the subjects detected, empty where the reply names none of the list; None where nothing was detected.
Detected = tuple[str, ...] | None
LEAST, MOST = 1, 5  # ratings
_LIST = re.compile(r"\[[^\[\]]*\]")
_EDGES = " \t\r\n.,;:!?\"'`*_()[]{}<>«»“”‘’。、"


class BadReply(ValueError):
    """A reply that is not in the form asked for."""


def detection(reply: str, subjects: Subjects, *, official: bool = False) -> Detected:
    """Which subjects a reply names.

    "None" alone means none. Anything else means that something was detected, whether or not it is on the list.

    Args:
        official: take any reply that holds the letters "none" for none, as the official code does.
    """
    plain = reply.strip(_EDGES).casefold()
    if plain == "none" or (official and "none" in reply.casefold()):
        return None
    return tuple(subject.name for subject in subjects.mentioned(reply))


def variants(reply: str, k: int) -> list[str]:
    """The k texts of a reply {"response_list": [text, ...]}, whatever stands around it.

    Raises:
        BadReply: there is no such list, or it has another length or holds what is no text.
    """
    decoder, at = json.JSONDecoder(), reply.find("{")
    while at >= 0:
        try:
            found: Any = decoder.raw_decode(reply, at)[0]
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and isinstance(texts := found.get("response_list"), list):
            if len(texts) != k:
                raise BadReply(f"{len(texts)} texts where {k} were asked for")
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise BadReply("an entry that is no text")
            return [text.strip() for text in texts]
        at = reply.find("{", at + 1)
    raise BadReply("no JSON object with a response_list")


def ratings(reply: str, k: int) -> list[int]:
    """The last list of a reply, k whole numbers from 1 to 5.

    Raises:
        BadReply: there is none, or it has another length or other entries.
    """
    lists = _LIST.findall(reply)
    if not lists:
        raise BadReply("no list of ratings")
    try:
        values = json.loads(lists[-1])
    except ValueError:
        raise BadReply("a list of ratings that is none of numbers") from None
    if len(values) != k:
        raise BadReply(f"{len(values)} ratings for {k} responses")
    if not all(type(value) is int and LEAST <= value <= MOST for value in values):
        raise BadReply(f"a rating that is no whole number from {LEAST} to {MOST}")
    return list(values)


def selected(values: Sequence[int], j: int) -> list[int]:
    """The places of the j highest ratings, the highest first and equal ones in their order."""
    return sorted(range(len(values)), key=lambda i: -values[i])[:j]


def letter(reply: str, count: int) -> str:
    """The one letter of so many options that a reply names.

    Raises:
        BadReply: it names none, or several.
    """
    known = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]
    whole = reply.strip(_EDGES)
    if len(whole) == 1 and whole.upper() in known:
        return whole.upper()
    named = {*re.findall(rf"(?<!\w)([{known}])(?!\w)", reply)}
    if len(named) != 1:
        raise BadReply("no letter of the options" if not named else "several letters")
    return str(named.pop())
