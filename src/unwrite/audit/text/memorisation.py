"""How much of an answer the model completes by itself, read from one teacher-forced pass.

Extraction strength: ES = 1 - k/N with k the shortest prefix after which every following token is the model's own
first choice. Exact memorisation: the fraction of answer tokens that are. Both follow open-unlearning: the last label
(the end token) is left out, and k = N-1 is the last prefix tried, so a fully wrong answer scores 1/N, not 0.
(TOFU, arXiv 2401.06121; exact memorisation: Tirumala et al., arXiv 2205.10770)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..base import Better, Score
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
