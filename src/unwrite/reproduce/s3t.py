"""How many deletions does a plan outlive? Real digits, a small ViT pretrained on five classes, the other five learnt in shards.

Claim looked at (arXiv 2406.16257): slices in LoRA groups that are switched off, in several orders, take more deletions before they
are to be trained again than SISA, answer better, and cost no training. Every stage is trained once; streams of random slice
deletions are then played on its kept answers, for the first B of the orders. Rates are chosen on the classes that are not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from ..beds.budget import Budget
from ..beds.sharded_digits import ShardedDigits
from ..forget.sharded.increments import LoraGroups, block_list, default_targets
from ..forget.sharded.model import ShardedModel
from ..forget.sharded.nodes import NodeNote
from ..forget.sharded.orders import (
    Order,
    drawn_orders,
    expected_deletions,
    rotated_orders,
    simulated_deletions,
    truncated,
)
from ..forget.sharded.s3t import S3T, SISA, ShardedTraining
from ..forget.sharded.tasks import ShardTask
from ..models.recipe import CausalTraining
from ..runs import scratch_folder
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

REPORTED, OTHERS = (5, 6, 7, 8, 9), (0, 1, 2, 3, 4)
RATES = (5e-4, 2e-3, 8e-3, 3.2e-2)  # of S3T and of SISA alike
CHOOSING_SEED = 100
POINTS = (2.0, 5.0)  # of accuracy below the start that count as kept
FIRST = 30  # deletions over which accuracy is averaged
RATIO, BEHIND = 1.5, 3.0  # of deletions at the largest budget to those at one order; points behind ordinary LoRA
RANK = 4
COLUMNS = (
    "start, %", "deletions within 2 points", "within 5 points", "until none answers", f"mean of the first {FIRST}, %",
    "training after a deletion, s", "training before, s",
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How large the experiment is.

    Args:
        n_shards, n_slices, budgets: of the plan; the last budget is trained, the others are its first orders.
        epochs: of every stage; the base has twice as many.
        streams, runs: of deletions, and of the simulation.
        rates: to choose from.
    """

    n_shards: int
    n_slices: int
    budgets: tuple[int, ...]
    epochs: int
    streams: int
    runs: int
    rates: tuple[float, ...]


SCALES = {
    "tiny": Scale(2, 2, (1, 2), 1, 5, 200, RATES[:1]),
    "small": Scale(3, 4, (1, 2, 4), 8, 200, 2000, RATES),
}


@dataclass(frozen=True, kw_only=True)
class OrdinaryLora(SISA):
    """Every shard fine-tuned as usual: LoRA in all blocks at once, on all its rows."""

    def increments(self, model: nn.Module, task: ShardTask, dataset: Any) -> Any:
        blocks, count = block_list(model)
        targets = default_targets(model, blocks, all_linear=False)
        return LoraGroups(blocks, 1, count, targets, task.head(model, dataset), RANK, 16, True, 0.1)


@dataclass(frozen=True)
class DeletionArm:
    """One way to serve shards, with the answers of all its stages to the test rows.

    Args:
        orders: of every shard.
        answers: {(shard, prefix): [rows, classes]}.
        whole_only: only a shard that lost nothing answers.
        seconds, before: of training after a deletion, and before any.
    """

    orders: tuple[Order, ...]
    answers: Mapping[tuple[int, Order], torch.Tensor]
    whole_only: bool
    seconds: float
    before: float

    def play(self, bed: ShardedDigits, stream: Sequence[tuple[int, int]], n_shards: int) -> list[float]:
        """Accuracy before the first deletion of a stream and after each, as long as a shard answers."""
        left: list[list[Order]] = [[*self.orders] for _ in range(n_shards)]
        known: dict[tuple[Order, ...], float] = {}
        path = []
        for shard, part in [(0, -1), *stream]:  # the first is none, and cuts nothing
            left[shard] = [truncated(order, part) for order in left[shard]]
            served = tuple(max(orders, key=len) for orders in left)
            if self.whole_only:
                served = tuple(order if len(order) == len(self.orders[0]) else () for order in served)
            if not any(served):
                break
            if served not in known:
                each = [self.answers[number, order] for number, order in enumerate(served) if order]
                known[served] = bed.right(torch.stack(each).mean(0))
            path.append(known[served])
        return path


