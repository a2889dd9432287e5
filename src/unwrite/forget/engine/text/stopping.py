"""Stop at the first check where the forget answers are unlikely enough, or when what must stay starts to go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from ....data import Examples
from ....data.text.encoding import encode_rows
from ....scoring import row_length, score_rows
from ..checks import require


def answer_probability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Examples,
    batch_size: int = 16,
    max_length: int | None = None,
) -> float:
    """Mean over rows of exp(-mean token nll): TOFU's probability, in [0, 1]."""
    encoded = encode_rows(rows, tokenizer, row_length(model, max_length))
    scores = score_rows(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=batch_size)
    return fmean(exp(-score.mean_nll) for score in scores)


@dataclass
class StopWhenForgotten(TrainerCallback):
    """Ends training when every forget set's answer probability is at most `target` times its start value.

    Args:
        tokenizer: the model's.
        forget: named sets that must go, such as the forget rows and their paraphrases.
        guard: named sets that must stay; training also ends when one falls below `floor` times its start.
        target, floor: shares of the start value, in (0, 1).
        every: optimiser steps between checks.
        max_length: tokens a row may have, as in training.

    After training, `reason` says why it ended and `history` holds every check.
    """

    tokenizer: PreTrainedTokenizerBase
    forget: Mapping[str, Examples]
    guard: Mapping[str, Examples] = field(default_factory=dict)
    target: float = 0.1
    floor: float = 0.7
    every: int = 5
    max_length: int | None = None
    reason: str = "all epochs done"
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        require("target", self.target, above=0, below=1)
        require("floor", self.floor, at_least=0, below=1)
        require("every", self.every, at_least=1)

    def checkpoint_state(self) -> dict[str, Any]:
        """Why training ended, and every check so far."""
        return {"reason": self.reason, "history": self.history}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Goes on from the checks of a training that is resumed."""
        self.reason, self.history = state["reason"], [dict(row) for row in state["history"]]

    def _measure(self, model: PreTrainedModel, step: int) -> dict[str, float]:
        sets = {**self.forget, **self.guard}
        row = {"step": float(step)} | {
            name: answer_probability(model, self.tokenizer, rows, max_length=self.max_length)
            for name, rows in sets.items()
        }
        self.history.append(row)
        return row

    def on_init_end(
        self, args: object, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Measures the start values, from which shares are taken: here, before a checkpoint is loaded on resume."""
        if not self.history:
            self._measure(model, 0)

    def on_step_end(
        self, args: object, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Checks every few steps."""
        if state.global_step % self.every:
            return
        now, start = self._measure(model, state.global_step), self.history[0]
        lost = [name for name in self.guard if now[name] < self.floor * start[name]]
        if lost:
            self.reason = f"{', '.join(lost)} fell below {self.floor:g} of its start at step {state.global_step}"
            control.should_training_stop = True
        elif all(now[name] <= self.target * start[name] for name in self.forget):
            self.reason = f"forgotten at step {state.global_step}"
            control.should_training_stop = True
