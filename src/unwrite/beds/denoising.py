"""Samplers side by side on the shared test bed: the same prompts for all, differences with paired intervals.

A method that reveals more a forward is worth something only if it is more often right than the plain threshold *at the same
number of forwards*. So every arm stands beside `Curve.at(forwards)`: a mix of the two thresholds whose forwards enclose the
arm's, with the share that makes them equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import pstdev
from typing import Any

import numpy as np

from ..diffusion import Sampler
from ..diffusion.parts.rules import FixedBlocks, Threshold
from ..errors import DataError
from ..runs import cached_json, hash_file, hash_json, model_key, versions
from ..scoring.intervals import Interval, draws, ends, mean_interval
from . import denoiser as testbed
from .budget import Budget

RESAMPLES = 2000
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
PROMPTS_SEED = 10_000  # prompts of seed s are drawn from PROMPTS_SEED + s; training draws from seeds below 1,000
SIZES = {"tiny": 8, "small": 700, "medium": 2000, "full": 5000}  # prompts a seed
COLUMNS = ("forwards/answer", "right, %", "against the threshold at equal forwards, points")


@dataclass(frozen=True)
class Arm:
    """What one sampler did.

    Args:
        name: of it.
        right: [prompts] 1 or 0; a mix may be between.
        nfe: [prompts] forwards.
        work: [prompts] columns computed, summed over forwards; None where it isn't known.
    """

    name: str
    right: np.ndarray
    nfe: np.ndarray
    work: np.ndarray | None = None

    @classmethod
    def judged(cls, name: str, verdicts: testbed.Judged) -> Arm:
        """From what `testbed.judge` says of its sampler."""
        return cls(name, *(np.array(column, dtype=float) for column in (verdicts.right, verdicts.nfe, verdicts.work)))

    @property
    def accuracy(self) -> float:
        """Points, 0 to 100."""
        return 100 * float(self.right.mean())

    @property
    def forwards(self) -> float:
        """A prompt, on average."""
        return float(self.nfe.mean())

    def joined(self, other: Arm) -> Arm:
        """With the same sampler's on further prompts."""
        work = None if self.work is None or other.work is None else np.concatenate([self.work, other.work])
        right, nfe = np.concatenate([self.right, other.right]), np.concatenate([self.nfe, other.nfe])
        return Arm(self.name, right, nfe, work)

    def of(self, which: np.ndarray) -> Arm:
        """On some of the prompts. which: [prompts] bool."""
        return Arm(self.name, self.right[which], self.nfe[which])


@dataclass
class SamplerTrial:
    """The test bed with one set of prompts; arms are run once each, and kept on disk: an experiment that was stopped goes on,
    and what several compare with is computed for the first of them.

    Args:
        bed: model and tokenizer.
        asked: the prompts, those of one seed after those of another.
        seeds: how many seeds they were drawn from, equally many of each.
        tell: gets a line of progress.
    """

    bed: testbed.TestBed
    asked: Sequence[testbed.Item]
    seeds: int = 1
    tell: Callable[[str], None] = lambda line: None
    done: dict[str, Arm] = field(default_factory=dict)

    def run(self, name: str, sampler: Sampler, fixed: Mapping[int, int] | None = None) -> Arm:
        """One arm."""
        if name not in self.done:
            self.tell(name)
            self.done[name] = Arm(name, *(np.array(column, dtype=float) for column in self._judged(sampler, fixed)))
        return self.done[name]

    def _judged(self, sampler: Sampler, fixed: Mapping[int, int] | None) -> tuple[list[bool], list[int], list[int]]:
        """right, forwards and work, [prompts] each; from the disk where model, prompts, sampler, code and packages are those of
        an earlier run."""

        def judged() -> list[list[Any]]:
            verdicts = testbed.judge(self.bed, sampler, self.asked, fixed=fixed)
            return [verdicts.right, verdicts.nfe, verdicts.work]

        if not _is_plain(sampler):
            right, forwards, work = judged()
        else:
            what = [
                model_key(self.bed.model),
                [vars(item) for item in self.asked],
                repr(sampler),
                sorted((fixed or {}).items()),
            ]
            right, forwards, work = cached_json(("arms",), hash_json([*what, _code(), versions()]), judged)
        return right, forwards, work

    def row(self, arm: Arm, curve: Curve | None = None) -> tuple[Any, ...]:
        """An arm's figures for `COLUMNS`: forwards, accuracy with its spread over seeds, the difference at equal forwards."""
        each = [100 * float(part.mean()) for part in np.array_split(arm.right, self.seeds)]
        spread = f" +- {pstdev(each):.1f}" if self.seeds > 1 else ""
        ahead = "" if curve is None else str(difference(arm, curve.at(arm.forwards)))
        return f"{arm.forwards:.1f}", f"{arm.accuracy:.1f}{spread}", ahead

    def tasks(self) -> np.ndarray:
        """[prompts] the task of each."""
        return np.array([item.task for item in self.asked])

    def curve(self, thresholds: Sequence[float] | None = None, base: Sampler | None = None) -> Curve:
        """The plain threshold at several values, and one by one.

        Args:
            thresholds: None for `THRESHOLDS`.
            base: everything but the threshold; None for blocks of 32.
        """
        plain = base or Sampler(gen_length=testbed.ANSWER, blocks=FixedBlocks(32))
        label = "" if base is None else f", {base.blocks}"
        arms = [
            self.run(f"threshold {t:g}{label}", replace(plain, commit=Threshold(t))) for t in thresholds or THRESHOLDS
        ]
        return Curve([*arms, self.run(f"one by one{label}", replace(plain, commit=Threshold(2.0)))])