@dataclass(frozen=True)
class Played:
    """One arm on one seed.

    Args:
        start: accuracy before any deletion, in %.
        kept: {points: deletions a stream takes while accuracy stays within them}.
        life: deletions a stream takes until no shard answers.
        mean: accuracy over the first deletions, chance where none answers.
        seconds: of training a deletion.
        before: seconds of training before any.
    """

    start: float
    kept: Mapping[float, float]
    life: float
    mean: float
    seconds: float
    before: float

    @classmethod
    def of(
        cls, arm: DeletionArm, bed: ShardedDigits, streams: Sequence[Sequence[tuple[int, int]]], n_shards: int
    ) -> Played:
        paths = [arm.play(bed, stream, n_shards) for stream in streams]
        start = paths[0][0]

        def kept(points: float) -> float:
            below = (next((at for at, one in enumerate(path) if one < start - points), len(path)) for path in paths)
            return fmean(at - 1 for at in below)

        firsts = [([*path[1:], *[bed.chance] * FIRST])[:FIRST] for path in paths]
        lives = [len(path) - 1 for path in paths]
        return cls(
            start,
            {points: kept(points) for points in POINTS},
            fmean(lives),
            fmean(map(fmean, firsts)),
            arm.seconds,
            arm.before,
        )

    def figures(self) -> list[float]:
        """As the columns have them."""
        return [self.start, *(self.kept[points] for points in POINTS), self.life, self.mean, self.seconds, self.before]


