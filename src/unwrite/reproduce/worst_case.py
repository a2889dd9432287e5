"""Which rows are hardest to erase? Real digits, a tenth of their labels swapped, a tenth of the rows to forget.

Claim looked at (arXiv 2403.07362): a model retrained without the worst-case forget set, found by bi-level selection, still gets all
of it right, while it gets about 5 % of a random one wrong. Rows selected in one pass (the lowest loss of the trained model, its
smallest gradient or error, both ends of the distance to the class's median) stand beside, as do the easiest rows, and rows that
the same bi-level selection takes for a model that was never trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from ..audit.images.worst_case import BilevelSelection, Selector, right_of_kept, split_worst_case
from ..beds.budget import Budget
from ..beds.images import COLUMNS as IMAGE_COLUMNS
from ..beds.images import METRICS, Bed, ImageBed, Measured, rows_of
from ..beds.worst_case import SHARE, bed_named, swapped, worst_case_bed
from ..data.images.splits import ImageSplit
from .base import Claim, figure
from .checks import Check, reason_of

# The published step, 1e-3, leaves so small a net 80 % of its kept rows right, 3e-4 leaves 97 %, 1e-4 98.5 % of 99 % (another seed's).
SELECTION = BilevelSelection(rounds=20, epochs=3, lr_theta=1e-4)
EASIEST = replace(SELECTION, easiest=True)
TINY = BilevelSelection(rounds=2, epochs=1), BilevelSelection(rounds=2, epochs=1, easiest=True)
DRAWS = 5  # random forget sets a seed
ONE_PASS: tuple[Selector, ...] = ("low-loss", "low-gradient", "low-error", "median-tails")
WORST, EASY, RANDOM, UNTRAINED = "bi-level, worst", "bi-level, easiest", "random", "bi-level on an untrained model"
BEFORE = "before, on the worst"
COLUMNS = ("swapped labels among them, %", *IMAGE_COLUMNS)
MARGIN = 1.0  # points of unseen rows that retraining may lose beside a random set

Measurements = dict[str, list[Measured]]


def run(budget: Budget) -> Claim:
    """Retrains without every forget set, on every seed; all sets of a seed are of one target model."""
    worst, easiest = TINY if budget.size == "tiny" else (SELECTION, EASIEST)
    draws = 2 if budget.size == "tiny" else DRAWS
    measurements: Measurements = {}
    spreads: list[float] = []  # of the random sets' UA, a figure a seed
    lost: list[float] = []  # by the lower level, a figure a seed
    moved: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a selection hardly leaves its random start: the table tells
        for seed in budget.seeds:
            lost.append(_lost(seed, worst))
            _seed(seed, worst, easiest, draws, measurements, spreads)
            moved[str(seed)] = round(_apart(measurements), 1)
    checks = _checks(measurements, spreads, lost)
    rows = {name: (_swapped(one), *rows_of({name: one}, METRICS)[name]) for name, one in measurements.items()}
    return Claim(
        slug="worst-case",
        claim="Optimised worst-case forget sets resist erasure: retraining forgets 0 % of them against about 5 % of random sets "
        "(ResNet-18 on CIFAR-10, a tenth of the rows, arXiv 2403.07362; two users could not reproduce it)",
        setting="scikit-learn's digits, a tenth of the training labels swapped, CNN of 0.08M weights, a tenth of the rows to forget, "
        f"{draws} random sets a seed, seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks, _reason(measurements)),
        checks=checks,
        seeds=budget.seeds,
        extra={"points of UA between random and worst, a seed": moved, "spread of random sets, a seed": spreads},
    )


def _lost(seed: int, selection: BilevelSelection) -> float:
    """Points of the rows it keeps that the lower level gets wrong and the target right, where a random set goes."""
    bed = ImageBed(worst_case_bed("worst", bed_named("digits/worst-case"), "random"), seed)
    rows = bed.split.train
    w = torch.isin(rows.index, bed.split.forget.index).double()
    unlearned = selection.unlearn(bed.before, rows, w, seed)
    return 100 * (right_of_kept(bed.before, rows, w) - right_of_kept(unlearned, rows, w))


def _seed(
    seed: int,
    worst: BilevelSelection,
    easiest: BilevelSelection,
    draws: int,
    measurements: Measurements,
    spreads: list[float],
) -> None:
    like = bed_named("digits/worst-case")
    target = ImageBed(worst_case_bed("worst", like, "random"), seed).before
    untrained = ImageBed(like, seed).recipe.build(seed + 1).eval()

    def keep(name: str, selector: Selector | BilevelSelection, model: nn.Module = target, draw: int = 0) -> Measured:
        bed = _Selected(like, seed, _split(like, model, selector, seed, draw))
        one = _with_swapped(bed.retraining(), bed.split, seed)
        measurements.setdefault(name, []).append(one)
        if name == WORST:
            measurements.setdefault(BEFORE, []).append(_with_swapped(bed.measure(bed.before), bed.split, seed))
        return one

    keep(WORST, worst)
    keep(EASY, easiest)
    random: Measurements = {}
    sets = [_split(like, target, "random", seed, draw) for draw in range(draws)]
    random[RANDOM] = [_with_swapped((bed := _Selected(like, seed, one)).retraining(), bed.split, seed) for one in sets]
    spreads.append(stdev(one["UA"] for one in random[RANDOM]))
    measurements.setdefault(RANDOM, []).append(_mean(random[RANDOM]))
    for selector in ONE_PASS:
        keep(selector, selector)
    keep(UNTRAINED, worst, untrained)


class _Selected(ImageBed):
    """A bed whose split is given."""

    def __init__(self, bed: Bed, seed: int, split: ImageSplit) -> None:
        super().__init__(bed, seed)
        self.__dict__["split"] = split


def _split(like: Bed, model: nn.Module, selector: Selector | BilevelSelection, seed: int, draw: int) -> ImageSplit:
    """The bed's rows; further random sets are drawn from other seeds, with the same holdout."""
    data = like.data(seed)
    split = split_worst_case(model, data.train, SHARE, selector, test=data.test, seed=seed)
    if not draw:
        return split
    return split_worst_case(
        model, split.train, len(split.forget), selector, test=data.test, holdout=split.holdout, seed=seed + 1000 * draw
    )


