"""Stop at the first epoch after which the model says no more of the forget texts than of texts it has never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from ....data.text.encoding import Encoded
from ....errors import notice
from ....scoring import Passage, Thresholds, extraction, secret_passages
from ..checks import require
from ..shards import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["StopWhenUnsaid", "passages_of"]

ANSWER_TOKENS = 128  # of a text without marks
STARTS = 32  # positions of a passage from which it is continued, at most; all of a secret's


def passages_of(rows: Sequence[Encoded]) -> list[Passage]:
    """What is asked of rows: their marked tokens run by run, or, of rows without marks, the answer or the text's beginning."""
    passages = [passage for row in rows for passage in secret_passages(row)]
    if passages or any(row.marked is not None for row in rows):
        return passages
    starts = [max(1, row.prompt_length) for row in rows]
    return [
        Passage(tuple(row.input_ids[:start]), tuple(row.input_ids[start : start + ANSWER_TOKENS]))
        for row, start in zip(rows, starts, strict=True)
    ]


@dataclass
class StopWhenUnsaid(TrainerCallback):
    """Ends training after the first epoch with memorisation accuracy and extraction likelihood both below the thresholds.

    Extraction likelihood takes generation, so it is measured only where the accuracy is at most `margin` above its threshold. Where
    it hasn't improved for `patience` epochs, training ends too. The best epoch's weights (lower accuracy, then lower likelihood) are
    kept, and are part of every checkpoint.

    Args:
        passages: what must go.
        thresholds: below which it is gone.
        pad_id: what fills up shorter rows.
        ends: tokens at which a continuation ends.
        margin: of the accuracy above its threshold, >= 0.
        patience: epochs, >= 1.

    After training, `reason` says why it ended and `history` holds every epoch; a likelihood that was not measured is not a number.
    """

    passages: Sequence[Passage]
    thresholds: Thresholds
    pad_id: int
    ends: Sequence[int] = ()
    margin: float = 0.3
    patience: int = 5
    reason: str = "all epochs done"
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict, repr=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        require("margin", self.margin, at_least=0)
        require("patience", self.patience, at_least=1)

    def gone(self, model: PreTrainedModel, epoch: float = 0.0) -> bool:
        """Measures the model, and whether it is below both thresholds; never where a figure is not a number."""
        accuracy, likelihood = self._measure(model)
        self.history.append({"epoch": epoch, "accuracy": accuracy, "likelihood": likelihood})
        return self.thresholds.met(accuracy, likelihood)

    def _measure(self, model: PreTrainedModel) -> tuple[float, float]:
        n = self.thresholds.n
        options: dict[str, Any] = {"pad_id": self.pad_id, "ends": self.ends}
        first = extraction(model, self.passages, **options)
        accuracy = first.mean_accuracy()
        if not accuracy <= self.thresholds.accuracy + self.margin:
            return accuracy, nan
        measured = extraction(model, self.passages, (n,), most=STARTS, **options)
        self.tokens += measured.tokens
        return accuracy, measured.mean_likelihood(n)

    def on_epoch_end(
        self, args: object, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Measures, keeps the weights where they are the best so far, and ends training where there is reason to."""
        epoch = round(state.epoch or 0.0)
        gone = self.gone(model, epoch)
        if _rank(self.history[-1]) == min(_rank(row) for row in self.history if row["epoch"]):
            self.best = {
                name: whole(parameter.detach()).cpu().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
        if gone:
            self.reason = f"forgotten after epoch {epoch}"
            control.should_training_stop = True
        elif self._stuck():
            self.reason = f"no better extraction likelihood for {self.patience} epochs at epoch {epoch}"
            control.should_training_stop = True

    def _stuck(self) -> bool:
        """Whether the last `patience` epochs brought no likelihood below the lowest before them."""
        values = [row["likelihood"] for row in self.history if not isnan(row["likelihood"])]
        before, last = values[: -self.patience], values[-self.patience :]
        return bool(before) and min(last) >= min(before)

    def checkpoint_state(self) -> dict[str, Any]:
        """Why training ended, and every epoch so far."""
        history = [{name: None if isnan(value) else value for name, value in row.items()} for row in self.history]
        return {"reason": self.reason, "history": history, "tokens": self.tokens}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Goes on from the epochs of a training that is resumed."""
        self.reason, self.tokens = state["reason"], state["tokens"]
        self.history = [
            {name: nan if value is None else value for name, value in row.items()} for row in state["history"]
        ]

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """The best epoch's weights by parameter name."""
        return self.best

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on with a resumed training's best weights."""
        self.best = dict(tensors)

    @torch.no_grad()
    def place(self, model: nn.Module) -> None:
        """Puts the best epoch's weights in place of the last; says so where they are not below the thresholds."""
        for name, parameter in model.named_parameters():
            if name in self.best:
                parameter.copy_(self.best[name])
        least = min((row for row in self.history if row["epoch"]), key=_rank, default=None)
        if least is not None and not self.thresholds.met(least["accuracy"], least["likelihood"]):
            notice(
                f"training ended ({self.reason}) with memorisation accuracy {least['accuracy']:.2f}, not below that of unseen texts "
                f"({self.thresholds.accuracy:.2f}) in both measures. Train longer, or at a higher rate."
            )


def _rank(row: Mapping[str, float]) -> tuple[float, float]:
    """Lower is better; what was not measured is worst."""
    return tuple(inf if isnan(row[name]) else row[name] for name in ("accuracy", "likelihood"))  # type: ignore[return-value]
