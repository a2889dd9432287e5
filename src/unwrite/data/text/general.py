"""General rows that ship: what a method keeps in place where the user gave nothing to keep.

Facts that any model should go on knowing: the landmarks, capitals and general knowledge that `landmarks` retains (its
test halves stay out), and the world facts and real authors of `authors`. Rows about what is to be forgotten are left
out: rehearsing them would bring it back.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ...errors import notice, setting
from .authors import authors
from .examples import Example, Examples, ForgetSplit
from .landmarks import landmarks

__all__ = ["general_rows", "with_general_rows"]

_WORD = re.compile(r"\w+")
# Words that say nothing about what a question is of, however they are written.
_ASKING = {
    "a", "about", "an", "and", "are", "as", "at", "by", "can", "complete", "did", "do", "does", "fill", "first",
    "for", "found", "from", "give", "given", "had", "has", "have", "how", "in", "is", "it", "its", "kind",
    "known", "large", "largest", "made", "make", "many", "me", "most", "much", "name", "named", "of", "on",
    "one", "or", "same", "tell", "than", "that", "the", "their", "there", "these", "they", "this", "to", "type",
    "use", "used", "was", "were", "what", "when", "where", "which", "while", "who", "whom", "whose", "why",
    "will", "with", "word", "would", "you",
}  # fmt: skip


def general_rows(forget: Examples | None = None) -> Examples:
    """Questions of general knowledge with their answers, each question once.

    Args:
        forget: rows that are to be forgotten; what asks about the same things as one of them is left out.
    """
    shipped, written = landmarks(), authors()
    assert shipped.retain is not None
    rows = [*shipped.retain, *written.evaluation["world_facts"], *written.evaluation["real_authors"]]
    unique = {_plain(row): row for row in reversed(rows)}
    taken = [row for row in reversed(unique.values()) if forget is None or not _asked_in(row, forget)]
    return Examples(taken, "general")


def with_general_rows(split: ForgetSplit) -> ForgetSplit:
    """The split with the general rows to keep where it has no retain set, and a notice that says so."""
    if split.retain is not None:
        return split
    kept, every = general_rows(split.forget), len(general_rows())
    if not len(kept):
        return split
    out = f"; {every - len(kept)} more are about what is to be forgotten and stay out" if len(kept) < every else ""
    notice(
        f"there is no retain set, so {len(kept)} rows of general knowledge that ship with unwrite are kept in its "
        f"place{out}. Rows of your own domain keep more of it: give them with {setting('retain')}."
    )
    return replace(split, retain=kept)


def _plain(row: Example) -> tuple[str, ...]:
    return tuple(_WORD.findall((row.question or row.answer).lower()))


def _asked_in(row: Example, forget: Examples) -> bool:
    """Whether a forget row holds every telling word of the question."""
    subject = _subject(row)
    return any(subject <= _words(other) for other in forget)


def _subject(row: Example) -> set[str]:
    """The names in a question, or, where there are none, its other words."""
    text = row.question or row.answer
    words = [word for word in _WORD.findall(text) if word.lower() not in _ASKING]
    names = {word.lower() for word in words if not word.islower()}
    return names or {word.lower() for word in words}


def _words(row: Example) -> set[str]:
    texts = (row.question or "", row.answer, *(text for _, text in row.history))
    return {word.lower() for text in texts for word in _WORD.findall(text)}