def _with_swapped(one: Measured, split: ImageSplit, seed: int) -> Measured:
    """With the share of the forget rows whose label was swapped, in %."""
    share = 100 * float(torch.isin(split.forget.index, swapped(seed)).double().mean())
    return Measured({**one.values, "swapped": share}, one.cost)


def _mean(draws: Sequence[Measured]) -> Measured:
    """Over the random sets of a seed."""
    names = [name for name in draws[0].values if all(name in one.values for one in draws)]
    return Measured({name: fmean(one[name] for one in draws) for name in names}, fmean(one.cost for one in draws))


def _swapped(seeds: Sequence[Measured]) -> str:
    return f"{fmean(one['swapped'] for one in seeds):.1f}"


def _apart(measurements: Measurements) -> float:
    """Points of UA between the last seed's random and worst sets."""
    return measurements[RANDOM][-1]["UA"] - measurements[WORST][-1]["UA"]


def _checks(measurements: Measurements, spreads: Sequence[float], lost: Sequence[float]) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed."""

    def of(name: str, metric: str = "UA") -> list[float]:
        return [one[metric] for one in measurements[name]]

    def ahead(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
        return [one - other for one, other in zip(ours, theirs, strict=True)]

    random, worst = of(RANDOM), of(WORST)
    margins = [
        min(one - 2 * spread - own, one / 4 - own) for one, own, spread in zip(random, worst, spreads, strict=True)
    ]
    noise = ahead(of(RANDOM, "swapped"), of(WORST, "swapped"))
    planted = ahead(of(EASY, "swapped"), of(RANDOM, "swapped"))
    unseen = ahead(of(WORST, "TA"), of(RANDOM, "TA"))
    untrained = [own - one / 2 for own, one in zip(of(UNTRAINED), random, strict=True)]
    return (
        Check.by_seed("set-up", "a retrained model gets 5 % of a random forget set wrong", random, ">=", 5),
        Check.by_seed("set-up", "the lower level gets at most 2 points more of the rows it keeps wrong", lost, "<=", 2),
        Check.by_seed("mechanism", "the worst set has fewer rows with a swapped label than a random one", noise, ">", 0),
        Check.by_seed("mechanism", "the easiest set has more of them", planted, ">", 0),
        Check.by_seed(
            "claim",
            "retraining forgets at most a quarter of a random set's share, and two spreads less, of the worst set",
            margins,
            ">=",
            0,
        ),
        Check.by_seed("claim", "retraining forgets more of the easiest set", ahead(of(EASY), random), ">", 0),
        Check.by_seed("claim", f"without the worst set unseen rows lose at most {MARGIN:g} point", unseen, ">=", -MARGIN),
        Check.by_seed(
            "claim", "less of it is forgotten than of the rows of lowest loss", ahead(of("low-loss"), worst), ">", 0
        ),
        Check.by_seed("control", "rows selected for an untrained model are not so: half of a random set's share", untrained, ">=", 0),
    )  # fmt: skip


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What a retrained model forgets of the worst, of a random and of the lowest-loss set."""
    names = {"of the worst set": WORST, "random": RANDOM, "lowest-loss": "low-loss"}
    return "retraining forgets " + ", ".join(f"{figure(rows, name, 1)} % {word}" for word, name in names.items())


def _reason(measurements: Measurements) -> str:
    forgotten = ", ".join(
        f"{fmean(m['UA'] for m in one):.1f} {name}" for name, one in measurements.items() if name != BEFORE
    )
    noise = ", ".join(f"{fmean(m['swapped'] for m in one):.1f} {name}" for name, one in measurements.items())
    return f"Forgotten by retraining, in %: {forgotten}. Rows with a swapped label among them, in %: {noise}"
