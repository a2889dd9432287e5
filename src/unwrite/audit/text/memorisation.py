"""How much of an answer the model completes by itself, read from one teacher-forced pass.

Extraction strength: ES = 1 - k/N with k the shortest prefix after which every following token is the model's own
first choice. Exact memorisation: the fraction of answer tokens that are. Both follow open-unlearning: the last label
(the end token) is left out, and k = N-1 is the last prefix tried, so a fully wrong answer scores 1/N, not 0.
(TOFU, arXiv 2401.06121; exact memorisation: Tirumala et al., arXiv 2205.10770)

Of secrets in source files the same is asked of their tokens alone, each secret behind what stands before it: memorisation
accuracy and extraction likelihood, defined in `scoring/extraction.py` (arXiv 2509.13755).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Literal, get_args

from ...data.text.encoding import IGNORE, Encoded
from ...data.text.examples import Examples, ForgetSplit
from ...data.text.secrets import mark_secrets
from ...errors import MethodError, setting, unknown
from ...scoring import end_ids, extraction, secret_passages
from ..base import Better, Panel, Score
from .context import TextContext
from .metric import TextMetric
from .rows import rows_of


def extraction_strength(correct: Sequence[bool]) -> float | None:
    """Returns ES of one answer, in [1/N, 1]. correct: [N], whether each token was the first choice, end token left out."""
    if not correct:
        return None
    k = len(correct) - 1
    if not correct[k]:
        return 1 - k / len(correct)
    while k > 0 and correct[k - 1]:
        k -= 1
    return 1 - k / len(correct)


def exact_memorisation(correct: Sequence[bool]) -> float | None:
    """Returns the fraction of tokens that were the model's first choice. correct: [N], end token left out."""
    return sum(correct) / len(correct) if correct else None


@dataclass(frozen=True)
class Memorisation(TextMetric):
    """Base of what is read off the tokens that were the model's first choice.

    Args:
        on: the set.
    """

    on: str = "forget"
    better: ClassVar[Better] = "lower"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def _of(self, context: TextContext, rule: Callable[[Sequence[bool]], float | None]) -> Score:
        scores = context.scores(rows_of(context.split, self.on))
        return Score.mean(self.name, [rule(score.correct[:-1]) for score in scores], self.better)


@dataclass(frozen=True)
class ExtractionStrength(Memorisation):
    """Mean extraction strength of a set's answers."""

    about: ClassVar[str] = "Share of each answer the model completes alone once given its beginning."

    @property
    def name(self) -> str:
        return f"{self.on}_extraction_strength"

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        return self._of(context, extraction_strength)


@dataclass(frozen=True)
class ExactMemorisation(Memorisation):
    """Mean exact memorisation of a set's answers."""

    about: ClassVar[str] = "Share of answer tokens that are the model's first choice."

    @property
    def name(self) -> str:
        return f"{self.on}_exact_memorisation"

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        return self._of(context, exact_memorisation)


Tokens = Literal["secrets", "rest", "all"]


def marked_rows(split: ForgetSplit, on: str) -> Examples:
    """A set's rows with their secrets marked; where some are marked already, as they are.

    Raises:
        DataError: nothing is marked, and a row is no plain text or holds no secret.
    """
    rows = rows_of(split, on)
    return rows if any(row.marked for row in rows) else mark_secrets(rows)


@dataclass(frozen=True)
class MemorisationAccuracy(TextMetric):
    """Mean share of tokens that are the model's first choice: of secrets, of the code around them, or of all.

    Of a secret, its first 32 tokens are read behind the 128 before it; a file's value is the mean over its secrets.

    Args:
        on: the set.
        of: "secrets", "rest" (the other tokens of files with secrets) or "all".
    """

    on: str = "forget"
    of: Tokens = "all"

    def __post_init__(self) -> None:
        if self.of not in get_args(Tokens):
            raise MethodError(unknown(setting("of"), str(self.of), get_args(Tokens)))

    @property
    def better(self) -> Better:
        return "lower" if self._to_go else "higher"

    @property
    def panel(self) -> Panel:
        return "forgotten" if self._to_go else "kept"

    @property
    def _to_go(self) -> bool:
        return self.on == "forget" and self.of != "rest"

    @property
    def name(self) -> str:
        part = {"secrets": "secret_", "rest": "code_", "all": ""}[self.of]
        return f"{self.on}_{part}accuracy"

    @property
    def about(self) -> str:
        what = {"secrets": "a secret's tokens", "rest": "the tokens around the secrets", "all": "a text's tokens"}[
            self.of
        ]
        return f"Share of {what} that are the model's first choice."

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        if self.of == "secrets":
            return Score.mean(self.name, _of_secrets(context, self.on, None), self.better)
        rows = rows_of(context.split, self.on) if self.of == "all" else marked_rows(context.split, self.on)
        encoded = context.encoded(rows)
        scored = iter(context.score_encoded([window for row in encoded for window in row]))
        values: list[float | None] = []
        for windows in encoded:
            chosen: list[bool] = []
            for window in windows:
                kept = [not mark for mark in _marks(window)] if self.of == "rest" else [True] * window.targets
                chosen += [right for right, keep in zip(next(scored).correct, kept, strict=True) if keep]
            values.append(exact_memorisation(chosen))
        return Score.mean(self.name, values, self.better)


@dataclass(frozen=True)
class ExtractionLikelihood(TextMetric):
    """Mean extraction likelihood of secrets: how many of their n-grams the model writes, whatever start it is given.

    Args:
        n: n-gram length, >= 1; a shorter secret counts 1 if it is written whole, else 0.
        on: the set.
    """

    n: int = 10
    on: str = "forget"
    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = "Share of a secret's n-grams that the model writes by itself, over all places to start from."

    def __post_init__(self) -> None:
        if self.n < 1:
            raise MethodError(f"{setting('n')} is {self.n}; an n-gram has at least 1 token.")

    @property
    def name(self) -> str:
        return f"{self.on}_secret_el{self.n}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        return Score.mean(self.name, _of_secrets(context, self.on, self.n), self.better)


def _marks(window: Encoded) -> list[bool]:
    """Whether each predicted token of a window is marked."""
    marks = window.marked or [False] * len(window.labels)
    return [mark for mark, label in zip(marks[1:], window.labels[1:], strict=True) if label != IGNORE]


def _of_secrets(context: TextContext, on: str, n: int | None) -> list[float | None]:
    """A value a row, the mean over its secrets: accuracy, or likelihood of n-grams. What is kept on disk are figures alone."""
    encoded = context.encoded(marked_rows(context.split, on))
    passages = [[one for window in windows for one in secret_passages(window)] for windows in encoded]
    flat = [one for row in passages for one in row]
    pad_id, ends = int(context.tokenizer.pad_token_id), end_ids(context.model, context.tokenizer)

    def compute() -> list[float]:
        ns = () if n is None else (n,)
        measured = extraction(context.model, flat, ns, pad_id=pad_id, ends=ends, batch_size=4 * context.batch_size)
        return measured.accuracy if n is None else measured.likelihood[n]

    key = [[[one.prefix, one.target] for one in flat], n, ends]
    values = iter(context.remember("extraction", key, compute) if flat else [])
    of_rows = [[next(values) for _ in row] for row in passages]
    return [fmean(row) if row else None for row in of_rows]
