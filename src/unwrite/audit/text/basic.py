"""Answers, utility and fluency: did the forget answers go, did the rest stay, does the model still write sentences?

Probability is TOFU's exp(-mean token loss) of the reference answer, end token included; ROUGE-L recall compares
greedy answers with it (arXiv 2401.06121). Fluency is judged by repetition and by the model before unlearning, which
still knows what language looks like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...data.text.encoding import encode_text
from ...data.text.examples import Example, ForgetSplit
from ...scoring import rouge_l
from ..base import Better, Panel, Score, harmonic_mean
from .context import TextContext
from .metric import TextMetric
from .rows import has_rows, kept_sets, rows_of


@dataclass(frozen=True)
class SetMetric(TextMetric):
    """Base of what is measured on one set of rows.

    Args:
        on: the set: forget, retain, or an evaluation set.
        limit: at most this many evenly spaced rows; None takes all.
    """

    on: str = "forget"
    limit: int | None = None

    @property
    def better(self) -> Better:
        return "lower" if self.on.startswith("forget") else "higher"

    @property
    def panel(self) -> Panel:
        return "forgotten" if self.on.startswith("forget") else "kept"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def rows(self, split: ForgetSplit) -> Sequence[Example]:
        return rows_of(split, self.on, self.limit)

    def _note(self, split: ForgetSplit) -> str:
        total = len(rows_of(split, self.on))
        return f"{self.limit} of {total} rows." if self.limit and self.limit < total else ""


@dataclass(frozen=True)
class Probability(SetMetric):
    """Mean probability per token of the reference answers: exp(-nll / tokens), in [0, 1]."""

    about: ClassVar[str] = "How likely the model finds each word of the reference answer."

    @property
    def name(self) -> str:
        return f"{self.on}_probability"

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        values = [math.exp(-score.mean_nll) for score in context.scores(self.rows(context.split))]
        return Score.mean(self.name, values, self.better, self._note(context.split))


@dataclass(frozen=True)
class RougeRecall(SetMetric):
    """Mean ROUGE-L recall (stemmed) of greedy answers, in [0, 1]."""

    about: ClassVar[str] = "How much of the reference answer appears in what the model says."

    @property
    def name(self) -> str:
        return f"{self.on}_rouge"

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        pairs = context.answers(self.rows(context.split))
        values = [rouge_l(ref, text, stemmer=True, words=context.words).recall for ref, text in pairs]
        return Score.mean(self.name, values, self.better, self._note(context.split))


@dataclass(frozen=True)
class ParaphraseProbability(TextMetric):
    """As `Probability`, with question and answer in other words.

    Reads the rows' `paraphrased_question` and `paraphrased_answer`, else the evaluation set `forget_paraphrases`.
    """

    better: ClassVar[Better] = "lower"
    about: ClassVar[str] = "The same, with the question and answer in other words."
    name: ClassVar[str] = "forget_paraphrase_probability"

    def applies(self, split: ForgetSplit) -> bool:
        return has_rows(split, "forget_paraphrases") or any(map(_paraphrase, split.forget))

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        own = [_paraphrase(row) for row in context.split.forget]
        rows = [row for row in own if row is not None]
        if not rows:
            rows = list(rows_of(context.split, "forget_paraphrases"))
            own = list(rows)
        scored = iter(context.scores(rows))
        values = [None if row is None else math.exp(-next(scored).mean_nll) for row in own]
        return Score.mean(self.name, values, self.better)


def _paraphrase(row: Example) -> Example | None:
    if row.paraphrased_question is None and row.paraphrased_answer is None:
        return None
    return row.ask(row.paraphrased_question, row.paraphrased_answer)


@dataclass(frozen=True)
class Utility(TextMetric):
    """Harmonic mean of probability and ROUGE-L recall over the kept sets: one bad number pulls it down."""

    limit: int | None = None
    panel: ClassVar[Panel] = "kept"
    about: ClassVar[str] = "What stayed, in one number: harmonic mean of all rows of this part."
    name: ClassVar[str] = "utility"

    def applies(self, split: ForgetSplit) -> bool:
        return bool(kept_sets(split))

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        names = kept_sets(context.split)
        parts = [metric(on, self.limit)(context).value for on in names for metric in (Probability, RougeRecall)]
        return Score(self.name, harmonic_mean([p or 0.0 for p in parts]), [], "higher", f"Over: {', '.join(names)}.")


def repetition(tokens: Sequence[int]) -> float:
    """Returns 1 - distinct / all 3-grams, in [0, 1); 0 for fewer than three tokens."""
    grams = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Repetition(TextMetric):
    """Mean share of repeated token 3-grams in the greedy answers to the forget questions; empty answers have none."""

    better: ClassVar[Better] = "lower"
    panel: ClassVar[Panel] = "fluency"
    about: ClassVar[str] = "Share of three-token sequences that are repeats; near 1 is stuttering."
    name: ClassVar[str] = "forget_repetition"

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        values: list[float | None] = []
        for _, text in context.answers(context.split.forget):
            ids = context.tokenizer(text, add_special_tokens=False)["input_ids"]
            values.append(repetition(ids) if text else None)
        return Score.mean(self.name, values, self.better, _empty(values))


@dataclass(frozen=True)
class Perplexity(TextMetric):
    """The before model's perplexity of the answers given to the forget questions.

    value: exp(mean over answers of mean token nll); per_example: each answer's own.
    """

    better: ClassVar[Better] = "lower"
    panel: ClassVar[Panel] = "fluency"
    about: ClassVar[str] = "How odd the new answers look to the original model; word salad is in the thousands."
    name: ClassVar[str] = "forget_perplexity"
    roles: ClassVar[tuple[str, ...]] = ("before",)

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        forget = context.split.forget
        texts = [text for _, text in context.answers(forget)]
        rows = [row.ask(answer=text) for row, text in zip(forget, texts, strict=True)]
        judged = [row for row in rows if self._long_enough(row, context)]
        losses = dict(zip(map(id, judged), (s.mean_nll for s in references["before"].scores(judged)), strict=True))
        values = [math.exp(min(losses[id(row)], 700)) if id(row) in losses else None for row in rows]
        if not losses:
            return Score(self.name, None, values, self.better, "Every answer was empty.")
        value = math.exp(min(float(np.mean(list(losses.values()))), 700))
        return Score(self.name, value, values, self.better, _empty(values))

    def _long_enough(self, row: Example, context: TextContext) -> bool:
        if not row.answer.strip():
            return False
        return not row.is_text or len(encode_text(row.answer, context.tokenizer)) >= 2


def _empty(values: Sequence[float | None]) -> str:
    empty = sum(v is None for v in values)
    return f"{empty} of {len(values)} answers were empty." if empty else ""
