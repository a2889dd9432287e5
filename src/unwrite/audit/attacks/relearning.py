"""The relearning attack: fine-tune on a few forget rows and see whether the *others* come back.

A model that never knew the forget set learns only the rows it is shown; one that merely stopped saying them recovers
rows it wasn't shown, within a few steps (Hu et al., "Jogging the memory of unlearned models", arXiv 2406.13356; Lynch
et al., arXiv 2402.16835). The same attack on the retrained model says how much recovery is ordinary learning.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ...data.text.encoding import Encoded, pad
from ...data.text.examples import Examples, ForgetSplit
from ...errors import DataError, MethodError, ModelError
from ...models.merging import merged
from ...runs import scratch_folder, seeded, training_progress
from ...scoring import score_rows
from ..base import Attack, Point
from ..context import Context
from ..report.parts import Mark, Remark
from ..text.context import TextContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

WORTH_TELLING = 0.05  # a probability below it is none to bring back, and a fall below it none to speak of


@dataclass(frozen=True)
class Relearn(Attack[TextContext]):
    """Fine-tunes a copy on some forget rows with AdamW at a constant rate.

    Args:
        rows: how many forget rows the attacker has; at most half of the forget set is used.
        steps: optimiser steps.
        learning_rate: the same for every model it is applied to.
        batch_size: rows per step.
        every: measure after every so many steps (and before the first, and after the last).
        seed: draws the rows and their order.
    """

    rows: int = 10
    steps: int = 20
    learning_rate: float = 2e-5
    batch_size: int = 4
    every: int = 4
    seed: int = 0

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

    def __call__(self, context: TextContext) -> list[Point]:
        """Measures the curve: per point `step` and the mean probability of `shown` and `unseen` forget rows."""
        rows = context.encoded(context.split.forget)
        key = [asdict(self), [[[part.input_ids, part.prompt_length] for part in row] for row in rows]]

        def attack() -> list[Point]:
            return self.attack(context.model, rows, context.tokenizer.pad_token_id, context.batch_size)[1]

        return context.remember("relearning", key, attack)

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
        """Draws the row numbers that the attacker is shown, and returns the others beside them."""
        if count < 2:
            raise DataError(f"relearning needs at least 2 forget rows, some to show and some to test; got {count}.")
        order = np.random.default_rng(self.seed).permutation(count).tolist()
        shown = min(self.rows, count // 2)
        return sorted(order[:shown]), sorted(order[shown:])

    def attack(
        self, model: PreTrainedModel, rows: Sequence[Sequence[Encoded]], pad_id: int, score_batch: int
    ) -> tuple[PreTrainedModel, list[Point]]:
        """Returns the relearned copy and the curve; `model` stays as it is. A row is the list of its windows."""
        attacked = _trainable_copy(model)
        shown, unseen = self.drawn(len(rows))

        def measure(step: int) -> Point:
            scores = score_rows(attacked, rows, pad_id=pad_id, batch_size=score_batch, label="relearning")
            p = [math.exp(-score.mean_nll) for score in scores]
            return {
                "step": step,
                "shown": float(np.mean([p[i] for i in shown])),
                "unseen": float(np.mean([p[i] for i in unseen])),
            }

        curve = [measure(0)]

        def after_step(step: int) -> None:
            if step % self.every == 0 or step == self.steps:
                curve.append(measure(step))

        _train(attacked, [window for i in shown for window in rows[i]], pad_id, self, after_step)
        return attacked, curve


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
    return Relearn(**settings).attack(model, context.encoded(forget), tokenizer.pad_token_id, context.batch_size)


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


def _train(
    attacked: PreTrainedModel, rows: list[Encoded], pad_id: int, settings: Relearn, after_step: Callable[[int], None]
) -> None:
    """Runs transformers' Trainer for a fixed number of steps; the caller's random state is left as it was."""

    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Measure(TrainerCallback):
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            after_step(state.global_step)

    def collate(batch: list[dict[str, Encoded]]) -> dict[str, torch.Tensor]:
        tensors = pad([item["row"] for item in batch], pad_id)
        del tensors["index"]
        return tensors

    with seeded(settings.seed), scratch_folder() as folder:
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            optim="adamw_torch",
            seed=settings.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=next(attacked.parameters()).device.type == "cpu",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            attacked,
            arguments,
            train_dataset=[{"row": row} for row in rows],
            data_collator=collate,
            callbacks=[Measure()],
        )
        trainer.remove_callback(PrinterCallback)
        with training_progress(trainer, "relearning"):
            trainer.train()
    attacked.zero_grad(set_to_none=True)
