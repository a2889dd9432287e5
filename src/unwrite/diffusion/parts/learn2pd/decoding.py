"""Learn2PD at work: the learned rule, and the cut behind the end token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ....errors import MethodError, unknown
from ...base import Commit, CommitRule, Edit, Step, not_negative, ranked
from ...vocabulary import probability_of, top_token
from ..proposing import is_end
from .filter import Filter

if TYPE_CHECKING:
    from ...sampler import Sampler

__all__ = ["EoTP", "LearnedSelect"]


@dataclass(frozen=True)
class LearnedSelect(CommitRule):
    """Every position whose prediction the filter holds for final, and always as many of the surest as the quota says.

    Args:
        filter: [rows, size] confidences -> logits. A `Filter` is made for blocks of its size; a last, shorter block counts as
            sure where it does not reach.
        accept: probability above which a prediction is revealed, at least 0; from 1 on only the quota reveals.
    """

    filter: Filter | Callable[[Tensor], Tensor]
    accept: float = 0.96
    counts: ClassVar[bool] = True
    accepts: ClassVar[bool] = True
    reads_revealed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        not_negative(self, accept=self.accept)

    def check(self, sampler: Sampler) -> None:
        """Refuses blocks of another size than the filter's, and scores it was not trained on."""
        if sampler.score.ranks_by != "probability":
            raise MethodError(
                f"LearnedSelect: the filter reads probabilities, and {type(sampler.score).__name__} is none. Use Confidence."
            )
        size, block = getattr(self.filter, "size", None), sampler.blocks.block_size(sampler.gen_length)
        if size is None:
            return
        if block is None:
            raise MethodError(f"LearnedSelect: the filter is for blocks of {size}. Use FixedBlocks({size}).")
        if block != size:
            raise MethodError(
                f"LearnedSelect: the filter is for blocks of {size}, the sampler's have {block}. "
                f"Use FixedBlocks({size}), or a filter for that size."
            )

    def commit(self, step: Step) -> Commit:
        return Commit(self.accepted(step) | ranked(step, step.quota))

    def accepted(self, step: Step) -> Tensor:
        """[rows, width] masked positions that the filter lets through."""
        made_for = getattr(self.filter, "source", {}).get("mask_id")
        if made_for is not None and int(made_for) != step.mask_id:
            raise MethodError(
                f"LearnedSelect: the filter was trained with mask token {made_for}, this model's is {step.mask_id}. Train one for it."
            )
        width = step.masked.shape[1]
        confidence = step.confidence.float().masked_fill(~step.inside, 1.0)
        confidence = F.pad(confidence, (0, getattr(self.filter, "size", width) - width), value=1.0)
        if isinstance(self.filter, Filter) and self.filter.layers[0].weight.device != confidence.device:
            self.filter.to(confidence.device)
        return (self.filter(confidence)[:, :width].sigmoid() > self.accept) & step.masked


@dataclass(frozen=True)
class EoTP(Edit):
    """End-of-text prediction: cuts a row behind its end token, so that later forwards don't compute padding.

    Args:
        mode: "resolved" cuts behind an end token that was revealed, as the paper says; "aggressive", as the official code,
            behind the first one that `select` accepted in this step, and where there is none behind the surest position of
            the whole rest whose likeliest token is an end token, revealed or not; "off" never cuts.
        min_new_tokens: positions of the answer that are never cut off, at least 0.
        select: for "aggressive" the sampler's `LearnedSelect`; None where another rule reveals.
    """

    mode: Literal["resolved", "aggressive", "off"] = "resolved"
    min_new_tokens: int = 0
    select: LearnedSelect | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("resolved", "aggressive", "off"):
            raise MethodError(unknown("mode", self.mode, ("resolved", "aggressive", "off")))
        not_negative(self, min_new_tokens=self.min_new_tokens)

    @property
    def reads_revealed(self) -> bool:  # type: ignore[override]
        return self.mode == "aggressive" and self.select is not None

    @property
    def reads(self) -> Literal["block", "canvas"]:  # type: ignore[override]
        return "canvas" if self.mode == "aggressive" else "block"

    def check(self, sampler: Sampler) -> None:
        """Refuses aggressive cuts that don't know their rule."""
        if self.mode == "aggressive" and sampler.commit.accepts and self.select != sampler.commit:
            raise MethodError("EoTP: aggressive cuts depend on what LearnedSelect accepts. Pass it as select too.")

    def edit(self, step: Step, revealed: Tensor) -> Tensor:
        """[rows]"""
        if self.mode == "off":
            return step.length
        if not step.eos_ids:
            raise MethodError("EoTP: the model has no end token to cut behind. Pass MaskPredictor(model, end_ids=...).")
        if self.mode == "resolved":
            ended = revealed & is_end(step.tokens, step.eos_ids)
            keep = torch.where(ended.any(1), _first(step.columns, ended) + 1, step.length)
        else:
            keep = self._aggressive(step)
        return torch.minimum(torch.maximum(keep, step.prompt + self.min_new_tokens), step.length)

    def _aggressive(self, step: Step) -> Tensor:
        """[rows] columns to keep."""
        wide = step.wide
        assert wide is not None  # it reads the canvas
        top = top_token(wide.clean)
        ends = is_end(top, step.eos_ids) & wide.masked & wide.known
        sure = probability_of(wide.clean, top, ends).masked_fill(~ends, -1.0)
        surest = wide.columns.gather(1, sure.argmax(1, keepdim=True))[:, 0]
        keep = torch.where(ends.any(1), surest + 1, step.length)
        if self.select is None:
            return keep
        accepted = self.select.accepted(step) & is_end(step.proposed, step.eos_ids)
        return torch.where(accepted.any(1), _first(step.columns, accepted) + 1, keep)


def _first(columns: Tensor, where: Tensor) -> Tensor:
    """[rows] the first of the columns [rows, n] that are marked; any of them where none is."""
    return columns.gather(1, where.long().argmax(1, keepdim=True))[:, 0]
