"""AdaBlock: a block ends where the model expects a line to end (arXiv 2509.26432).

Blocks of one size cut through sentences: what is sure already waits for the next block, what is not is written too early. So
the first forward of every block also looks ahead for a delimiter, and the surest of them ends the block:

    B = i + 1,  i = argmax p_i(y_i) over i < W with y_i = argmax_v p_i(v) a delimiter;  the usual size where p_i(y_i) < tau_D

That forward's logits then reveal the block's first tokens, so the choice costs nothing. The window W follows the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...errors import MethodError, ModelError, unknown
from ..base import Blocks, Edit, Step, Wide, not_negative
from ..vocabulary import probability_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "AdaBlock",
    "DrawnBlocks",
    "WholeCanvas",
    "confidence_profile",
    "delimiters_of",
    "late",
    "premature",
]

WINDOWS = ("fraction_of_budget", "fraction_of_done")

# Tokens with a newline that the authors use for Dream.
_DREAM = (
    198, 271, 280, 319, 340, 382, 401, 532, 624, 630, 692, 698, 921, 1248, 1837, 1939, 2219, 2533, 3276, 3876, 4894, 5267,
    14750, 68327,
)  # fmt: skip


@dataclass(frozen=True)
class AdaBlock(Blocks):
    """Blocks that end where the model expects a line to end.

    Args:
        size: positions of a block that no delimiter ends, at least 1.
        delimiters: ids that may end a block, see `delimiters_of`; 198 is the newline of LLaDA, Dream and other byte-level
            vocabularies.
        delimiter_threshold: probability that a delimiter needs, at least 0; infinity for blocks of one size. .3 for models
            trained as mask predictors, .5 for those converted from autoregressive ones.
        window: how far ahead to look: a share of all generated positions ("fraction_of_budget"), or of those in finished blocks,
            but at least one ("fraction_of_done").
        share: that share, 0 to 1.
        max_block: no delimiter further ahead counts; at least `size`, None for no bound.
    """

    size: int = 32
    delimiters: tuple[int, ...] = (198,)
    delimiter_threshold: float = 0.3
    window: Literal["fraction_of_budget", "fraction_of_done"] = "fraction_of_budget"
    share: float = 0.25
    max_block: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise MethodError(f"AdaBlock: size is {self.size}; use at least 1.")
        if not self.delimiters:
            raise MethodError(
                "AdaBlock: delimiters is empty. Name an id, as delimiters_of(tokenizer) does, or use FixedBlocks."
            )
        if min(self.delimiters) < 0:
            raise MethodError(f"AdaBlock: delimiter {min(self.delimiters)} is no id; use 0 or more.")
        not_negative(self, delimiter_threshold=self.delimiter_threshold)
        if self.window not in WINDOWS:
            raise MethodError(f"AdaBlock: {unknown('window', self.window, WINDOWS)}")
        if not 0 <= self.share <= 1:
            raise MethodError(f"AdaBlock: share is {self.share}; use 0 to 1.")
        if self.max_block is not None and self.max_block < self.size:
            raise MethodError(f"AdaBlock: max_block is {self.max_block}, less than size, {self.size}. Raise it.")

    @classmethod
    def llada(cls, **others: Any) -> AdaBlock:
        """The authors' settings for LLaDA."""
        return cls(**others)

    @classmethod
    def dream(cls, **others: Any) -> AdaBlock:
        """The authors' settings for Dream."""
        return cls(**{"delimiters": _DREAM, "delimiter_threshold": 0.5, **others})

    @property
    def default(self) -> int:
        return self.size

    def reach(self, size: int) -> int:
        """The widest window; none where no delimiter can be sure enough."""
        if math.isinf(self.delimiter_threshold):
            return 0
        widest = int(self.share * size)
        if self.window == "fraction_of_done":
            widest = max(1, widest)
        return min(widest, self.max_block or widest)

    def lengths(self, step: Step) -> Tensor:
        """[rows]; `trace.counts["delimited_blocks"]` counts the blocks that a delimiter ended."""
        usual = torch.full_like(step.start, self.size)
        if step.ahead_proposed is None:
            return usual
        most, place = self.candidates(step).max(1)  # the first of equals
        sure = most >= self.delimiter_threshold
        step.count("delimited_blocks", sure & step.opening)
        return torch.where(sure, place + 1, usual)

    def candidates(self, step: Step) -> Tensor:
        """[rows, window] the clean probability of the delimiter that is proposed at a masked position, else -inf; float64."""
        assert step.ahead_proposed is not None
        self._known_ids(step.ahead.shape[-1], step.mask_id)
        width = min(self.reach(step.size), step.ahead.shape[1])
        tokens = step.ahead_proposed[:, :width]
        window = self._window(step)[:, None]
        looked = torch.arange(width, device=tokens.device) < window
        masked = step.canvas.gather(1, step.columns_ahead(width)) == step.mask_id
        ids = torch.tensor(self.delimiters, dtype=tokens.dtype, device=tokens.device)
        candidates = looked & masked & torch.isin(tokens, ids)
        return probability_of(step.ahead[:, :width], tokens, candidates).masked_fill(~candidates, -torch.inf)

    def _window(self, step: Step) -> Tensor:
        """[rows] positions looked at, none past the row's end."""
        widest = torch.full_like(step.start, self.reach(step.size))
        if self.window == "fraction_of_done":
            done = step.start - step.prompt
            widest = torch.minimum(widest, (self.share * done.double()).long().clamp(min=1))
        return torch.minimum(widest, step.length - step.start)

    def _known_ids(self, vocabulary: int, mask_id: int) -> None:
        outside = [token for token in self.delimiters if token >= vocabulary]
        if outside:
            raise MethodError(
                f"AdaBlock: delimiter {outside[0]} is outside the model's {vocabulary} tokens. Pass delimiters_of(tokenizer)."
            )
        if mask_id in self.delimiters:
            raise MethodError(f"AdaBlock: delimiter {mask_id} is the mask token. Take it out.")


