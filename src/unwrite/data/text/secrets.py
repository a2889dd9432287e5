"""Secrets in source code: where they stand, which tokens they are, and texts without them.

    detect_secrets('key = "AKIA..."')  ->  [Secret(KEY, 7, 27)]

E-mail addresses, IP addresses and keys, as CodeEraser looks for them (arXiv 2509.13755; patterns in `secret_patterns.py`).
What was found is never shown: a `Secret` prints as its kind and its place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ...errors import DataError
from .examples import Example, Examples
from .python_code import Literals, literals_in
from .rendering import where
from .secret_patterns import SecretTag, addresses, emails, is_placeholder, keys

__all__ = ["Secret", "detect_secrets", "mark_secrets", "redacted"]

_TOKEN = re.compile(r"[A-Za-z0-9_\-+/=.~]+")
_RANK: dict[SecretTag, int] = {"KEY": 0, "EMAIL": 1, "IP_ADDRESS": 2}
LONGEST = 512  # characters of a literal that is taken whole as a key


@dataclass(frozen=True)
class Secret:
    """One secret in a text. It prints without its value.

    Args:
        tag: EMAIL, IP_ADDRESS or KEY.
        start, end: its characters, [start, end).
        value: the secret itself.
    """

    tag: SecretTag
    start: int
    end: int
    value: str = field(repr=False)

    @property
    def digest(self) -> str:
        """Eight digits by which two occurrences can be seen to be the same; SHA-256, so not for what can be guessed."""
        return hashlib.sha256(self.value.encode("utf-8", "surrogatepass")).hexdigest()[:8]

    def __str__(self) -> str:
        return f"{self.tag} of {self.end - self.start} characters at {self.start}"


def detect_secrets(text: str) -> list[Secret]:
    """The secrets in a text, in order, none overlapping another.

    Where the text is Python, they stand in string literals and comments alone (`a@b.size` is no address), a key ends where
    its literal ends, and a literal that is one token is a key as a whole. Placeholders, private addresses and example mails
    are left out.

    Raises:
        MissingExtra: detect-secrets or tree-sitter is not installed.
    """
    code = literals_in(text)
    found: list[Secret] = []
    for start, end, known in keys(text):
        low, high = _bounded(text, start, end, code, whole=known and end - start < LONGEST)
        if high > low and not is_placeholder(text[low:high]):
            found.append(Secret("KEY", low, high, text[low:high]))
    for tag, spans in (("EMAIL", emails(text)), ("IP_ADDRESS", addresses(text))):
        found += [
            Secret(tag, start, end, text[start:end])  # type: ignore[arg-type]
            for start, end in spans
            if code is None or code.around(start)
        ]
    return _apart(found)


def _bounded(text: str, start: int, end: int, code: Literals | None, *, whole: bool) -> tuple[int, int]:
    """A key's characters within the literal it stands in; all of a literal that is one token."""
    around = None if code is None else code.around(start)
    if around is None:
        return start, end
    low, high = around
    if whole and high - low <= LONGEST and _TOKEN.fullmatch(text, low, high):
        return low, high
    return start, min(end, high)


def _apart(found: list[Secret]) -> list[Secret]:
    """Of overlapping ones the key, and of two of a kind the longer."""
    chosen: list[Secret] = []
    for one in sorted(found, key=lambda one: (_RANK[one.tag], one.start - one.end, one.start)):
        if all(one.end <= other.start or other.end <= one.start for other in chosen):
            chosen.append(one)
    return sorted(chosen, key=lambda one: one.start)


def mark_secrets(rows: Examples) -> Examples:
    """The rows with their secrets marked as what is to be forgotten; rows that are marked already stay as they are.

    Raises:
        DataError: a row is no plain text, or has no secret; its place is named.
        MissingExtra: detect-secrets or tree-sitter is not installed.
    """
    return Examples((row if row.marked else replace(row, marked=_spans(row)) for row in rows), rows.name)


def _spans(row: Example) -> tuple[tuple[int, int], ...]:
    if not row.is_text:
        raise DataError(
            f"{where(row)} is a question with an answer; secrets are looked for in plain texts. Give the files."
        )
    if "\0" in row.answer:
        raise DataError(f"{where(row)} holds a zero byte, so it is no source code. Leave it out.")
    if found := detect_secrets(row.answer):
        return tuple((one.start, one.end) for one in found)
    raise DataError(
        f"{where(row)} holds no e-mail address, IP address or key to forget. Leave it out, or mark what is meant."
    )


def redacted(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text with every character of the spans but blanks as a block, to be shown."""
    characters = list(text)
    for start, end in spans:
        characters[start:end] = ["█" if one.strip() else one for one in characters[start:end]]
    return "".join(characters)
