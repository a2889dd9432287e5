"""RESTOR: does unlearning wrong facts bring the true ones back, or does the model merely stop saying the wrong ones?

A clean model is trained on documents with wrong facts (the corrupted model, here *before*), and unlearns them. The clean
model never saw them: it is the ideal, no retraining needed, and stands where other suites have a retrained model (*oracle*).

    restoration R = (A_unlearned - A_corrupted) / (A_clean - A_corrupted),   A = share of questions answered truly
    forgetting  F = 1 - share of questions answered with the injected wrong object

R is 1 for a restored model, 0 for one that is as wrong as before, below 0 for one that is worse; F alone is 1 for any model
that says nothing sensible. (arXiv 2411.00204; the normalisation of R is ours)

Facts come from a table (`data.read_facts`) or are made; the published files, the scenario on SQuAD and the repair on LIMA are not here:
`audit.restore` takes any repair.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ...data.text.encoding import encode_text
from ...data.text.examples import ForgetSplit
from ...data.text.facts import CorruptedFacts, Fact, Judge, same_answer
from ...errors import DataError
from ...runs import seeded
from ...scoring import generate_answers
from ...scoring.intervals import Interval, draws, ends
from ..base import Headline, Panel, Score, Suite
from ..report.parts import Mark, Remark
from ..text.context import TextContext
from ..text.metric import TextMetric
from ..text.multiple_choice import encode_continuation

if TYPE_CHECKING:
    from ..report.report import Report

Confidence = Literal["", "low", "middle", "high"]
TERCILES = ("low", "middle", "high")
RESTORED = 0.8  # share from which the summary calls the facts restored (ours)
ROOM = 0.05  # least difference between clean and corrupted accuracy of which a share can be restored
PROMPT_TOKENS = 2048


def few_shot_prompt(fact: Fact, known: Sequence[Fact], shots: int = 5, seed: int = 0) -> str | None:
    """Lines "question answer" about other entities, then the question; None where too few others have the relation.

    Args:
        fact: what is asked; its entity is never among the examples.
        known: true facts to draw from, one an entity.
        shots: lines, exactly so many.
    """
    others = {one.entity: one for one in known if one.relation == fact.relation and one.entity != fact.entity}
    if len(others) < shots:
        return None
    chosen = random.Random(f"{seed} {fact.entity} {fact.relation}").sample(
        [others[name] for name in sorted(others)], shots
    )
    return "".join(f"{one.question} {one.answers[0]}\n" for one in chosen) + fact.question


def first_line(text: str) -> str:
    """What a model says, up to where it goes on to invent the next question."""
    return text.strip("\n").split("\n")[0].strip()


def restoration(unlearned: float, corrupted: float, clean: float) -> float:
    """Returns which share of the lost accuracy came back.

    Raises:
        DataError: the corruption took less than 0.05 of accuracy, so there is nothing to restore.
    """
    if not clean - corrupted >= ROOM - 1e-12:
        raise DataError(
            f"there is nothing to restore: the clean model answers {clean:.2f} of the questions and the corrupted one "
            f"{corrupted:.2f}. Corrupt it longer, or on facts that the clean model knows ({ROOM} apart at least)."
        )
    return (unlearned - corrupted) / (clean - corrupted)


def restoration_draws(
    unlearned: Sequence[float],
    corrupted: Sequence[float],
    clean: Sequence[float],
    entities: Sequence[str],
    seed: int = 0,
) -> np.ndarray[Any, Any]:
    """R on entities drawn anew with replacement, 1,000 times; not a number where a draw leaves nothing to restore. [draws]

    Args:
        unlearned, corrupted, clean: whether each question is answered truly, by model, in the same order.
        entities: whom each question is about; a drawn entity brings all of its questions.
        seed: the same seed draws the same entities, so that two models are compared draw by draw.
    """
    names = sorted(set(entities))
    places = {name: i for i, name in enumerate(names)}
    sums = np.zeros((3, len(names)))
    for model, values in enumerate((unlearned, corrupted, clean)):
        np.add.at(sums[model], [places[one] for one in entities], values)
    drawn = sums[:, draws(len(names), 1000, seed)].sum(2)  # [model, draws]
    room = drawn[2] - drawn[1]
    return (drawn[0] - drawn[1]) / np.where(room > 0, room, np.nan)


def restoration_interval(
    unlearned: Sequence[float],
    corrupted: Sequence[float],
    clean: Sequence[float],
    entities: Sequence[str],
    seed: int = 0,
) -> Interval | None:
    """The 95 % interval of R over entities; None where some draw leaves nothing to restore. Arguments as `restoration_draws`."""
    drawn = restoration_draws(unlearned, corrupted, clean, entities, seed)
    return ends(drawn) if len(set(entities)) > 1 and np.isfinite(drawn).all() else None


@dataclass(frozen=True)
class FactMetric(TextMetric):
    """Base of what is measured on the questions about corrupted entities.

    Args:
        shots: worked examples of the same relation before a question, from other entities; 5 in the benchmark.
        seed: draws the worked examples, and answers where they are sampled.
        judge: whether what is said agrees with one of the acceptable answers (ours; the benchmark asks a chat model).
        repeats: 0 answers greedily (ours); otherwise so many sampled answers a question, averaged; 3 in the benchmark.
        max_new_tokens: of an answer, > 0.
    """

    shots: int = 5
    seed: int = 0
    judge: Judge = same_answer
    repeats: int = 0
    max_new_tokens: int = 24

    def applies(self, split: ForgetSplit) -> bool:
        return isinstance(split, CorruptedFacts)

    def questions(self, split: ForgetSplit) -> list[tuple[Fact, str]]:
        """The facts that can be asked about, each with its prompt.

        Raises:
            DataError: none can, or the split has no facts.
        """
        if not isinstance(split, CorruptedFacts):
            raise DataError(f"{self.name} reads facts, and {split.name} has none. Make the split by corrupted_facts.")
        prompts = [(fact, few_shot_prompt(fact, split.known, self.shots, self.seed)) for fact in split.facts]
        askable = [(fact, prompt) for fact, prompt in prompts if prompt is not None]
        if not askable:
            raise DataError(f"no relation has {self.shots} other entities for worked examples. Give more true facts.")
        return askable

    def skipped(self, split: CorruptedFacts) -> str:
        """How many questions are left out for want of worked examples; empty for none."""
        left = len(split.facts) - len(self.questions(split))
        return (
            f"{left} of {len(split.facts)} questions skipped: fewer than {self.shots} other entities. " if left else ""
        )

    def said(self, context: TextContext) -> list[list[str]]:
        """What a model answers to every question, one text a repeat."""
        prompts = [encode_text(prompt, context.tokenizer) for _, prompt in self.questions(context.split)]
        if not self.repeats:
            return [[first_line(text)] for text in context.generate(prompts, self.max_new_tokens)]

        def compute() -> list[list[str]]:
            with seeded(self.seed):
                rounds = [
                    generate_answers(
                        context.model,
                        context.tokenizer,
                        prompts,
                        max_new_tokens=self.max_new_tokens,
                        batch_size=context.batch_size,
                        sample=True,
                    )
                    for _ in range(self.repeats)
                ]
            return [[first_line(text) for text in texts] for texts in zip(*rounds, strict=True)]

        key = [prompts, self.max_new_tokens, self.repeats, self.seed, context.batch_size]
        return context.remember("sampled", key, compute)

    def right(self, context: TextContext) -> list[float]:
        """The share of true answers to every question, in [0, 1]."""
        facts = [fact for fact, _ in self.questions(context.split)]
        return [
            fmean(float(self.judge(text, fact.answers)) for text in texts)
            for fact, texts in zip(facts, self.said(context), strict=True)
        ]

    def log_probabilities(self, context: TextContext, options: str) -> list[list[float]]:
        """The mean token log-probability of every option behind the prompt, in nats, question by question.

        Args:
            options: "answers", "wrong" or "others", as a fact has them.
        """
        asked = self.questions(context.split)
        texts = [(getattr(fact, options),) if options == "wrong" else getattr(fact, options) for fact, _ in asked]
        rows = [
            encode_continuation(prompt, f" {text}", context.tokenizer, PROMPT_TOKENS)
            for (_, prompt), of in zip(asked, texts, strict=True)
            for text in of
        ]
        scored = iter(context.score_encoded(rows))
        return [[-next(scored).mean_nll for _ in of] for of in texts]


@dataclass(frozen=True)
class FactAccuracy(FactMetric):
    """Share of the questions about corrupted entities that are answered truly, in [0, 1]; questions weigh the same."""

    name: ClassVar[str] = "fact_accuracy"
    panel: ClassVar[Panel] = "kept"
    about: ClassVar[str] = "Share of questions about corrupted entities that are answered truly."

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        return Score.mean(self.name, list(self.right(context)), self.better, self.skipped(_facts_of(context)).strip())


@dataclass(frozen=True)
class Forgetting(FactMetric):
    """F: one less the share of questions that are answered with the injected wrong object, in [0, 1]."""

    name: ClassVar[str] = "forgetting"
    about: ClassVar[str] = "Share of questions that are no longer answered with the injected wrong object."

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        asked = self.questions(context.split)
        values: list[float | None] = [
            1 - fmean(float(self.judge(text, [fact.wrong])) for text in texts)
            for (fact, _), texts in zip(asked, self.said(context), strict=True)
        ]
        return Score.mean(self.name, values, self.better)


@dataclass(frozen=True)
class Restoration(FactMetric):
    """R: which share of the accuracy that the corruption took is there again; `per_example` says which answers are true.

    Args:
        confidence: "low", "middle" or "high" takes that third of the facts, by the log-probability that the clean
            model gives the true answer; empty takes all.
    """

    confidence: Confidence = ""
    panel: ClassVar[Panel] = "kept"
    roles: ClassVar[tuple[str, ...]] = ("before", "oracle")

    @property
    def name(self) -> str:
        return "_".join(filter(None, ("restoration", self.confidence)))

    @property
    def about(self) -> str:
        of = f" Facts of which the clean model is sure to a {self.confidence} degree." if self.confidence else ""
        return f"What came back of what corruption took: 1 all, 0 nothing, below 0 worse.{of}"

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        clean, corrupted = references["oracle"], references["before"]
        picked = self.picked(clean)
        if not picked:
            return Score(self.name, None, [], self.better, "Too few facts for three groups.")
        values = [[one for i, one in enumerate(self.right(of)) if i in picked] for of in (context, corrupted, clean)]
        means = [fmean(of) for of in values]
        if self.confidence and means[2] - means[1] < ROOM:
            return Score(self.name, None, [], self.better, f"The corruption took less than {ROOM} of these facts.")
        entities = [fact.entity for i, (fact, _) in enumerate(self.questions(context.split)) if i in picked]
        interval = restoration_interval(values[0], values[1], values[2], entities, self.seed)
        within = f"95 % over entities: {interval[0]:.2f} to {interval[1]:.2f}." if interval else ""
        note = f"{self.skipped(_facts_of(context))}{within}".strip()
        return Score(self.name, restoration(*means), list(values[0]), self.better, note)

    def picked(self, clean: TextContext) -> set[int]:
        """The questions it reads: all, or a third by the clean model's confidence."""
        count = len(self.questions(clean.split))
        if not self.confidence:
            return set(range(count))
        sure = [of[0] for of in self.log_probabilities(clean, "answers")]
        order, third = sorted(range(count), key=lambda i: (sure[i], i)), TERCILES.index(self.confidence)
        return set(order[third * count // 3 : (third + 1) * count // 3])


@dataclass(frozen=True)
class OptionGap(FactMetric):
    """How much likelier the true answers are than the injected object, or than other objects of its type, in nats a token.

    Restored is a model where both gaps are above 0; where the injected object has merely sunk to the level of any other
    while the true answer stayed low, only the first gap has closed.

    Args:
        against: "wrong", the injected object, or "others".
    """

    against: Literal["wrong", "others"] = "wrong"
    panel: ClassVar[Panel] = "kept"

    @property
    def name(self) -> str:
        return "gap_to_injected" if self.against == "wrong" else "gap_to_others"

    @property
    def about(self) -> str:
        other = "the injected object" if self.against == "wrong" else "other objects of the same type"
        return f"Log-probability of the true answer less that of {other}, in nats a token."

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        true, other = (self.log_probabilities(context, options) for options in ("answers", self.against))
        gaps = [fmean(ours) - fmean(theirs) if theirs else None for ours, theirs in zip(true, other, strict=True)]
        return Score.mean(self.name, gaps, self.better)


def _facts_of(context: TextContext) -> CorruptedFacts:
    split = context.split
    assert isinstance(split, CorruptedFacts)
    return split


def restored(report: Report) -> Remark | None:
    """Says whether the model is restored or has merely forgotten; None where that was not measured."""
    share = report.value("restoration")
    if share is None:
        return None
    mark: Mark = "good" if share >= RESTORED else "mixed" if share >= RESTORED / 4 else "bad"
    said = {
        "good": "the true facts are back",
        "mixed": "part of the true facts is back",
        "bad": "the true facts are not back",
    }
    return Remark(f"{said[mark]} (restoration {share:.2f})", mark)


def restor_suite(**settings: Any) -> Suite:
    """Makes the suite with its choices: `FactMetric`'s fields, the same for every metric."""
    metrics: list[TextMetric] = [FactAccuracy(**settings), Forgetting(**settings), Restoration(**settings)]
    metrics += [Restoration(**settings, confidence=third) for third in ("low", "middle", "high")]
    metrics += [OptionGap(**settings, against=other) for other in ("wrong", "others")]
    return Suite(
        "restor",
        metrics,
        "Are the true facts back, or only the wrong ones gone? before: the corrupted model, oracle: the clean one.",
        gone=Headline("forgetting", "higher", noun="wrong answers"),
        kept=Headline("restoration", "higher", None, says="{value} of the accuracy that the corruption took is back"),
        axes=("forgetting", "fact_accuracy"),
        evidence=(restored,),
        roles=("before", "oracle"),
        requires=("fact_accuracy", "forgetting", "restoration"),
        needs="documents with wrong facts and the true ones, as unwrite.data.corrupted_facts makes them",
    )


RESTOR = restor_suite()
