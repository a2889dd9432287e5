"""The relearning attack: fine-tune on a few rows and see whether the forget rows that were *not* shown come back.

A model that never knew the forget set learns only the rows it is shown; one that merely stopped saying them recovers
rows it wasn't shown, within a few steps (Hu et al., "Jogging the memory of unlearned models", arXiv 2406.13356; Lynch
et al., arXiv 2402.16835). The same attack on the retrained model says how much recovery is ordinary learning.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from ...data.text.encoding import Encoded
from ...data.text.examples import Examples, ForgetSplit
from ...data.text.general import general_rows
from ...errors import DataError, MethodError, ModelError, unknown
from ...models.merging import merged
from ...scoring import score_rows
from ..base import Attack, Point
from ..context import Context
from ..fine_tuning import adapted, fine_tune
from ..report.parts import Mark, Remark
from ..text.context import TextContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORTH_TELLING = 0.05  # a probability below it is none to bring back, and a fall below it none to speak of


Source = Literal["forget", "retain", "general"]
Curve = list[dict[str, Any]]  # per point `step`, and `p`, every forget row's probability


@dataclass(frozen=True)
class Relearn(Attack[TextContext]):
    """Fine-tunes a copy on some rows with AdamW at a constant rate.

    Args:
        rows: how many rows the attacker has; of the forget set, at most half is used.
        steps: optimiser steps.
        learning_rate: the same for every model it is applied to.
        batch_size: rows per step.
        every: measure after every so many steps (and before the first, and after the last).
        seed: draws the rows and their order.
        source: where the attacker's rows are from: forget rows, retain rows, or general knowledge that ships; with the
            last two, no forget row is shown.
        rank: of LoRA adapters on all linear layers, with alpha twice the rank (ours); 0 trains all weights.
        at: steps to measure after, in place of every so many.
    """

    rows: int = 10
    steps: int = 20
    learning_rate: float = 2e-5
    batch_size: int = 4
    every: int = 4
    seed: int = 0
    source: Source = "forget"
    rank: int = 0
    at: tuple[int, ...] = ()

    reads: ClassVar[type[Context]] = TextContext
    name: ClassVar[str] = "relearning"
    x: ClassVar[str] = "step"
    label: ClassVar[str] = "fine-tuning steps"
    series: ClassVar[tuple[str, ...]] = ("unseen", "shown")
    judged: ClassVar[str] = "unseen"
    about: ClassVar[str] = "The model is fine-tuned on a few forget rows; do the other forget rows come back?"

    def __post_init__(self) -> None:
        for part in ("rows", "steps", "batch_size", "every"):
            if getattr(self, part) < 1:
                raise MethodError(f"relearning needs {part} of at least 1, not {getattr(self, part)}.")
        if not self.learning_rate > 0:
            raise MethodError(f"relearning needs a learning rate above 0, not {self.learning_rate}.")
        if self.rank < 0:
            raise MethodError(f"relearning needs a rank of at least 0, not {self.rank}.")
        if self.source not in get_args(Source):
            raise MethodError(unknown("source", self.source, get_args(Source)))
        if any(not 0 < step <= self.steps for step in self.at):
            raise MethodError(f"relearning measures after 1 to {self.steps} steps, not after {self.at}.")

    def __call__(self, context: TextContext) -> list[Point]:
        """Measures the curve: per point `step` and the mean probability of `shown` and `unseen` forget rows."""
        shown, unseen = self.drawn(len(context.split.forget))
        return [_point(at["step"], at["p"], shown, unseen) for at in self.by_row(context)]

    def by_row(self, context: TextContext) -> Curve:
        """The curve with every forget row's probability, shown or not; kept on disk."""
        split = context.split
        rows = context.encoded(split.forget)
        shown = self.shown(split)
        lessons = [window for row in context.encoded(shown) for window in row]
        ids = [[[part.input_ids, part.prompt_length] for part in row] for row in rows]
        key = [asdict(self), ids, [[part.input_ids, part.prompt_length] for part in lessons]]

        def attack() -> Curve:
            return self.attack(context.model, rows, lessons, context.tokenizer.pad_token_id, context.batch_size)[1]

        return context.remember("relearning", key, attack)

    def shown(self, split: ForgetSplit) -> Examples:
        """The rows that the attacker fine-tunes on.

        Raises:
            DataError: there are none.
        """
        if self.source == "forget":
            return Examples([split.forget[i] for i in self.drawn(len(split.forget))[0]], "shown")
        source = split.retain if self.source == "retain" else general_rows(split.forget)
        if source is None or not len(source):
            raise DataError(
                "relearning on retain rows needs some. Give a retain set, or take forget rows or general knowledge."
                if self.source == "retain"
                else "no row of the general knowledge that ships is about something else than the forget rows."
            )
        order = np.random.default_rng(self.seed).permutation(len(source)).tolist()
        return Examples([source[i] for i in sorted(order[: self.rows])], "shown")

    def remark(self, curves: Mapping[str, list[Point]], main: str) -> Remark | None:
        """Says what a short fine-tuning brought back of the forget rows it did not show."""
        curve, oracle, before = curves.get(main), curves.get("oracle"), curves.get("before")
        if not curve:
            return None
        start, end = curve[0]["unseen"], curve[-1]["unseen"]
        clause = f"{curve[-1]['step']:.0f} steps of fine-tuning on other forget rows move the rest from {start:.2f} to {end:.2f}"
        if before and before[0]["unseen"] < WORTH_TELLING:
            known = f"the model gave the other forget rows {before[0]['unseen']:.2f} before"
            return Remark(f"{known}, so relearning had nothing to bring back", "unknown")
        if oracle:
            same = end <= oracle[-1]["unseen"] + 0.1
            verdict = "as a retrained model would" if same else "more than a retrained model, so traces remain"
            beside = f"({oracle[-1]['unseen']:.2f} for the retrained model)"
            return Remark(f"{clause} {beside}, {verdict}", "good" if same else "bad")
        if not before:
            return Remark(clause, "mixed")
        if before[0]["unseen"] - start < WORTH_TELLING:
            return Remark(f"{clause}, and they had hardly gone (from {before[0]['unseen']:.2f})", "bad")
        back = (end - start) / (before[0]["unseen"] - start)
        mark: Mark = "good" if back < 0.2 else "mixed" if back < 0.5 else "bad"
        way = "all" if back >= 1 else f"{max(0.0, back):.0%}"
        return Remark(f"{clause}, {way} of the way back to where it was", mark)

    def drawn(self, count: int) -> tuple[list[int], list[int]]:
        """Draws the numbers of the forget rows that the attacker is shown, and returns the others beside them."""
        if self.source != "forget":
            return [], list(range(count))
        if count < 2:
            raise DataError(f"relearning needs at least 2 forget rows, some to show and some to test; got {count}.")
        order = np.random.default_rng(self.seed).permutation(count).tolist()
        shown = min(self.rows, count // 2)
        return sorted(order[:shown]), sorted(order[shown:])

    def attack(
        self,
        model: PreTrainedModel,
        rows: Sequence[Sequence[Encoded]],
        lessons: Sequence[Encoded],
        pad_id: int,
        score_batch: int,
    ) -> tuple[PreTrainedModel, Curve]:
        """Returns the relearned copy and the curve by row; `model` stays as it is.

        Args:
            rows: the forget rows, each a list of its windows.
            lessons: what is trained on.
        """
        attacked = _trainable_copy(model)
        if self.rank:
            attacked = adapted(attacked, self.rank, 2 * self.rank, self.seed)

        def measure(step: int) -> dict[str, Any]:
            scores = score_rows(attacked, rows, pad_id=pad_id, batch_size=score_batch, label="relearning")
            return {"step": step, "p": [math.exp(-score.mean_nll) for score in scores]}

        curve = [measure(0)]

        def after_step(step: int) -> None:
            if step in self.at or (not self.at and step % self.every == 0) or step == self.steps:
                curve.append(measure(step))

        fine_tune(
            attacked,
            lessons,
            pad_id,
            seed=self.seed,
            after_step=after_step,
            label="relearning",
            max_steps=self.steps,
            learning_rate=self.learning_rate,
            per_device_train_batch_size=self.batch_size,
            lr_scheduler_type="constant",
        )
        whole: Any = merged(attacked, in_place=True) if self.rank else attacked  # type: ignore[arg-type]
        return whole.eval(), curve


def _point(step: int, p: Sequence[float], shown: Sequence[int], unseen: Sequence[int]) -> Point:
    parts = {"shown": shown, "unseen": unseen}
    return {"step": step} | {name: float(np.mean([p[i] for i in rows])) for name, rows in parts.items() if rows}


def relearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Examples,
    *,
    max_length: int | None = None,
    **settings: Any,
) -> tuple[PreTrainedModel, list[Point]]:
    """Attacks a copy of `model`; `settings` are `Relearn`'s fields.

    Returns:
        The relearned model and its curve: dicts of `step` and mean probability of `shown` and `unseen` rows.
    """
    context = TextContext(model, ForgetSplit(forget), tokenizer, max_length=max_length)
    attack = Relearn(**settings)
    rows = context.encoded(forget)
    shown, unseen = attack.drawn(len(rows))
    lessons = [window for row in context.encoded(attack.shown(context.split)) for window in row]
    attacked, curve = attack.attack(model, rows, lessons, tokenizer.pad_token_id, context.batch_size)
    return attacked, [_point(at["step"], at["p"], shown, unseen) for at in curve]


def _trainable_copy(model: PreTrainedModel) -> PreTrainedModel:
    if not hasattr(model, "state_dict") or not hasattr(model, "config"):
        raise ModelError(
            f"relearning fine-tunes weights, and a {type(model).__name__} has none of its own to train. "
            "Audit it without the relearning attack."
        )
    # an attacker who has the adapter has the merged weights
    attacked = merged(model) if hasattr(model, "merge_and_unload") else copy.deepcopy(model)
    attacked.requires_grad_(True)
    return attacked
