"""The subjects that must not be spoken of: how they are written, where a text names one, and which are near a text.

Names are compared by the words of `scoring.words`, which fold casing, accents and look-alikes of every script, at whole words. In
scripts without blanks a character is a word, and a Korean particle may follow a name.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .....errors import MethodError, setting
from .....scoring.words import words_of

__all__ = ["Subject", "Subjects"]

BETWEEN = "|"  # a subject from its other names
LEAST = 2  # letters or digits of a name
_NONE = "none"  # what an agent says where there is no subject

Run = tuple[str, ...]  # a name as the forms of its words


@dataclass(frozen=True)
class Subject:
    """Somebody or something to be unlearned.

    Args:
        name: as agents are told it.
        aliases: other names of the same.
    """

    name: str
    aliases: tuple[str, ...] = ()

    @classmethod
    def parsed(cls, line: str) -> Subject:
        """From "name | other name | ...".

        Raises:
            MethodError: a name of fewer than two letters, or of nothing but words that every text has.
        """
        names = [part.strip() for part in line.split(BETWEEN)]
        for name in names:
            if sum(one.isalnum() for one in name) < LEAST or not words_of(name):
                raise MethodError(
                    f"{setting('subjects')}: {line!r} has the name {name!r}, shorter than {LEAST} letters, which any text "
                    "would hold. Write the name in full, or leave it out."
                )
            if _is_common(name):
                raise MethodError(
                    f"{setting('subjects')}: {name!r} is a stop word, which any text would hold. Name what is to be unlearned."
                )
        return cls(names[0], tuple(names[1:]))

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.name, *self.aliases)

    @property
    def listed(self) -> str:
        """As a prompt lists it."""
        return f"{self.name} (also: {', '.join(self.aliases)})" if self.aliases else self.name


def _is_common(name: str) -> bool:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return all(word.form in ENGLISH_STOP_WORDS or word.form == _NONE for word in words_of(name))


class Subjects:
    """A list of subjects, each once.

    Args:
        lines: the subjects, "name | other name | ..." each.

    Raises:
        MethodError: no subject, or one that `Subject.parsed` refuses.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        if not lines:
            raise MethodError(
                f"{setting('subjects')} is empty, so there is nothing to unlearn. Name whom or what answers must not speak of."
            )
        unique = {_run(subject.name): subject for subject in map(Subject.parsed, reversed(lines))}
        self.all: tuple[Subject, ...] = tuple(reversed(unique.values()))
        self._by_first: dict[str, list[tuple[Run, int]]] = defaultdict(list)
        self._joined: list[tuple[Run, int]] = []  # whose last word may have a particle behind it
        for number, subject in enumerate(self.all):
            for run in map(_run, subject.names):
                if _is_hangul(run[-1][-1]):
                    self._joined.append((run, number))
                else:
                    self._by_first[run[0]].append((run, number))

    def __len__(self) -> int:
        return len(self.all)

    def mentioned(self, text: str) -> tuple[Subject, ...]:
        """The subjects that a text names, in the list's order."""
        forms = [word.form for word in words_of(text)]
        return tuple(self.all[number] for number in sorted({*self._standing(forms)}))

    def flagged(self, text: str) -> bool:
        """Whether a text names a subject."""
        return next(self._standing([word.form for word in words_of(text)]), None) is not None

    def _standing(self, forms: list[str]) -> Iterator[int]:
        for i, form in enumerate(forms):
            for run, number in self._by_first.get(form, ()):
                if tuple(forms[i : i + len(run)]) == run:
                    yield number
            for run, number in self._joined:
                here = tuple(forms[i : i + len(run)])
                if here[:-1] == run[:-1] and len(here) == len(run) and here[-1].startswith(run[-1]):
                    yield number

    def nearest(self, text: str, limit: int | None) -> tuple[Subject, ...]:
        """At most so many subjects: those named, then those that share words with a text, rare ones first, then most pieces of three letters.

        A subject that a text describes without any of its words may be left out.
        """
        if limit is None or len(self.all) <= limit:
            return self.all
        named = {subject.name for subject in self.mentioned(text)}
        words, pieces = {word.form for word in words_of(text)}, _pieces(text)

        own = {subject: {form for name in subject.names for form in _run(name)} for subject in self.all}
        common = Counter(form for forms in own.values() for form in forms)

        def score(subject: Subject) -> tuple[bool, float, float]:
            threes = _pieces(" ".join(subject.names))
            shared = sum(1 / common[form] for form in own[subject] & words)
            return subject.name in named, shared, len(threes & pieces) / max(1, len(threes))

        first = {*sorted(self.all, key=score, reverse=True)[:limit]}  # stable
        return tuple(subject for subject in self.all if subject in first)


def as_list(subjects: Sequence[Subject]) -> str:
    """Subjects as a prompt has them: a JSON list."""
    return json.dumps([subject.listed for subject in subjects], ensure_ascii=False)


def _run(name: str) -> Run:
    return tuple(word.form for word in words_of(name))


def _is_hangul(character: str) -> bool:
    return unicodedata.name(character, "").startswith("HANGUL")


def _pieces(text: str) -> set[str]:
    plain = " ".join(word.form for word in words_of(text))
    return {plain[i : i + 3] for i in range(len(plain) - 2)}
