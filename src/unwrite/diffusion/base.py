"""What the denoising loop is made of: one read-only `Step`, and the kinds of parts that look at it.

A masked-diffusion language model fills a canvas of masks, some positions a forward. Which ones, with what tokens, and when
to stop is decided by parts that compose. In this order they see every step:

    adapter, guidance, mask token removed -> blocks -> logits -> propose -> score -> stop -> quota, commit -> constraint
    -> reveal -> edit

Every row of a batch goes its own way (its own block, its own count of steps), so arrays are [rows, ...], where `rows` are
those still being written. A part is a frozen dataclass; what it has to remember from step to step the loop keeps for it
(`step.memory(self)`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import MethodError
from .memory import Desk, PartMemory

if TYPE_CHECKING:
    from .sampler import Sampler


@dataclass(frozen=True)
class Wide:
    """The whole generated part, for parts that read the canvas.

    Args:
        columns: [rows, generated] their columns in the canvas.
        clean: [rows, generated, vocab] logits; zeros where `known` is false.
        known: [rows, generated] whether this forward computed logits there (with a dual cache only the block's).
        masked: [rows, generated] still to be written.
        proposed: [rows, generated] a token for each; None until tokens are proposed.
    """

    columns: Tensor
    clean: Tensor
    known: Tensor
    masked: Tensor
    proposed: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One forward of the rows that are still being written. Columns count from each row's own beginning.

    Args:
        rows: [rows] their places in the batch.
        canvas: [rows, length] ids before this step's tokens are revealed.
        prompt, length: [rows] first generated column; columns of the row (an edit may lower it).
        start, end: [rows] the block's columns, end excluded. `end` is of no meaning before blocks are chosen.
        opening: [rows] whether this is the block's first step.
        opened: [rows] positions that the block was opened with, before any edit cut it. As `end`, once blocks are chosen.
        number, in_block: [rows] forwards of the row, and in the block, before this one.
        at_entry: [rows] masks that the block had when it was opened.
        total: steps the caller asked for (generated positions where none were).
        size: generated positions the caller asked for.
        mask_id, eos_ids: of the model.
        ahead: [rows, n, vocab] clean logits from `start` on, at least to the block's end; the mask token is -inf.
        wide: the generated part where a part reads the canvas.
        ahead_proposed: [rows, n] the token each of them would get, where the blocks part looks ahead and a block is opened, or the
            step is watched; else None.
        noise, wide_noise: [rows, n, vocab], [rows, generated, vocab] uniform draws in float64 that tokens are chosen with.
        clean, fused: [rows, width, vocab] the block's logits, before and after the logits part.
        judged: [rows, width, vocab] logits whose softmax is the probability of a choice.
        proposed: [rows, width] the token that each position would get.
        confidence: [rows, width] how sure.
        scored: [rows, width] where `confidence` is needed, elsewhere it is 0; None for everywhere: where a part reads what is written
            (`Part.reads_revealed`), and where the step is watched.
        masked: [rows, width] still to be written, within the row's block.
        quota: [rows] how many positions to reveal where a rule counts.
    """

    rows: Tensor
    canvas: Tensor
    prompt: Tensor
    length: Tensor
    start: Tensor
    end: Tensor
    opening: Tensor
    opened: Tensor
    number: Tensor
    in_block: Tensor
    at_entry: Tensor
    total: int
    size: int
    mask_id: int
    eos_ids: tuple[int, ...]
    ahead: Tensor
    wide: Wide | None = None
    ahead_proposed: Tensor | None = None
    noise: Tensor | None = None
    wide_noise: Tensor | None = None
    clean: Tensor = field(default_factory=lambda: torch.empty(0))
    fused: Tensor = field(default_factory=lambda: torch.empty(0))
    judged: Tensor = field(default_factory=lambda: torch.empty(0))
    proposed: Tensor = field(default_factory=lambda: torch.empty(0))
    confidence: Tensor = field(default_factory=lambda: torch.empty(0))
    scored: Tensor | None = None
    masked: Tensor = field(default_factory=lambda: torch.empty(0))
    quota: Tensor = field(default_factory=lambda: torch.empty(0))
    desk: Desk = field(default_factory=lambda: Desk(0))

    @property
    def columns(self) -> Tensor:
        """[rows, width] columns of the block; past a shorter row's block they repeat its last column."""
        return self.columns_ahead(self.masked.shape[1])

    def columns_ahead(self, count: int) -> Tensor:
        """[rows, count] columns from the block's start, none past the row's last one."""
        columns = self.start[:, None] + torch.arange(count, device=self.start.device)
        return torch.minimum(columns, self.length[:, None] - 1)

    @property
    def inside(self) -> Tensor:
        """[rows, width] whether a place belongs to the row's block."""
        return torch.arange(self.masked.shape[1], device=self.start.device) < (self.end - self.start)[:, None]

    @property
    def tokens(self) -> Tensor:
        """[rows, width] ids now in the block."""
        return self.canvas.gather(1, self.columns)

    def random(self, *shape: int) -> Tensor:
        """Uniform draws [rows, *shape] in float64, each row's from its own generator."""
        return self.desk.random(self.rows, shape)

    def random_places(self) -> Tensor:
        """Uniform draws [rows, width] in float64, one for every place of the block. A row draws for the places it has, so that
        a wider row beside it changes nothing."""
        return self.desk.random(self.rows, self.masked.shape[1:], self.end - self.start)

    def memory(self, part: Part) -> PartMemory:
        """What `part` remembers of these rows."""
        return PartMemory(self, self.desk.memory(part))

    def count(self, name: str, value: Tensor) -> None:
        """Adds [rows] numbers to the output's `counts`."""
        self.desk.add(name, self.rows, value)


@dataclass(frozen=True)
class Commit:
    """What a step reveals and hides.

    Args:
        reveal: [rows, width] positions that get their token now; only masked ones count.
        hide: [rows, width] positions to mask again after that, or None; given tokens stay.
        tokens: [rows, width] other tokens than the proposed ones, or None.
    """

    reveal: Tensor
    hide: Tensor | None = None
    tokens: Tensor | None = None


class Part(ABC):
    """Any part of the loop.

    What other parts and the loop must know of a part, the part declares: what it reads here, and on each kind what stands
    there (`Blocks.block_size`, `Score.ranks_by`, `Quota.spreads_evenly`, `CommitRule.counts`, ...). Nobody asks for its class.

    fills: the field of `Sampler` that it fills.
    reads: "block", or "canvas" for parts that need `step.wide`.
    reads_revealed: whether it reads `step.confidence` at positions already written too; where nobody does, it is 0 there.
    """

    fills: ClassVar[str]
    reads: ClassVar[Literal["block", "canvas"]] = "block"
    reads_revealed: ClassVar[bool] = False

    def check(self, sampler: Sampler) -> None:  # noqa: B027
        """Refuses what this part cannot work with. sampler: the `Sampler`; a MethodError names both parts."""


class Blocks(Part):
    """Where the next block ends. Blocks go from left to right; one is finished before the next begins.

    grows_with_quota: whether blocks end where a quota that counts over the whole answer (`Ascending`) ends a step.
    """

    grows_with_quota: ClassVar[bool] = False

    fills = "blocks"

    @property
    @abstractmethod
    def default(self) -> int:
        """Positions of a block where nothing speaks for another size; stretches this long without masks are skipped."""

    def block_size(self, generated: int) -> int | None:
        """Positions of every block but the last, which may have fewer; None where sizes vary. generated: of the answer."""
        return None

    def reach(self, size: int) -> int:
        """How many positions from a block's start `lengths` reads. size: generated positions."""
        return 0

    @abstractmethod
    def lengths(self, step: Step) -> Tensor:
        """[rows] positions of the blocks that begin at step.start; asked at every step, used where one is opened. The
        loop clips it to what remains."""


class Logits(Part):
    """Changes the logits that tokens are chosen from."""

    fills = "logits"

    @abstractmethod
    def fuse(self, step: Step) -> Tensor:
        """[rows, width, vocab] from step.fused."""


class Proposal(Part):
    """Chooses a token for every position, whether it is revealed or not."""

    fills = "propose"
    random: ClassVar[bool] = False

    @abstractmethod
    def propose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """[..., n] tokens. logits: [..., n, vocab]; noise: like it, uniform in float64."""

    def judged(self, clean: Tensor, fused: Tensor) -> Tensor:
        """[..., n, vocab] logits whose softmax the score is taken from."""
        return fused


Ranking = Literal["probability", "spread", "chance", "place"]


class Score(Part):
    """How sure a proposed token is; larger is surer.

    ranks_by: "probability" where the score is the proposed token's; "spread" for another measure of the distribution;
        "chance" where it is drawn, "place" where only the position counts. A score around another one says what that one says.
    """

    ranks_by: ClassVar[Ranking] = "spread"

    fills = "score"

    @abstractmethod
    def score(self, step: Step) -> Tensor:
        """[rows, width] float64."""


class Quota(Part):
    """How many positions a step reveals, for rules that count.

    spreads_evenly: whether a block's masks are spread evenly over its share of the steps, as `Uniform` does.
    """

    spreads_evenly: ClassVar[bool] = False

    fills = "quota"

    @abstractmethod
    def count(self, step: Step) -> Tensor:
        """[rows] at least 0."""


class CommitRule(Part):
    """Which positions are revealed, and which hidden again.

    counts: whether it reads `step.quota`.
    draws_places: whether chance alone decides, so that no confidence changes anything.
    accepts: whether it has `accepted(step)`, the positions it holds for final whatever the quota says.
    """

    counts: ClassVar[bool] = False
    draws_places: ClassVar[bool] = False
    accepts: ClassVar[bool] = False
    fills = "commit"

    @abstractmethod
    def commit(self, step: Step) -> Commit: ...


class Constraint(Part):
    """Overrules a commit, such as a grammar."""

    fills = "constraint"

    @abstractmethod
    def allow(self, step: Step, commit: Commit) -> Commit: ...


class Edit(Part):
    """After the tokens are revealed; may shorten rows."""

    fills = "edit"

    @abstractmethod
    def edit(self, step: Step, revealed: Tensor) -> Tensor:
        """[rows] columns to keep, at most step.length. step.canvas: with this step's tokens; revealed: [rows, width]."""


class Stop(Part):
    """Whether all remaining masks are filled at once and the row is done. The whole row is filled, so every stop reads the canvas."""

    fills = "stop"
    reads: ClassVar[Literal["block", "canvas"]] = "canvas"

    @abstractmethod
    def stop(self, step: Step) -> Tensor:
        """[rows] bool. A row goes on all the same while this forward has no logits for some of its masks."""


Watch = Callable[[Step], None]


def parts_of(value: Any) -> tuple[Any, ...]:
    """One part, several, or none, as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def best(step: Step) -> Tensor:
    """[rows, width] the surest masked position of each row, the leftmost of equals; none where nothing is masked."""
    return ranked(step, torch.ones_like(step.start))


def ranked(step: Step, count: Tensor, scores: Tensor | None = None) -> Tensor:
    """[rows, width] the `count` [rows] surest masked positions; of equals the leftmost."""
    scores = step.confidence if scores is None else scores
    scores = scores.masked_fill(~step.masked, -torch.inf)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (ranks < count[:, None]) & step.masked


def at_least_one(step: Step, reveal: Tensor) -> Tensor:
    """The given masked positions, and the surest one where there is none."""
    return (reveal | best(step)) & step.masked


def not_negative(owner: object, **values: float | None) -> None:
    """Refuses missing, negative and NaN settings. Infinite ones have a meaning: they switch a rule off."""
    for name, value in values.items():
        if value is None or not value >= 0:
            raise MethodError(f"{type(owner).__name__}: {name} is {value}; use 0 or more.")


def finite(owner: object, **values: float) -> None:
    """Refuses infinity too, for settings that logits are multiplied with or divided by: -inf would become NaN."""
    not_negative(owner, **values)
    for name, value in values.items():
        if math.isinf(value):
            raise MethodError(f"{type(owner).__name__}: {name} is inf; use a finite value.")
