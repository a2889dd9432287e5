"""ParallelBench's list operations: a perfect model against the theory, and the test bed's model against the perfect one.

Claim looked at (arXiv 2510.04767): what breaks when several tokens are written at once is not the model but the data: positions that
depend on each other cannot be drawn apart. So a perfect model's accuracy follows from the total correlation alone, and a trained model's
should lie on the same curve: flat for copy, flip and sort, falling for swap (replace one at random) and mix (shuffle).
Only the six items of a list are written, everything else is given.

Both models get the same prompts and samplers, and the same metric judges them. They know the same answers: swap has six, mix 719, for
the test bed never saw a shuffle that changes nothing. That moves the paper's closed form by less than 0.1 points, so the theory is
enumerated here. Tokens are drawn (T = 1): greedily, equal probabilities are a perfect model's coin and a trained model's habit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import pstdev
from typing import Any

import numpy as np

from ..beds import denoiser as testbed
from ..beds import denoiser_items as testbed_items
from ..beds import denoising
from ..beds.budget import Budget
from ..diffusion import Confidence, FixedBlocks, Gumbel, LeftToRight, RandomOrder, Sampler, Threshold, TopK
from ..diffusion.adapter import MaskPredictor
from ..diffusion.parallelbench import Frame, IdealListModel, ListTokens, lower_bound, written_right
from .base import Claim, figure
from .checks import Check, reason_of

N, STEPS = 6, (1, 2, 3, 6)
OPERATIONS = {"copy": "copy", "flip": "reverse", "sort": "sort", "swap": "replace_random", "mix": "shuffle"}
DEPENDENT = ("swap", "mix")
ANY = "in random order"  # the theory's
ORDERS = {ANY: RandomOrder(), "by confidence": Confidence(), "from left to right": LeftToRight()}
HIGH, LOW = 0.9, 0.4  # thresholds: the last two of a list are sure to a half
PASSES = 3  # of the perfect model over the prompts
FEWER = 5  # times fewer prompts where an answer is determined
NEAR, FLAT = 5.0, 95.0  # points
BATCH = 128
COLUMNS = (
    "bits lost",
    "theory, %",
    *(f"{order}, test bed (perfect), %" for order in ORDERS),
    "greedily, in random order",
)


@dataclass(frozen=True)
class ListWriter:
    """A model with what it reads and says.

    Args:
        predictor: the model.
        frames: for each prompt what is asked of it.
        said: the text of an answer's ids.
    """

    predictor: MaskPredictor
    frames: Sequence[Frame]
    said: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Figure:
    """Percent right, in all and of every seed, and items a step."""

    right: float
    each: tuple[float, ...]
    speed: float

    @property
    def spread(self) -> float:
        """The standard deviation over seeds."""
        return pstdev(self.each)


Both = tuple[Figure, Figure]  # of the test bed, of the perfect model


@dataclass(frozen=True)
class WriterPair:
    """The test bed and the perfect model before the same prompts of one operation.

    Args:
        operation: its name.
        asked: the prompts, those of one seed after those of another.
        learnt, perfect: the two.
        seeds: how many.
    """

    operation: str
    asked: Sequence[testbed.Item]
    learnt: ListWriter
    perfect: ListWriter
    seeds: int

    def written(self, **parts: Any) -> Both:
        """What a sampler with these parts does with each; the perfect model writes PASSES answers to a prompt."""
        common = Sampler(gen_length=N, blocks=FixedBlocks(None), propose=Gumbel(1.0))
        sampler = replace(common, **parts)
        ours = measured(self.learnt, self.asked, sampler, self.seeds)
        return ours, measured(self.perfect, [*self.asked] * PASSES, sampler)


def run(budget: Budget) -> Claim:
    """Every operation, one to six items a step."""
    bed = denoising.trial(budget, ("lists",)).bed
    pairs = {operation: _pair(bed, operation, budget) for operation in OPERATIONS}
    counted = {(operation, k): _counted(pairs[operation], k) for operation in OPERATIONS for k in STEPS}
    greedy = {
        key: pairs[key[0]].written(steps=N // key[1], commit=TopK(), score=RandomOrder(), propose=Gumbel(0.0)) for key in counted
    }  # fmt: skip
    bars = {(name, bar): pairs[name].written(commit=Threshold(bar)) for name in DEPENDENT for bar in (HIGH, LOW)}
    compared = {order: [counted[name, k][order] for name in DEPENDENT for k in STEPS] for order in ORDERS}
    compared["with thresholds"] = [*bars.values()]
    free = [
        ours
        for (name, k), results in counted.items()
        if name not in DEPENDENT and k == N
        for ours, _ in results.values()
    ]
    swaps = [greedy["swap", k][0] for k in STEPS if k > 2]
    sure = bars["mix", HIGH][0]
    predicted = all(
        _as_predicted(pairs[name], theory(name, k)[1], results[ANY][1]) for (name, k), results in counted.items()
    )
    checks = _checks(predicted, compared, free, swaps, sure)
    off = {way: max(map(_off, results)) for way, results in compared.items()}
    flat = min(one.right for one in free)
    rows = _rows(counted, greedy, bars)
    return Claim(
        slug="parallelbench",
        claim="tasks without dependence between tokens stay right at any parallelism, Replace-Random and Shuffle collapse, also after "
        "fine-tuning (LLaDA-1.5, arXiv 2510.04767)",
        setting=_setting(bed, pairs),
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(
            checks,
            "points that the trained model is off the perfect one on swap and mix, at most: "
            + ", ".join(f"{most:.1f} {way}" for way, most in off.items())
            + f"; at least {flat:.1f} % right on copy, flip and sort with six items at once; threshold {HIGH:g} on mix: {sure.right:.1f} % at "
            f"{sure.speed:.2f} items a step",
        ),
        checks=checks,
        seeds=budget.seeds,
    )


def _checks(
    predicted: bool,
    compared: Mapping[str, Sequence[Both]],
    free: Sequence[Figure],
    swaps: Sequence[Figure],
    sure: Figure,
) -> tuple[Check, ...]:
    """The card's conditions, by the range over seeds of the worst setting.

    Args:
        predicted: whether the perfect model is as right as the theory says.
        compared: {way of writing: both models on what depends on each other}.
        free: the trained model where nothing depends, all at once.
        swaps: the trained model's greedy swaps, several a step.
        sure: the trained model's shuffles by a high threshold.
    """
    seeds = range(len(sure.each))
    checks = [Check("mechanism", "the perfect model's accuracies are the theory's", predicted)]
    for way, results in compared.items():
        most = [max(abs(ours.each[seed] - perfect.right) for ours, perfect in results) for seed in seeds]
        text = f"where items depend on each other the trained model is within 5 points of it {way}"
        checks.append(Check("claim", text, max(map(_off, results)), "<=", NEAR, (min(most), max(most))))
    flat = [min(one.each[seed] for one in free) for seed in seeds]
    swapped = [max(one.each[seed] for one in swaps) for seed in seeds]
    one_a_step = list(sure.each) if sure.speed < 1.1 else [0.0 for _ in seeds]
    shuffles = f"a threshold of {HIGH:g} shuffles one item a step, rightly"
    return (
        *checks,
        Check.by_seed("claim", "where they don't it stays above 95 with all six at once", flat, ">", FLAT),
        Check.by_seed("claim", "greedily it never swaps rightly with three or six a step", swapped, "<=", NEAR),
        Check.by_seed("claim", shuffles, one_a_step, ">", FLAT),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """All six at once, in random order: what needs no dependence stays right, what does collapses as the theory says."""
    copied, swapped, mixed = (figure(rows, f"{name}, {N} a step", 2) for name in ("copy", "swap", "mix"))
    expected, shuffled = (rows[f"{name}, {N} a step"][1] for name in ("swap", "mix"))
    return f"six at once: copy {copied} %, swap {swapped} (theory {expected}), mix {mixed} (theory {shuffled})"


def _pair(bed: testbed.TestBed, operation: str, budget: Budget) -> WriterPair:
    each = denoising.SIZES[budget.size]
    prompts = lists(operation, each if operation in DEPENDENT else max(1, each // FEWER), budget.seeds)
    return WriterPair(operation, prompts, _test_bed(bed, prompts), _perfect(prompts * PASSES), len(budget.seeds))


def _counted(pair: WriterPair, k: int) -> dict[str, Both]:
    """{order: both} with k items a step."""
    return {order: pair.written(steps=N // k, commit=TopK(), score=score) for order, score in ORDERS.items()}


def _rows(
    counted: Mapping[tuple[str, int], Mapping[str, Both]],
    greedy: Mapping[tuple[str, int], Both],
    bars: Mapping[tuple[str, float], Both],
) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for (operation, k), results in counted.items():
        bits, chance = theory(operation, k)
        figures = map(_shown, (*results.values(), greedy[operation, k]))
        rows[f"{operation}, {k} a step"] = (f"{bits:.2f}", f"{100 * chance:.1f}", *figures)
    for (operation, bar), (ours, theirs) in bars.items():
        speeds = f" at {ours.speed:.2f} ({theirs.speed:.2f}) a step"
        rows[f"{operation}, threshold {bar:g}"] = ("", "", "", _shown((ours, theirs)) + speeds, "", "")
    return rows


def _off(both: Both) -> float:
    return abs(both[0].right - both[1].right)


def _shown(both: Both) -> str:
    return f"{both[0].right:.1f} +- {both[0].spread:.1f} ({both[1].right:.1f})"


def _as_predicted(pair: WriterPair, chance: float, perfect: Figure) -> bool:
    """Within four sigma; exactly where the theory is certain."""
    sigma = np.sqrt(chance * max(0.0, 1 - chance) / len(pair.perfect.frames))
    return bool(abs(perfect.right / 100 - chance) <= 4 * sigma + 1e-9)


def _setting(bed: testbed.TestBed, pairs: Mapping[str, WriterPair]) -> str:
    weights = sum(parameter.numel() for parameter in bed.model.parameters())
    counts = {operation: len(pair.asked) for operation, pair in pairs.items()}
    return (
        f"mask predictor of {weights / 1e6:.2f}M weights trained on sums, records and lists; lists of {N}, only the items are written, "
        f"T = 1; {counts['mix']} prompts of mix and of swap, {counts['copy']} of each other operation, from {pairs['mix'].seeds} seeds; "
        f"the perfect model writes {PASSES} answers to each"
    )


def lists(operation: str, each: int, seeds: Sequence[int]) -> list[testbed.Item]:
    """Prompts of one operation with lists of six, `each` of every seed."""
    items: list[testbed.Item] = []
    for at, seed in enumerate(seeds, 1):
        random = Random(denoising.PROMPTS_SEED + seed)
        while len(items) < at * each:
            item = testbed.BY_NAME["lists"].make(random)
            if item.prompt.startswith(operation) and len(_parts(item)[2]) == N:
                items.append(item)
    return items


def _parts(item: testbed.Item) -> tuple[str, str, list[str]]:
    """Operation, new letter or a blank, items."""
    return item.prompt[:5].strip(), item.prompt[5], item.prompt[7:].strip().split(",")


def theory(operation: str, k: int) -> tuple[float, float]:
    """Bits lost, and how often exact conditionals are right, with k positions a step; by enumeration of all right answers."""
    items = tuple(range(N))
    if operation == "mix":
        answers = [order for order in itertools.permutations(items) if order != items]
    elif operation == "swap":
        answers = [(*items[:place], N, *items[place + 1 :]) for place in items]
    else:
        answers = [items]
    joint = {answer: 1 / len(answers) for answer in answers}
    steps = [range(first, first + k) for first in range(0, N, k)]
    return lower_bound(joint, steps), written_right(joint, steps)


def _perfect(prompts: Sequence[testbed.Item]) -> ListWriter:
    tokens = ListTokens(tuple(testbed_items.LETTERS))
    frames = []
    for operation, new, items in map(_parts, prompts):
        frames.append(tokens.prompt(OPERATIONS[operation], items, new if operation == "swap" else None))
    model = MaskPredictor(IdealListModel(tokens, changed=True), tokens.mask_id, (), probe=False)
    return ListWriter(model, frames, lambda ids: tokens.text(ids).replace('"', "").replace(" ", ""))


def _test_bed(bed: testbed.TestBed, prompts: Sequence[testbed.Item]) -> ListWriter:
    """All of each answer but its items is given."""
    ids = bed.tokenizer
    frames = []
    for item in prompts:
        tokens = [*ids(item.answer)["input_ids"], *[ids.eos_token_id] * testbed.ANSWER]
        fixed = {place: tokens[place] for place in range(testbed.ANSWER) if place >= 2 * N or place % 2 == 0}
        frames.append(Frame(ids(item.prompt)["input_ids"], testbed.ANSWER, fixed))
    return ListWriter(bed.predictor, frames, ids.decode)


def measured(writer: ListWriter, prompts: Sequence[testbed.Item], sampler: Sampler, seeds: int = 1) -> Figure:
    """What a sampler does with a model. seeds: how many the prompts are from, those of one after those of another."""
    right, forwards = [], 0
    for start in range(0, len(prompts), BATCH):
        frames = writer.frames[start : start + BATCH]
        fitted = replace(sampler, gen_length=frames[0].length, seed=start)
        out = fitted(writer.predictor, None, [one.prompt for one in frames], fixed=[one.fixed for one in frames])
        assert out.answers is not None
        assert out.nfe is not None
        right += [
            testbed.right(item, writer.said(ids)) for item, ids in zip(prompts[start:], out.answers, strict=False)
        ]
        forwards += int(out.nfe.sum())
    each = [100 * float(np.mean(part)) for part in np.array_split(right, seeds)]
    return Figure(100 * float(np.mean(right)), tuple(each), N * len(prompts) / forwards)