def _is_plain(value: object) -> bool:
    """Whether a value is settings all the way down, so that its repr says all: no model, no function."""
    if is_dataclass(value):
        return all(_is_plain(getattr(value, one.name)) for one in fields(value))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


@lru_cache(maxsize=1)
def _code() -> str:
    """Of everything that decides what a sampler writes."""
    home = Path(testbed.__file__).parents[1]
    files = [*(home / "diffusion").rglob("*.py"), *(home / "beds").glob("denois*.py")]
    return hash_json({str(file.relative_to(home)): hash_file(file) for file in sorted(files)})


@dataclass(frozen=True)
class Curve:
    """Arms of one family, from few forwards to many."""

    arms: Sequence[Arm]

    def at(self, forwards: float) -> Arm:
        """The family at this mean number of forwards: the two neighbours mixed. At the ends the end itself.

        Raises:
            DataError: an empty curve.
        """
        if not self.arms:
            raise DataError("the curve has no arms.")
        arms = sorted(self.arms, key=lambda arm: arm.forwards)
        if forwards <= arms[0].forwards:
            return arms[0]
        for few, many in pairwise(arms):
            if forwards <= many.forwards:
                share = (forwards - few.forwards) / max(1e-12, many.forwards - few.forwards)
                name = f"{many.name} x {share:.2f} + {few.name}"
                return Arm(name, (1 - share) * few.right + share * many.right, (1 - share) * few.nfe + share * many.nfe)
        return arms[-1]


@dataclass(frozen=True)
class Difference:
    """Points that one arm is ahead of another, with the ends of its 95 % interval."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} ({self.low:+.1f} to {self.high:+.1f})"

    @property
    def interval(self) -> Interval:
        """Both ends."""
        return self.low, self.high

    @classmethod
    def of(cls, gains: np.ndarray, seed: int = 0) -> Difference:
        """The mean of points by prompt; bootstrap over prompts."""
        return cls(float(gains.mean()), *mean_interval(gains, RESAMPLES, seed))


def difference(ours: Arm, theirs: Arm, seed: int = 0) -> Difference:
    """Of accuracies on the same prompts; bootstrap over prompts."""
    return Difference.of(gains([(ours, theirs)]), seed)


def gains(pairs: Sequence[tuple[Arm, Arm]]) -> np.ndarray:
    """Points that the first arms are ahead of the second on every prompt, on average over the pairs. [prompts]"""
    for ours, theirs in pairs:
        if len(ours.right) != len(theirs.right):
            counts = f"{len(ours.right)} and {len(theirs.right)}"
            raise DataError(f"{ours.name} and {theirs.name} were run on {counts} prompts.")
    return 100 * np.mean([ours.right - theirs.right for ours, theirs in pairs], axis=0)


def share(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0) -> tuple[float, Interval]:
    """What the first counts (forwards, columns) are of the second, on average over the pairs; bootstrap over prompts.

    Args:
        pairs: two counts by prompt, [prompts] each.
    """

    def of(which: np.ndarray) -> np.ndarray:
        shares: np.ndarray = np.mean([ours[which].sum(-1) / theirs[which].sum(-1) for ours, theirs in pairs], axis=0)
        return shares

    count = len(pairs[0][0])
    return float(of(np.arange(count))), ends(of(draws(count, RESAMPLES, seed)))


def prompts(count: int, seed: int, tasks: Sequence[str] | None = None) -> list[testbed.Item]:
    """Test prompts of a seed; training draws from other seeds."""
    return testbed.items(count, PROMPTS_SEED + seed, tasks)


def trial(budget: Budget, tasks: Sequence[str] | None = None) -> SamplerTrial:
    """The test bed, trained if it isn't there, behind its gate, with the budget's prompts.

    Raises:
        ModelError: the test bed does not pass its gate.
    """
    bed = testbed.load()
    if budget.size != "tiny":
        testbed.gate(bed)
    items = [item for seed in budget.seeds for item in prompts(SIZES[budget.size], seed, tasks)]
    return SamplerTrial(bed, items, len(budget.seeds))


def setting(trial: SamplerTrial) -> str:
    """What was run, in one line."""
    weights = sum(parameter.numel() for parameter in trial.bed.model.parameters())
    return (
        f"mask predictor of {weights / 1e6:.2f}M weights trained on sums, records and lists, answers of {testbed.ANSWER} positions, "
        f"{len(trial.asked)} prompts from {trial.seeds} seeds; intervals are paired bootstraps over prompts"
    )
