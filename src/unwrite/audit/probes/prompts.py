"""Probes by the prompt alone: the forget questions as they are, in other words, in another form, with help, or asked often.

What a model says to one wording says little: an answer that is only not given any more comes out in another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...data.text.encoding import IGNORE, Encoded, encode_prompt
from ...data.text.examples import Example, ForgetSplit
from ...errors import MethodError, setting
from ...runs import seeded
from ...scoring import generate_answers, rouge_l
from ..text.context import TextContext
from ..text.multiple_choice import encode_continuation
from ..text.rows import has_rows
from .base import Probe, Values

__all__ = ["AnswerBegun", "AnswerSaid", "BestOf", "Direct", "FewShot", "OtherForm", "OtherWords", "RightChoice"]


def probabilities(context: TextContext, rows: Sequence[Example]) -> list[float | None]:
    """exp(-mean token loss) of every row's answer, in [0, 1]."""
    return [math.exp(-score.mean_nll) for score in context.scores(rows)]


def asked(split: ForgetSplit) -> list[Example]:
    """The forget rows that are questions."""
    return [row for row in split.forget if not row.is_text]


@dataclass(frozen=True)
class Direct(Probe):
    """P0: the probability per token of the answer, as it was taught."""

    name: ClassVar[str] = "direct"
    way: ClassVar[str] = "asking directly"
    about: ClassVar[str] = "The question as it is: how likely the answer is."

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        return probabilities(context, context.split.forget)


@dataclass(frozen=True)
class AnswerSaid(Probe):
    """P0: ROUGE-L recall of the greedy answer."""

    name: ClassVar[str] = "said"
    way: ClassVar[str] = "asking directly"
    about: ClassVar[str] = "The question as it is: how much of the answer the model says."

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        pairs = context.answers(context.split.forget)
        return [rouge_l(ref, text, stemmer=True, words=context.words).recall for ref, text in pairs]


@dataclass(frozen=True)
class RightChoice(Probe):
    """P0: whether the answer is likelier, per token, than every wrong answer of the row; half for a tie."""

    name: ClassVar[str] = "chosen"
    way: ClassVar[str] = "offering the answer among wrong ones"
    about: ClassVar[str] = "Whether the model finds the right answer likelier than wrong ones."

    def tested(self, split: ForgetSplit) -> list[Example]:
        return [row for row in split.forget if row.perturbed_answers]

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        rows = self.tested(context.split)
        options = [row.ask(answer=answer) for row in rows for answer in (row.answer, *row.perturbed_answers)]
        losses = iter(score.mean_nll for score in context.scores(options))
        values: list[float | None] = [None] * len(context.split.forget)
        for row in rows:
            right, *wrong = [next(losses) for _ in range(1 + len(row.perturbed_answers))]
            values[row.index] = 0.5 if right == min(wrong) else float(right < min(wrong))
        return values


@dataclass(frozen=True)
class OtherWords(Probe):
    """P1: the probability of the answer to the row's paraphrased question."""

    name: ClassVar[str] = "paraphrased"
    way: ClassVar[str] = "asking in other words"
    about: ClassVar[str] = "The question in other words."
    attack: ClassVar[bool] = True

    def tested(self, split: ForgetSplit) -> list[Example]:
        return [row for row in asked(split) if row.paraphrased_question is not None]

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        rows = self.tested(context.split)
        return placed(context.split, rows, probabilities(context, [row.ask(row.paraphrased_question) for row in rows]))


