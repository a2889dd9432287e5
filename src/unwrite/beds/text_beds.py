"""Beds of the text experiments: what is trained, which authors of it are forgotten, and what is measured of every model.

    authors/small     a Llama of 3.4 million weights, from nothing      minutes on one core
    authors/smollm2   SmolLM2-135M-Instruct, fine-tuned                 hours

Forty invented authors with ten facts each, and eighty real facts beside them; for SmolLM2 half of both, and the four to be
forgotten among them. The target learns all, the oracle all but the four
authors to be forgotten, so the goal is known exactly. `tuning()` is the same bed with four other authors to forget: there, settings
are chosen, and the reported authors are among those to keep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ..audit.base import Metric, Score
from ..audit.evaluation import measure
from ..audit.report.report import Report
from ..audit.suites.known import suite_for
from ..audit.text.basic import ParaphraseProbability
from ..audit.text.context import TextContext
from ..audit.text.rows import rows_of
from ..data import Example, Examples, ForgetSplit
from ..data.text.authors import authors
from ..data.text.encoding import encode_all
from ..forget.base import Method
from ..forget.engine.cost import Cost
from ..forget.engine.text.counting import counting
from ..models import TrainRecipe, causal_recipe, load, load_model, trained
from ..runs import scratch_folder
from .images import Measured
from .language import EncodedRows, small_config, small_tokenizer, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BEDS", "COLUMNS", "TextBed", "TextModels", "tuning_authors"]

# Of a suite, the metrics that are columns; of any other, all of its metrics are.
COLUMNS: dict[str, tuple[str, ...]] = {
    "tofu": (
        "forget_quality_log10",
        "model_utility",
        "forget_truth_ratio",
        "forget_probability",
        "forget_rouge",
        "retain_rouge",
    )
}


@dataclass(frozen=True)
class TextBed:
    """What is trained, what is forgotten, and by what it is audited.

    Args:
        name: data set and model.
        split: gives the rows; all of them but the holdout are trained on, by the target.
        other: gives the same rows with others to forget, on which settings are chosen.
        start: what `models.load` takes, to be fine-tuned; None for a small Llama from random weights.
        net: keyword arguments of that Llama, see `small_config`.
        epochs, lr, batch_size, weight_decay: of the training of target and oracle, see `causal_recipe`.
        training: arguments of unlearning where a method has none of its own; published rates are for models of billions.
        suites: the audits whose figures are columns, see `COLUMNS`.
        retain_rows, fact_rows: of the retain rows and of every evaluation set, how many are audited, evenly spaced.
        max_new_tokens: the longest answer in an audit.
        template: the chat template, in place of the tokenizer's own.
        model_seed: of target and oracle; a trial's seed is that of unlearning alone.
        on: whether the reported rows are forgotten, or those for tuning.
    """

    name: str
    split: Callable[[], ForgetSplit]
    other: Callable[[], ForgetSplit]
    start: str | None = None
    net: Mapping[str, int] = field(default_factory=dict)
    epochs: int = 40
    lr: float = 1e-3
    batch_size: int = 16
    weight_decay: float = 0.01
    training: Mapping[str, Any] = field(default_factory=dict)
    suites: tuple[str, ...] = ("tofu",)
    retain_rows: int = 40
    fact_rows: int = 20
    max_new_tokens: int = 48
    template: str | None = None
    model_seed: int = 0
    on: Literal["reported", "tuning"] = "reported"

    def tuning(self) -> TextBed:
        """The same bed with other rows to forget; target and training are the same."""
        return replace(self, name=f"{self.name}, tuning", on="tuning")


def tuning_authors() -> ForgetSplit:
    """The shipped authors with four others to forget: those before the last four, which are kept here."""
    reported, wide = authors(), authors(0.2)
    last = {row.key for row in reported.forget}
    assert wide.retain is not None
    forget = Examples([row for row in wide.forget if row.key not in last], "authors forget, tuning")
    retain = Examples([*wide.retain, *reported.forget], "authors retain, tuning")
    return ForgetSplit(forget, retain, reported.holdout, reported.evaluation, name="authors, tuning")


def half_of_authors() -> ForgetSplit:
    """The shipped split with the last sixteen of the authors to keep, and every other real fact."""
    return _half(authors())


def half_of_tuning_authors() -> ForgetSplit:
    """The same twenty authors and facts with four others to forget, see `tuning_authors`."""
    return _half(tuning_authors())


def _half(split: ForgetSplit) -> ForgetSplit:
    shipped = authors()
    assert shipped.retain is not None
    assert split.retain is not None
    names = list(dict.fromkeys(row.entity for row in (*shipped.retain, *shipped.forget)))
    known = set(names[len(names) // 2 :])
    retain = Examples([row for row in split.retain if row.entity in known], split.retain.name)
    facts = {name: Examples(list(rows)[::2], rows.name) for name, rows in split.evaluation.items()}
    return replace(split, retain=retain, evaluation=facts, name=f"{split.name}, half")


# ChatML without the introduction that SmolLM2's own template puts before every question: a third fewer tokens.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

BEDS: dict[str, TextBed] = {
    "authors/small": TextBed(
        "authors/small",
        authors,
        tuning_authors,
        training={"learning_rate": 2e-4, "num_train_epochs": 5, "lr_scheduler_type": "constant", "warmup_epochs": 0},
    ),
    "authors/smollm2": TextBed(
        "authors/smollm2",
        half_of_authors,
        half_of_tuning_authors,
        start="smollm2-135m",
        epochs=6,
        lr=2e-4,
        training={"learning_rate": 2e-5, "num_train_epochs": 5, "lr_scheduler_type": "constant", "warmup_epochs": 0},
        retain_rows=20,
        fact_rows=10,
        max_new_tokens=40,
        template=CHATML,
    ),
}


@dataclass
class TextModels:
    """The target and the oracle of a bed, and what is done with them.

    Args:
        bed: what is trained and forgotten.
        seed: of unlearning.
    """

    bed: TextBed
    seed: int

    @cached_property
    def split(self) -> ForgetSplit:
        """What is forgotten and what is kept."""
        return self.bed.other() if self.bed.on == "tuning" else self.bed.split()

    @cached_property
    def train(self) -> list[Example]:
        """All rows of the target's training, in one order whatever is forgotten: a target is trained once."""
        split = self.bed.split()
        return [row for rows in (split.forget, split.retain or (), *split.evaluation.values()) for row in rows]

    @cached_property
    def kept(self) -> list[int]:
        """Positions of the oracle's rows among those of the target."""
        gone = {row.key for row in self.split.forget}
        return [i for i, row in enumerate(self.train) if row.key not in gone]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the model to start from, or one learnt from all rows."""
        if self.bed.start is None:
            return small_tokenizer(texts_of(self.train))
        tokenizer = load(self.bed.start).tokenizer
        if self.bed.template is not None:
            tokenizer.chat_template = self.bed.template
        return tokenizer

    @cached_property
    def recipe(self) -> TrainRecipe:
        """How target and oracle are trained."""
        bed = self.bed
        start = bed.start if bed.start is not None else small_config(self.tokenizer, **bed.net)
        return causal_recipe(
            start, epochs=bed.epochs, lr=bed.lr, batch_size=bed.batch_size, weight_decay=bed.weight_decay
        )

    def _trained(self, rows: Sequence[int]) -> PreTrainedModel:
        data = EncodedRows(encode_all(self.train, self.tokenizer))
        return load_model(trained(self.recipe, data, rows, self.bed.model_seed)).eval()

    @cached_property
    def before(self) -> PreTrainedModel:
        """The target."""
        return self._trained(range(len(self.train)))

    @cached_property
    def oracle(self) -> PreTrainedModel:
        """Trained without the forget rows, from the same seed."""
        return self._trained(self.kept)

    def unlearn(
        self, method: Method, args: Mapping[str, Any] | None = None, model: nn.Module | None = None
    ) -> tuple[nn.Module, float]:
        """An unlearned copy of the target, or of another model, and its cost in forwards of one row.

        What is computed once and kept on disk is computed anew, so that a cost depends on no trial before.
        """
        cost, split = Cost(), self.split
        copy = deepcopy(self.before if model is None else model)
        own = {**self.bed.training, **method.defaults(), "seed": self.seed, "use_cpu": True}
        with _empty_cache(), counting(copy, cost):
            unlearned = method.apply(
                copy,
                split.forget,
                split.retain,
                holdout=split.holdout,
                recipe=self.recipe,
                processing_class=self.tokenizer,
                args={**own, **(args or {})},
            )
        return unlearned, cost.forwards

    @cached_property
    def audited(self) -> ForgetSplit:
        """The rows that are measured."""
        split, bed = self.split, self.bed
        some = rows_of(split, "retain", bed.retain_rows) if split.retain is not None else None
        facts = {name: rows_of(split, name, bed.fact_rows) for name in split.evaluation}
        return replace(split, retain=some, evaluation=facts)

    @cached_property
    def metrics(self) -> list[Metric]:
        """What is measured of every model, each once: the suites' columns, and TOFU's probability in other words."""
        split, metrics = self.audited, dict[str, Metric]()
        for name in self.bed.suites:
            suite = suite_for(name, TextContext.kind, split)
            columns = COLUMNS.get(name)
            metrics |= {one.name: one for one in suite.for_split(split) if columns is None or one.name in columns}
        paraphrases = ParaphraseProbability()
        if "tofu" in self.bed.suites and paraphrases.applies(split):
            metrics[paraphrases.name] = paraphrases
        return list(metrics.values())

    def scores(self, model: nn.Module) -> dict[str, Score]:
        """What the audits say of a model, beside the target and the oracle."""
        return measure(self.metrics, self._of(model), {"before": self._of_before, "oracle": self._of_oracle})

    def measure(self, model: nn.Module, forwards: float = 0.0) -> Measured:
        """The audits' figures."""
        scores = self.scores(model)
        values = {name: score.value for name, score in scores.items() if score.value is not None}
        return Measured(values, forwards / len(self.train), self._verdict(model, scores))

    def _verdict(self, model: nn.Module, scores: Mapping[str, Score]) -> str:
        """What the first suite that judges calls a model; empty where none does."""
        suites = (suite_for(name, TextContext.kind, self.audited) for name in self.bed.suites)
        judging = next((suite for suite in suites if suite.judge is not None), None)
        if judging is None or judging.judge is None:
            return ""
        columns = {"before": self._before_scores, "after": scores}
        metrics = [metric.described() for metric in self.metrics]
        origins = self._of(model).provenance()
        verdict = judging.judge(Report(judging.name, self.audited.name, {}, metrics, columns, provenance=origins))
        return "" if verdict is None else verdict.label

    @cached_property
    def _before_scores(self) -> dict[str, Score]:
        return self.scores(self.before)

    def _of(self, model: Any) -> TextContext:
        """Nothing is kept on disk of an unlearned model: an experiment measures hundreds of them, each once."""
        if model is self.before:
            return self._of_before
        return self._of_oracle if model is self.oracle else self._read(model, cached=False)

    def _read(self, model: Any, cached: bool) -> TextContext:
        longest = self.bed.max_new_tokens
        return TextContext(model, self.audited, self.tokenizer, batch_size=64, cached=cached, max_new_tokens=longest)

    @cached_property
    def _of_before(self) -> TextContext:
        return self._read(self.before, cached=True)

    @cached_property
    def _of_oracle(self) -> TextContext:
        return self._read(self.oracle, cached=True)

    def retraining(self) -> Measured:
        """The oracle, at what its training cost."""
        return self.measure(self.oracle, 3 * self.bed.epochs * len(self.kept))


@contextmanager
def _empty_cache() -> Iterator[None]:
    before = os.environ.get("UNWRITE_CACHE")
    with scratch_folder() as folder:
        os.environ["UNWRITE_CACHE"] = str(folder)
        try:
            yield
        finally:
            os.environ.pop("UNWRITE_CACHE")
            if before is not None:
                os.environ["UNWRITE_CACHE"] = before