def run(budget: Budget) -> Claim:
    """Chooses rates on other classes, trains every stage once a seed, and plays the deletions."""
    scale = SCALES.get(budget.size, SCALES["small"])
    rates, tried = chosen_rates(scale)
    measurements: dict[str, list[Played]] = {}
    ordinary, one_slice, exact = list[float](), list[float](), list[bool]()
    for seed in budget.seeds:
        bed = ShardedDigits.of(seed, REPORTED, 2 * scale.epochs)
        arms, lora, single = _arms(bed, scale, rates, seed)
        streams = _streams(scale, seed)
        for name, arm in arms.items():
            measurements.setdefault(name, []).append(Played.of(arm, bed, streams, scale.n_shards))
        ordinary.append(lora)
        one_slice.append(single)
        if seed == budget.seeds[0]:
            exact.append(_bit_identical(bed, scale, rates["S3T"], seed))
    checks, rows = _checks(scale, measurements, ordinary, one_slice, all(exact)), dict[str, tuple[str, ...]]()
    for name, seeds in measurements.items():
        rows[name] = tuple(spread(list(column)) for column in zip(*(one.figures() for one in seeds), strict=True))
    rows["ordinary LoRA on each shard"] = (spread(ordinary), *["–"] * (len(COLUMNS) - 1))
    extra = _extra(scale, rates, tried, one_slice)
    return Claim(
        slug="s3t",
        claim="Orders of LoRA slices that are switched off take O(mL log(mB)) deletions before retraining, SISA O(mL log m), with "
        "better accuracy on the way and no training (ViT, RoBERTa, Llama; arXiv 2406.16257)",
        setting=f"scikit-learn's digits, ViT of 4 blocks pretrained on classes 0 to 4, classes 5 to 9 learnt in {scale.n_shards} "
        f"shards of {scale.n_slices} slices, LoRA of rank {RANK}; {scale.streams} streams of random slice deletions a seed, seeds "
        f"{', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(checks, _reason(measurements, ordinary)),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def _extra(scale: Scale, rates: Any, tried: Any, one_slice: Sequence[float]) -> dict[str, Any]:
    lives = {f"B={b}": round(expected_deletions(scale.n_shards, scale.n_slices, b), 2) for b in scale.budgets}
    return {
        "rates": rates,
        "accuracy on other classes by rate": tried,
        "expected until none answers": lives,
        "budgets": [scale.budgets[0], scale.budgets[-1]],
        "first slices alone, %": [*one_slice],
    }


def chosen_rates(scale: Scale) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Each method's rate by the accuracy of one shard on the classes that are not reported, and all that were tried."""
    bed = ShardedDigits.of(CHOOSING_SEED, OTHERS, 2 * scale.epochs)
    rows = bed.train.where(bed.train.index % scale.n_shards == 0)  # as many as a shard has
    tried: dict[str, dict[str, float]] = {}
    for name, plan in _plans(replace(scale, n_shards=1, budgets=(1,)), CHOOSING_SEED).items():
        tried[name] = {}
        for rate in scale.rates:
            with scratch_folder() as folder:
                sharded = plan(rate).fit(bed.base, rows, folder / "s3t")
                tried[name][f"{rate:g}"] = bed.right(sharded.predict(bed.test))
    return {name: float(max(one, key=lambda rate: one[rate])) for name, one in tried.items()}, tried


def _plans(scale: Scale, seed: int) -> dict[str, Callable[[float], ShardedTraining]]:
    def training(rate: float) -> CausalTraining:
        return CausalTraining(epochs=scale.epochs, lr=rate, batch_size=32)

    shape: dict[str, Any] = {"n_shards": scale.n_shards, "n_slices": scale.n_slices, "seed": seed}
    return {
        "S3T": lambda rate: S3T(**shape, budget=scale.budgets[-1], rank=RANK, training=training(rate)),
        "SISA": lambda rate: SISA(**shape, training=training(rate)),
        "ordinary LoRA": lambda rate: OrdinaryLora(**{**shape, "n_slices": 1}, training=training(rate)),
    }


def _arms(
    bed: ShardedDigits, scale: Scale, rates: Mapping[str, float], seed: int
) -> tuple[dict[str, DeletionArm], float, float]:
    """Every arm, the accuracy of ordinary LoRA, and that of first slices alone."""
    plans = _plans(scale, seed)
    with scratch_folder() as folder:
        s3t, sisa, lora = (plan(rates[name]).fit(bed.base, bed.train, folder / name) for name, plan in plans.items())
        answers, checkpoints = _answers(s3t, bed), _answers(sisa, bed)
        before = bed.right(lora.predict(bed.test))
        notes, checkpoint_notes = [*s3t.ledger.notes.values()], [*sisa.ledger.notes.values()]
        seconds, retraining = _trained_by_a_deletion(s3t, bed), _trained_by_a_deletion(sisa, bed)
    orders, one = rotated_orders(scale.n_slices, scale.budgets[-1]), (tuple(range(scale.n_slices)),)
    arms = {
        f"S3T, B={b}": DeletionArm(tuple(orders[:b]), answers, False, seconds, _before(notes, orders[:b]))
        for b in scale.budgets
    }
    cost = _before(checkpoint_notes, one)
    arms["SISA"] = DeletionArm(one, checkpoints, False, retraining, cost)
    arms["SISA without slices"] = DeletionArm(one, checkpoints, True, retraining, cost)
    first = [answers[shard, (0,)] for shard in range(scale.n_shards)]
    return arms, before, bed.right(torch.stack(first).mean(0))


def _answers(sharded: ShardedModel, bed: ShardedDigits) -> dict[tuple[int, Order], torch.Tensor]:
    return {key: sharded.probabilities(sharded.stage(*key), bed.test) for key in sharded.ledger.notes}


def _before(notes: Sequence[NodeNote], orders: Sequence[Order]) -> float:
    """Seconds that the stages of these orders took."""
    return sum(note.seconds for note in notes if any(order[: len(note.prefix)] == note.prefix for order in orders))


def _trained_by_a_deletion(sharded: ShardedModel, bed: ShardedDigits) -> float:
    """Mean seconds of training that follow a deletion, over one of each slice of the first shard.

    S3T trains a shard that has no stage left, SISA what followed the slice.
    """
    plan, seconds = sharded.ledger.plan, []
    for part in range(plan.n_slices if plan.method == "SISA" else 1):  # others are played on the kept answers
        sharded.delete(sharded.ledger.remaining(0, part)[0])
        start = time.perf_counter()
        stages = sharded.retrain(bed.train, shards=[0] if plan.method == "SISA" else None)
        seconds.append(time.perf_counter() - start if stages else 0.0)
    return fmean(seconds)


def _bit_identical(bed: ShardedDigits, scale: Scale, rate: float, seed: int) -> bool:
    """Whether two trainings whose records differ in one slice answer alike once it is deleted, and not before."""
    plan = S3T(
        n_shards=1,
        n_slices=scale.n_slices,
        budget=2,
        rank=RANK,
        seed=seed,
        training=CausalTraining(epochs=max(1, scale.epochs // 5), lr=rate, batch_size=32),
    )
    with scratch_folder() as folder:
        one = plan.fit(bed.base, bed.train, folder / "one")
        names = one.ledger.remaining(0, 1)
        other = torch.isin(bed.train.index, torch.tensor([int(name) for name in names]))
        pixels = torch.where(other[:, None, None, None], 1 - bed.train.pixels, bed.train.pixels)
        two = plan.fit(bed.base, replace(bed.train, pixels=pixels), folder / "two")
        before = torch.equal(one.predict(bed.test), two.predict(bed.test))
        for sharded in (one, two):
            sharded.delete(names[0])
        return not before and torch.equal(one.predict(bed.test), two.predict(bed.test))


def _streams(scale: Scale, seed: int) -> list[list[tuple[int, int]]]:
    """Deletions of slices drawn uniformly, long enough that no shard is left."""
    length = 20 * scale.n_shards * scale.n_slices
    drawn = np.random.default_rng(seed).integers((scale.n_shards, scale.n_slices), size=(scale.streams, length, 2))
    return [[(int(shard), int(part)) for shard, part in stream] for stream in drawn]


def _checks(
    scale: Scale,
    measurements: Mapping[str, Sequence[Played]],
    ordinary: Sequence[float],
    one_slice: Sequence[float],
    exact: bool,
) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed."""
    least, most = (measurements[f"S3T, B={b}"] for b in (scale.budgets[0], scale.budgets[-1]))
    sisa = measurements["SISA"]
    kept = [many.kept[POINTS[0]] / max(few.kept[POINTS[0]], 1e-9) for many, few in zip(most, least, strict=True)]
    lives = [many.life / few.life for many, few in zip(most, least, strict=True)]
    mean = [many.mean - one.mean for many, one in zip(most, sisa, strict=True)]
    behind = [many.start - lora for many, lora in zip(most, ordinary, strict=True)]
    free = all(one.seconds == 0 for one in most) and all(one.seconds > 0 for one in sisa)
    simulated, random = _simulated(scale)
    b = scale.budgets[-1]
    return (
        Check.by_seed(
            "claim", f"B={b} keeps within 2 points for {RATIO} times the deletions of B=1", kept, ">=", RATIO
        ),
        Check.by_seed("claim", f"B={b} answers {RATIO} times as long as B=1", lives, ">=", RATIO),
        Check.by_seed("claim", f"over {FIRST} deletions B={b} answers better than SISA's checkpoints", mean, ">", 0),
        Check.by_seed("claim", f"the start is at most {BEHIND:g} points behind ordinary LoRA", behind, ">=", -BEHIND),
        Check("claim", "a deletion trains nothing, where SISA trains", free),
        Check("mechanism", "trainings that differ in a deleted slice answer alike, bit for bit", exact),
        Check("mechanism", "simulated lives are those of the closed form, within 3 standard errors", simulated),
        Check.paired("control", "as many orders drawn at random die sooner", *random),
        Check.by_seed(
            "set-up",
            "ordinary LoRA is 30 points above chance",
            [one - 100 / len(REPORTED) for one in ordinary],
            ">=",
            30,
        ),
        Check.by_seed(
            "set-up",
            "a first slice alone loses a point, so there is something to lose",
            [many.start - one for many, one in zip(most, one_slice, strict=True)],
            ">=",
            1,
        ),
    )


def _simulated(scale: Scale) -> tuple[bool, tuple[list[float], list[float]]]:
    """Whether lives agree with the closed form, and lives of rotations and of orders drawn at random, run by run."""
    agree = True
    for b in scale.budgets:
        orders = rotated_orders(scale.n_slices, b)
        counts = simulated_deletions(scale.n_shards, orders, scale.runs, seed=b)
        error = counts.std(ddof=1) / sqrt(scale.runs)
        agree &= abs(counts.mean() - expected_deletions(scale.n_shards, scale.n_slices, b)) <= 3 * error
    draws = scale.runs // 10
    even = (0.0,) * scale.n_slices
    random = [
        float(count)
        for seed in range(draws)
        for count in simulated_deletions(scale.n_shards, drawn_orders(even, b, seed), 10, seed)
    ]
    return bool(agree), ([float(one) for one in counts[: len(random)]], random)


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """How long accuracy is kept with many orders and with one."""
    few, many = extra["budgets"]
    kept = [figure(rows, f"S3T, B={b}", 1) for b in (many, few)]
    return f"{many} orders keep accuracy within 2 points for {kept[0]} deletions, one order for {kept[1]}"


def _reason(measurements: Mapping[str, Sequence[Played]], ordinary: Sequence[float]) -> str:
    def of(get: Callable[[Played], float]) -> str:
        return ", ".join(f"{fmean(map(get, seeds)):.1f} {name}" for name, seeds in measurements.items())

    kept, lives, start = of(lambda one: one.kept[POINTS[0]]), of(lambda one: one.life), of(lambda one: one.start)
    end = f"Accuracy at the start: {start}, {fmean(ordinary):.1f} ordinary LoRA"
    return f"Deletions within 2 points: {kept}. Until none answers: {lives}. {end}"