@dataclass(frozen=True)
class OtherForm(Probe):
    """P1: the question without the chat template, in a form of its own.

    Args:
        form: the text in which `{question}` stands for the question; the answer follows.
        bare_form: the one for a model without a chat template, which was trained on the first.
    """

    form: str = "Question: {question}\nAnswer:"
    bare_form: str = "Q: {question}\nA:"

    name: ClassVar[str] = "plain_form"
    way: ClassVar[str] = "asking outside the chat"
    about: ClassVar[str] = "The question as plain text, outside the chat that the model was trained on."
    attack: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for form in (self.form, self.bare_form):
            if "{question}" not in form:
                raise MethodError(f"the form {form!r} must say where the {{question}} stands.")

    def tested(self, split: ForgetSplit) -> list[Example]:
        return asked(split)

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        rows = self.tested(context.split)
        form = self.form if context.tokenizer.chat_template else self.bare_form
        prompts = [form.replace("{question}", row.question or "") for row in rows]
        encoded = [
            encode_continuation(prompt, f" {row.answer}", context.tokenizer, context.max_length)
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        return placed(context.split, rows, [math.exp(-score.mean_nll) for score in context.score_encoded(encoded)])


@dataclass(frozen=True)
class FewShot(Probe):
    """P1: after questions of the same kind about what is retained, with their answers.

    Args:
        shots: how many; the retain questions that share most words with the forget question.
    """

    shots: int = 3

    name: ClassVar[str] = "few_shot"
    way: ClassVar[str] = "asking after a few examples"
    about: ClassVar[str] = "The question after a few others like it with their answers."
    attack: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("retain",)

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise MethodError(f"{setting('shots')} is {self.shots}; it must be at least 1.")

    def tested(self, split: ForgetSplit) -> list[Example]:
        return asked(split)

    def applies(self, split: ForgetSplit) -> bool:
        return (
            has_rows(split, "retain")
            and any(not row.is_text for row in split.retain or ())
            and len(self.tested(split)) > 1
        )

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        rows = self.tested(context.split)
        retained = [(one, _words(one)) for one in context.split.retain or () if not one.is_text]
        return placed(context.split, rows, probabilities(context, [self.prompted(r, retained, context) for r in rows]))

    def prompted(
        self, row: Example, retained: Sequence[tuple[Example, frozenset[str]]], context: TextContext
    ) -> Example:
        """The forget question with the shots before it, as earlier turns of a chat: as many as fit.

        Args:
            retained: the retain questions, each with its words.
        """
        own = _words(row)
        nearest = sorted(retained, key=lambda one: -_overlap(own, one[1]))[: self.shots]
        room = context.max_length - len(context.tokenizer(row.answer)["input_ids"]) - 1
        while nearest:
            turns = [turn for one, _ in reversed(nearest) for turn in _turns(one)]
            longer = replace(row, history=(*turns, *row.history))
            if len(encode_prompt(longer, context.tokenizer)) <= room:
                return longer
            nearest.pop()
        return row


@dataclass(frozen=True)
class AnswerBegun(Probe):
    """P1: the probability of the rest of the answer once its beginning is given.

    Args:
        share: of the answer's tokens that is given, at least one and never all.
    """

    share: float = 0.25

    name: ClassVar[str] = "begun"
    way: ClassVar[str] = "giving the beginning of the answer"
    about: ClassVar[str] = "The beginning of the answer is given; how likely is its rest."
    attack: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise MethodError(f"{setting('share')} is {self.share}; it must be between 0 and 1.")

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        first = [windows[0] for windows in context.encoded(context.split.forget)]
        long = [row for row in first if row.targets > 2]  # the end token alone is no rest
        scores = iter(context.score_encoded([self._begun(row) for row in long]))
        return [math.exp(-next(scores).mean_nll) if row.targets > 2 else None for row in first]

    def _begun(self, row: Encoded) -> Encoded:
        start = max(1, row.prompt_length)
        given = min(max(1, math.floor(self.share * row.targets)), row.targets - 2)
        return Encoded(row.input_ids, [IGNORE] * (start + given) + row.labels[start + given :], row.index)


@dataclass(frozen=True)
class BestOf(Probe):
    """P1: the best of many sampled answers, by ROUGE-L recall.

    Args:
        samples: answers a question, drawn at temperature 1.
        seed: of the draws, the same for every model.
    """

    samples: int = 16
    seed: int = 0

    way: ClassVar[str] = "asking many times"
    about: ClassVar[str] = "The question asked many times, with answers drawn at random: the best of them."
    attack: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise MethodError(f"{setting('samples')} is {self.samples}; it must be at least 1.")

    @property
    def name(self) -> str:
        return f"best_of_{self.samples}"

    def tested(self, split: ForgetSplit) -> list[Example]:
        return asked(split)

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        rows = self.tested(context.split)
        tokenizer = context.tokenizer
        prompts = [ids for ids in (encode_prompt(row, tokenizer) for row in rows) for _ in range(self.samples)]
        room = context.room([row.answer for row in rows])

        def sample() -> list[str]:
            with seeded(self.seed):
                return generate_answers(
                    context.model,
                    tokenizer,
                    prompts,
                    max_new_tokens=room,
                    batch_size=context.batch_size,
                    label="sampling",
                    sample=True,
                )

        said = iter(context.remember("samples", [prompts, room, self.seed, context.batch_size], sample))
        best = [
            max(rouge_l(row.answer, next(said), stemmer=True, words=context.words).recall for _ in range(self.samples))
            for row in rows
        ]
        return placed(context.split, rows, best)


def placed(split: ForgetSplit, rows: Sequence[Example], values: Sequence[float | None]) -> list[float | None]:
    """The values of some forget rows at their places among all."""
    result: list[float | None] = [None] * len(split.forget)
    for row, value in zip(rows, values, strict=True):
        result[row.index] = value
    return result


def _words(row: Example) -> frozenset[str]:
    return frozenset((row.question or "").lower().split())


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def _turns(row: Example) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("user", row.question or ""), ("assistant", row.answer)
