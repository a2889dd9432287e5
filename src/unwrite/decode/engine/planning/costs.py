"""What a forward of n rows costs, learnt from the forwards that run anyway.

A shape from disk (seconds of n rows over seconds of one) comes first; then the median of the last few measurements of each
size, which are forgotten when they are about twenty steps old, so that a size that was once dear is tried again. A retry
that disappoints makes the next one come later. Nothing is run only to be timed, but by `calibrate`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from statistics import median

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# Seconds of n rows over seconds of one, where nothing better is known: a packed 135M model on two cores.
SHAPE = (1.0, 1.1, 1.2, 1.3, 1.45, 1.6, 1.9, 2.2, 2.8, 3.4, 4.8, 6.2, 9.0, 12.0)
KEPT = 5
FORGET_AFTER = 20
LONGEST_MEMORY = 640
SURPRISE = 1.3


def bucket(rows: int) -> int:
    """Index of the smallest size that holds the rows."""
    return min(bisect_left(SIZES, rows), len(SIZES) - 1)


@dataclass
class _Size:
    """The last measurements of one size at one context length."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    step: int = -(10**9)
    memory: int = FORGET_AFTER

    def fresh(self, now: int) -> bool:
        return bool(self.seconds) and now - self.step <= self.memory


class ForwardCosts:
    """Estimates of a forward's seconds by rows and context length.

    Args:
        shape: seconds relative to one row, one for every entry of `SIZES`.
    """

    def __init__(self, shape: tuple[float, ...] = SHAPE) -> None:
        self.shape = list(shape)
        self.steps = 0
        self._sizes: dict[tuple[int, int], _Size] = {}

    def observe(self, rows: int, length: int, seconds: float) -> None:
        """One forward of `rows` nodes behind `length` cached tokens took `seconds`."""
        self.steps += 1
        at = bucket(rows)
        size = self._sizes.setdefault((at, _context(length)), _Size())
        stale = not size.fresh(self.steps) and bool(size.seconds)
        if stale:
            # A retry: what it shows decides when the next one comes.
            disappointing = seconds > SURPRISE * self._from_others(at, length, seconds)
            size.memory = min(2 * size.memory, LONGEST_MEMORY) if disappointing else FORGET_AFTER
            size.seconds.clear()
        size.seconds.append(seconds)
        size.step = self.steps

    def estimate(self, rows: int, length: int) -> float:
        """Expected seconds of a forward; in units of one row where nothing was measured yet."""
        at = bucket(rows)
        size = self._sizes.get((at, _context(length)))
        if size is not None and size.fresh(self.steps):
            return median(size.seconds)
        others = self._from_others(at, length, 1.0)
        # What is stale is worth a try if it was cheap: only a forward of that size can tell whether it still is.
        last = self._latest(at)
        return others if last is None else min(others, last)

    def knows(self, rows: int, length: int) -> bool:
        """Whether forwards of this size were measured lately."""
        size = self._sizes.get((bucket(rows), _context(length)))
        return size is not None and size.fresh(self.steps)

    def measured(self) -> tuple[float, ...] | None:
        """The shape with what was measured in its place, or None if one row never was."""
        base = self._latest(0)
        if base is None:
            return None
        ratios = [None if (now := self._latest(i)) is None else now / base for i in range(len(SIZES))]
        scale, merged = 1.0, []
        for prior, ratio in zip(self.shape, ratios, strict=True):
            scale = scale if ratio is None else ratio / prior
            merged.append(prior * scale if ratio is None else ratio)
        return tuple(merged)

    def _latest(self, at: int) -> float | None:
        """Seconds of a size when it was last measured, behind whatever context."""
        sizes = [size for (index, _), size in self._sizes.items() if index == at and size.seconds]
        return median(max(sizes, key=lambda size: size.step).seconds) if sizes else None

    def _from_others(self, at: int, length: int, otherwise: float) -> float:
        """From the nearest fresh sizes: between two in proportion, beyond them by the shape."""
        context = _context(length)
        fresh = {
            index: median(size.seconds)
            for (index, place), size in self._sizes.items()
            if place == context and index != at and size.fresh(self.steps)
        }
        if not fresh:
            latest = [(size.step, index, size) for (index, _), size in self._sizes.items() if index != at]
            if not latest:
                return otherwise * self.shape[at] / self.shape[0]
            _, index, size = max(latest, key=lambda entry: entry[:2])
            return median(size.seconds) * self.shape[at] / self.shape[index]
        below = max((index for index in fresh if index < at), default=None)
        above = min((index for index in fresh if index > at), default=None)
        if below is None or above is None:
            near = below if above is None else above
            assert near is not None
            return fresh[near] * self.shape[at] / self.shape[near]
        part = (self.shape[at] - self.shape[below]) / max(1e-9, self.shape[above] - self.shape[below])
        return fresh[below] + part * (fresh[above] - fresh[below])