def delimiters_of(tokenizer: PreTrainedTokenizerBase, text: str = "\n") -> tuple[int, ...]:
    """All ids whose text contains `text`, the mask token apart.

    Raises:
        ModelError: there are none.
    """
    ids = [[token] for token in range(len(tokenizer)) if token != getattr(tokenizer, "mask_token_id", None)]
    texts = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
    delimiters = tuple(token for (token,), one in zip(ids, texts, strict=True) if text in one)
    if not delimiters:
        raise ModelError(f"no token of the tokenizer contains {text!r}. Give AdaBlock delimiters that it has.")
    return delimiters


@dataclass(frozen=True)
class DrawnBlocks(Blocks):
    """Blocks whose sizes are drawn from given ones: AdaBlock's sizes without its boundaries, the control.

    Args:
        sizes: to draw from, each at least 1; such as all of a run's `trace.blocks`.
    """

    sizes: tuple[int, ...] = (32,)

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise MethodError(f"DrawnBlocks: sizes is {self.sizes}; give at least one, each at least 1.")

    @property
    def default(self) -> int:
        return min(self.sizes)

    def reach(self, size: int) -> int:
        return min(max(self.sizes), size)

    def lengths(self, step: Step) -> Tensor:
        """[rows]"""
        memory = step.memory(self)
        drawn = memory.get("drawn", step.size, fill=-1.0, dtype=torch.float64)
        if bool((drawn < 0).any()):  # at the call's first step: one for every position a block may begin at
            drawn = step.random(step.size)
            memory.put("drawn", drawn)
        mine = drawn.gather(1, (step.start - step.prompt)[:, None])[:, 0]
        sizes = torch.tensor(self.sizes, device=mine.device)
        return sizes[(mine * len(self.sizes)).long()]


@dataclass(frozen=True)
class WholeCanvas(Edit):
    """Changes nothing, but makes every step show the whole generated part, which the diagnostics below read."""

    reads: ClassVar[Literal["block", "canvas"]] = "canvas"

    def edit(self, step: Step, revealed: Tensor) -> Tensor:
        """[rows]"""
        return step.length


def late(step: Step, threshold: float = 0.9) -> Tensor:
    """[rows] whether a masked position after the block is as sure as the block's own have to be: it waits needlessly.

    Args:
        step: what `Sampler.watch` is given, with `WholeCanvas` among the parts.
        threshold: of the commit rule.
    """
    wide, sure = _seen(step)
    return ((sure >= threshold) & wide.masked & wide.known & (wide.columns >= step.end[:, None])).any(1)


def premature(step: Step, reference: Tensor, threshold: float = 0.9) -> Tensor:
    """[rows] tokens revealed below the threshold, because a step reveals at least one, that the reference has not.

    Args:
        step: what `Sampler.watch` is given.
        reference: [batch, longest] `sequences` of the same prompts, written one token a step.
        threshold: of the commit rule.
    """
    shown = step.masked & (step.tokens != step.mask_id)
    other = reference[step.rows].gather(1, step.columns) != step.tokens
    return (shown & other & (step.confidence < threshold)).sum(1)


def confidence_profile(steps: Iterable[Step], shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75)) -> Tensor:
    """How sure the model is along the answer: near 1, then a volatile band, then a floor near 0.

    Args:
        steps: all that `Sampler.watch` was given in one call, with `WholeCanvas` among the parts.
        shares: of the positions written; of each row its first step at which as many are counts.

    Returns:
        [shares, generated] the mean over rows, a written position at 1; nan where no row was seen.
    """
    levels = torch.tensor(shares, dtype=torch.float64)
    total = number = reached = None
    for step in steps:
        wide, sure = _seen(step)
        if total is None or number is None or reached is None:
            total = sure.new_zeros(len(levels), step.size)
            number, levels = torch.zeros_like(total), levels.to(sure.device)
            reached = torch.zeros(len(levels), len(step.rows), dtype=torch.bool, device=sure.device)
        exists = torch.arange(step.size, device=sure.device) < (step.length - step.prompt)[:, None]
        written = exists & ~wide.masked
        share = written.sum(1) / exists.sum(1)
        now = (share >= levels[:, None]) & ~reached[:, step.rows]  # [shares, rows]
        reached[:, step.rows] |= now
        used = written | (wide.masked & wide.known)
        value = torch.where(written, torch.ones_like(sure), sure) * used
        total += now.to(value.dtype) @ value
        number += now.to(value.dtype) @ used.to(value.dtype)
    if total is None or number is None:
        raise MethodError("confidence_profile: there are no steps. Collect them with Sampler(watch=steps.append).")
    return total / number


def _seen(step: Step) -> tuple[Wide, Tensor]:
    """The generated part, and the clean probability [rows, generated] of what is proposed there."""
    if step.wide is None or step.wide.proposed is None:
        raise MethodError("the step shows its block only. Add WholeCanvas() to the sampler's edit parts.")
    return step.wide, probability_of(step.wide.clean, step.wide.proposed)
