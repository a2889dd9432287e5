"""Task vector: learn the forget set a second time, and subtract what changed.

(Editing models with task arithmetic, arXiv 2212.04089; MUSE uses alpha = 5.)

    theta_unlearned = theta - alpha * (theta_finetuned_on_forget - theta)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import MethodError, setting
from ..models.merging import merged
from .base import Edit, Objective
from .engine.batch import BatchPart, PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerToken

if TYPE_CHECKING:
    from .engine.text.work import TextWork


@dataclass(frozen=True, kw_only=True)
class _Remember(Objective["TextWork"]):
    """Ordinary fine-tuning on the forget set: the task whose vector is negated."""

    def loss(self, batch: PairedBatch[BatchPart]) -> Loss:
        """The mean loss on forget answers. batch.forget.token_nll: [label tokens]."""
        return Loss(forget=PerToken(batch["forget"].token_nll, "forget"))


@dataclass(frozen=True, kw_only=True)
class TaskVector(Edit["TextWork"]):
    """Negated fine-tuning on the forget set.

    Args:
        alpha: how far to go against the fine-tuning direction, >= 0; 0 changes nothing, 5 in MUSE.
    """

    alpha: float = 5.0

    def __post_init__(self) -> None:
        require("alpha", self.alpha, at_least=0)

    def _apply(self, work: TextWork) -> nn.Module:
        """Fine-tunes a copy on forget rows with `args`, then edits `model`; retain rows are not needed."""
        tuned = replace(work, model=copy.deepcopy(work.model), retain=None).train(_Remember())
        if work.peft_config is not None:
            tuned = merged(tuned, in_place=True)
        if len(list(tuned.parameters())) != len(list(work.model.parameters())):
            raise MethodError(
                f"{setting('peft_config')} adapts an embedding or a head that share one weight, which has no single task vector then. "
                "Take embedding and head out of its target_modules."
            )
        with torch.no_grad():
            for ours, theirs in zip(work.model.parameters(), tuned.parameters(), strict=True):
                ours -= self.alpha * (theirs - ours)
        return work.model.eval()
