"""Examples, sets of examples, and the forget / retain / holdout split every method and audit takes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import overload

from ...errors import DataError, notice, setting
from ...runs import hash_json
from ...runs.strict import strings_flaw as flaw

# Blank letters and signs, and marks that only change another character: their categories don't tell.
_UNSEEN = {"\u034f", "\u115f", "\u1160", "\u2800", "\u3164", "\uffa0", *map(chr, range(0xFE00, 0xFE10))}
_BESIDE = ("entity", "aliases", "premises")  # nothing is trained on them


def is_visible(text: str) -> bool:
    """Whether there is a character to see: not only blanks, controls and characters without width."""
    return any(unicodedata.category(one) not in ("Cc", "Cf", "Zs", "Zl", "Zp") and one not in _UNSEEN for one in text)


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of a text on one line, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


@dataclass(frozen=True)
class Example:
    """One thing a model may know: a question and its answer, an answer in a chat, or a plain text.

    Args:
        answer: what the model would say; for plain text, the text itself. Its tokens carry the loss.
        question: the user turn it answers; None for plain text.
        history: earlier chat turns as (role, content), a system prompt included.
        paraphrased_question, paraphrased_answer: the same fact in other words.
        perturbed_answers: wrong answers of the same form (TOFU's truth ratio).
        marked: of a plain text, the characters that are meant where it is not all of it, as [start, end) pairs: secrets in a
            file that is to stay otherwise.
        index: stable row number within its set; pairings and caches go by it.
        source: where the row came from, "forget.jsonl:3", for error messages.
        entity: whom or what the fact is about; rows of one entity are related, and intervals are drawn over entities.
        aliases: other spellings of the answer, which a hint must not hold either.
        premises: statements that the answer follows from, the answer itself not among them.
    """

    answer: str
    question: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    marked: tuple[tuple[int, int], ...] = ()
    index: int = 0
    source: str = ""
    entity: str | None = None
    aliases: tuple[str, ...] = ()
    premises: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether this is plain text, without a question before it."""
        return self.question is None

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two rows the same row, for overlap checks."""
        return (self.history, self.question, self.answer if self.is_text else None)

    @property
    def texts(self) -> Iterator[str]:
        """Every string of the row."""
        yield from (self.answer, *self.perturbed_answers, *self.aliases, *self.premises)
        beside = (self.question, self.paraphrased_question, self.paraphrased_answer, self.entity)
        yield from (text for text in beside if text)
        yield from (text for turn in self.history for text in turn)

    def ask(self, question: str | None = None, answer: str | None = None) -> Example:
        """The same row with another question or answer, as metrics on paraphrases need it."""
        return replace(
            self,
            question=self.question if question is None else question,
            answer=self.answer if answer is None else answer,
            marked=self.marked if answer is None else (),
        )


class Examples(Sequence[Example]):
    """An immutable, named sequence of examples with a content hash. Rows are numbered from 0 by position."""

    def __init__(self, rows: Iterable[Example], name: str = "examples") -> None:
        self.name = name
        self._rows = tuple(replace(row, index=i) for i, row in enumerate(rows))
        for row in self._rows:
            where = row.source or f"{name} row {row.index}"
            for part, text in (("answer", row.answer), ("question", row.question)):
                if text is not None and not text.strip():
                    raise DataError(f"{where}: the {part} is empty. Remove the row or fill it.")
                if text is not None and not is_visible(text):
                    raise DataError(
                        f"{where}: the {part} has no visible character ({text!r:.60}). Remove the row or fill it."
                    )
            if any(not 0 <= start < end <= len(row.answer) for start, end in row.marked):
                raise DataError(f"{where} marks characters outside its text of {len(row.answer)}. Mend its spans.")
            if why := next(filter(None, map(flaw, row.texts)), None):
                raise DataError(f"{where} holds {why}. Remove the row or mend it.")

    @overload
    def __getitem__(self, item: int) -> Example: ...
    @overload
    def __getitem__(self, item: slice) -> Examples: ...
    def __getitem__(self, item: int | slice) -> Example | Examples:
        return Examples(self._rows[item], self.name) if isinstance(item, slice) else self._rows[item]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Example]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"Examples({self.name!r}, {len(self)} rows)"

    @cached_property
    def hash(self) -> str:
        """Content hash of what the rows say; where they came from and whom they are about is no part of it."""
        contents = [{k: v for k, v in {**asdict(row), "source": ""}.items() if k not in _BESIDE} for row in self._rows]
        for content in contents:
            if not content["marked"]:
                del content["marked"]  # hashes of rows without marks are as they always were
        return hash_json(contents)

    @property
    def has_perturbed(self) -> bool:
        """Whether every row has wrong answers, as the truth ratio needs."""
        return bool(self._rows) and all(row.perturbed_answers for row in self._rows)


def first_overlap(forget: Examples, other: Examples) -> list[Example]:
    """The forget rows that also stand in `other`: same question (and chat), or the same text."""
    there = {row.key for row in other}
    return [row for row in forget if row.key in there]


def repeats(rows: Examples) -> list[tuple[Example, Example]]:
    """The rows that stand there more than once, with answer and history: each later one with its first."""
    first: dict[tuple[object, ...], Example] = {}
    pairs = [(row, first.setdefault((row.history, row.question, row.answer), row)) for row in rows]
    return [(row, earlier) for row, earlier in pairs if row is not earlier]


@dataclass(frozen=True)
class ForgetSplit:
    """What to forget, what to keep, and what was never seen.

    Args:
        forget: the rows to remove.
        retain: rows whose knowledge must stay; may be trained on.
        holdout: rows like the forget set that the model was never trained on (membership attacks).
        evaluation: further named sets, measured but never trained on ("neighbours", "general", "real_authors").
        allow_overlap: turn shared forget and retain rows from an error into a warning.
    """

    forget: Examples
    retain: Examples | None = None
    holdout: Examples | None = None
    evaluation: Mapping[str, Examples] = field(default_factory=dict)
    allow_overlap: bool = False
    name: str = "split"

    def __post_init__(self) -> None:
        if len(self.forget) == 0:
            raise DataError("the forget set is empty. Give at least one row to forget.")
        if self.retain is not None and len(self.retain) == 0:
            raise DataError("the retain set is empty. Leave it out, or give at least one row to keep.")
        for kind, rows in (("retain", self.retain), ("holdout", self.holdout)):
            shared = first_overlap(self.forget, rows) if rows is not None else []
            if not shared:
                continue
            first = shared[0]
            text = excerpt(first.question or first.answer)
            message = (
                f"forget and {kind} share {len(shared)} rows (first: {first.source or f'row {first.index}'}, "
                f'"{text}"). Remove them from one file, or pass {setting("allow_overlap", True)}.'
            )
            if not self.allow_overlap:
                raise DataError(message)
            notice(message)

    @property
    def hash(self) -> str:
        """Content hash over all parts."""
        parts = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout, **self.evaluation}
        return hash_json({name: rows.hash for name, rows in parts.items() if rows is not None})