def _context(length: int) -> int:
    """Context lengths within a factor of two cost alike; the first 256 all do."""
    return max(0, (length // 256).bit_length())


class Acceptance:
    """How often a node is accepted once its parent is, by kind, forgetting slowly.

    Args:
        prior: the belief before anything was seen, by kind; worth `weight` trials.
    """

    def __init__(self, weight: float = 4.0, decay: float = 0.97) -> None:
        self.weight, self.decay = weight, decay
        self._counts: dict[int, tuple[float, float]] = {}

    def observe(self, kind: int, accepted: bool) -> None:
        hits, trials = self._counts.get(kind, (0.0, 0.0))
        self._counts[kind] = (self.decay * hits + accepted, self.decay * trials + 1)

    def estimate(self, kind: int, prior: float) -> float:
        """In (0, 1)."""
        hits, trials = self._counts.get(kind, (0.0, 0.0))
        return (self.weight * prior + hits) / (self.weight + trials)


class OwnSeconds:
    """What a step takes beside the forward, with and without a draft: the median of the last few.

    What drafting took is forgotten after some plain steps, so that one hiccup does not end it for good.
    """

    KEPT, FORGET_AFTER = 5, 20

    def __init__(self) -> None:
        self._seconds: dict[bool, deque[float]] = {drafted: deque(maxlen=self.KEPT) for drafted in (True, False)}
        self._rests: deque[float] = deque(maxlen=self.KEPT)
        self._plain = 0  # steps since the last draft

    def observe(self, drafted: bool, seconds: float) -> None:
        self._seconds[drafted].append(seconds)
        self._plain = 0 if drafted else self._plain + 1
        if self._plain == self.FORGET_AFTER:
            self._seconds[True].clear()

    def rested(self, seconds: float) -> None:
        """A plain step for which the drafter was not asked."""
        self._rests.append(seconds)
        self._plain += 1
        if self._plain == self.FORGET_AFTER:
            self._seconds[True].clear()

    @property
    def of_rest(self) -> float:
        """Seconds of a plain step without a look."""
        return median(self._rests) if self._rests else 0.0

    def of(self, drafted: bool) -> float:
        """Seconds expected; what is known of plain steps where nothing is of the others."""
        if not drafted and self._rests:
            return self.of_rest
        known = self._seconds[drafted] or self._seconds[False]
        return median(known) if known else 0.0


@dataclass
class DraftCosts:
    """What drafting by a model takes, by plan, and what may be spent on trying a draft that is not expected to pay.

    Args:
        seconds: {plan: of drafting it}.
        level: {plan: of one of its levels}.
        reading: seconds a token, of a text's first draft, which reads the prompt; None before the first.
        spare: seconds saved up for a try.
        idle: looks in a row at which nothing paid, as the last text left them.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    level: dict[int, float] = field(default_factory=dict)
    reading: float | None = None
    spare: float = 0.0
    idle: int = 0

    def observe(self, plan: int, depth: int, seconds: float) -> None:
        before = self.seconds.get(plan, seconds)
        self.seconds[plan] = 0.7 * before + 0.3 * seconds
        self.level[plan] = self.seconds[plan] / depth

    def estimate(self, plan: int, depth: int, unknown: float) -> float:
        """Of a plan never drafted, from the cheapest level known; `unknown` seconds a level where none is."""
        return self.seconds.get(plan, depth * min(self.level.values(), default=unknown))
