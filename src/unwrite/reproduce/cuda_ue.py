"""Does a secret blur for each class ruin training? Real digits are published under CUDA, and a small network trains on them.

Claim looked at (arXiv 2303.04278): networks trained on pictures with class-wise filters fail on clean ones, also when they train against
attacks, and also when only a part of the pictures is protected. The control has the same filters, dealt out at random. Noise stands
beside it: error-minimising, and random of the same size for each class. Two attackers were made against CUDA: one trains against
filters (DAT, in its official code), one sharpens at random and keeps low frequencies (arXiv 2411.01742); no check rests on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..beds.budget import Budget
from ..beds.protected_digits import ProtectedDigits, accuracy, against_attacks, class_noise, relabelled
from ..scoring.intervals import spread
from ..shield.cuda import CUDA
from ..shield.defences.deconvolution import DeconvolutionTraining
from ..shield.defences.sharpening import RandomSharpening
from ..shield.em_noise import EMNoise
from .base import Claim, figure
from .checks import Check, reason_of

RUINED, INTACT, CLEAN = 40.0, 70.0, 95.0  # % right on clean digits
FOLLOWED = 90.0  # % right on digits with the filter of their class
RESTORED = 0.5  # of the gap, at most, by training against attacks
LOST = 10.0  # points, at least, where half is protected
LEVELS, ATTACK_LEVELS = 8, 16  # of 255
FILTER, LOWEST = 3, 0.5  # for 8 x 8 pixels: filters of 7 pixels and 0.3 of the frequencies are for 32 x 32
COLUMNS = ("right on clean digits, %",)
PLAIN, TIED, DEALT, HALF = "as they are", "CUDA", "the same filters, dealt at random", "CUDA on half of the pictures"
FAINT, FAINT_DEALT = "CUDA, blur 0.1", "blur 0.1, dealt at random"
NOISE, RANDOM = "error-minimising noise, 8 levels", "random noise of classes, 8 levels"
ARMED, PLAIN_ARMED = "CUDA, trained against attacks", "as they are, trained against attacks"
FILTERED, PLAIN_FILTERED = "CUDA, trained against filters", "as they are, trained against filters"
SHARPENED, PLAIN_SHARPENED = "CUDA, sharpened at random", "as they are, sharpened at random"
LOW, PLAIN_LOW = "CUDA, sharpened, low frequencies", "as they are, sharpened, low frequencies"


@dataclass(frozen=True)
class ShieldScale:
    """How large the experiment is.

    Args:
        epochs, attack_epochs: of who trains, and of who trains against attacks.
        attack_steps: of each attack.
        filter_steps: of each search for filters.
        rounds: of the search for noise.
    """

    epochs: int
    attack_epochs: int
    attack_steps: int
    filter_steps: int
    rounds: int


SCALES = {"tiny": ShieldScale(1, 1, 1, 1, 1), "small": ShieldScale(15, 15, 5, 3, 20)}


@dataclass(frozen=True)
class PublishedFigures:
    """One seed.

    Args:
        right: {what was published, and who trained: % right on clean digits}.
        own: % right of who trained on CUDA on test digits with the filter of their class.
        follows: points by which test digits with the filter of the next class are called that class more often than their own.
    """

    right: Mapping[str, float]
    own: float
    follows: float


def run(budget: Budget) -> Claim:
    """Publishes, trains and tests, once a seed."""
    scale = SCALES.get(budget.size, SCALES["small"])
    seeds = [measured(ProtectedDigits.of(seed, scale.epochs), scale) for seed in budget.seeds]
    rows = {name: (spread([one.right[name] for one in seeds]),) for name in seeds[0].right}
    checks = checks_of(seeds)
    followed = f"with the filter of their class {spread([one.own for one in seeds])} % of test digits are right"
    return Claim(
        slug="cuda-ue",
        claim="ResNet-18 on ImageNet-100 under CUDA is 8.96 % right on clean pictures (80.66 % without), 40.08 % where it trains against "
        "attacks; also a part protected has an effect (arXiv 2303.04278)",
        setting=f"scikit-learn's digits, 1198 published and 599 clean ones; SmallCNN, {scale.epochs} epochs; attacks of 16 levels in "
        f"{scale.attack_steps} steps; filters of {FILTER} pixels in {scale.filter_steps} steps, {LOWEST:g} of the frequencies; seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows),
        reason=reason_of(checks, followed),
        checks=checks,
        seeds=budget.seeds,
        extra={
            "with the filter of their class, %": [one.own for one in seeds],
            "next class over own, points": [one.follows for one in seeds],
        },
    )


def measured(bed: ProtectedDigits, scale: ShieldScale) -> PublishedFigures:
    """Every arm on one seed; the key is the seed's, in no other role than any key has."""
    key = 1000 + bed.seed
    tied = CUDA(key=key).fit(bed.train)
    generator = torch.Generator().manual_seed(key)
    dealt = bed.train.target[torch.randperm(len(bed.train), generator=generator)]
    faint = CUDA(key=key, blur=0.1).fit(bed.train)
    noise = EMNoise(key=key, mode="class", eps=LEVELS / 255, rounds=scale.rounds, batch_size=128)

    def published(protection: Any, by: torch.Tensor) -> Any:
        """The training digits as protected for these labels, with their own."""
        return relabelled(protection.transform(relabelled(bed.train, by)), bed.train.target)

    protected = published(tied, bed.train.target)
    armed = against_attacks(ATTACK_LEVELS / 255, scale.attack_steps)
    filters = DeconvolutionTraining(kernel_size=FILTER, steps=scale.filter_steps)
    sharp, low = RandomSharpening(share=1.0), RandomSharpening(share=LOWEST)
    right = {
        PLAIN: bed.right(bed.train),
        TIED: bed.right(protected),
        DEALT: bed.right(published(tied, dealt)),
        FAINT: bed.right(published(faint, bed.train.target)),
        FAINT_DEALT: bed.right(published(faint, dealt)),
        HALF: bed.right(CUDA(key=key, mix=0.5).fit_transform(bed.train)),
        ARMED: bed.right(protected, armed, scale.attack_epochs),
        PLAIN_ARMED: bed.right(bed.train, armed, scale.attack_epochs),
        FILTERED: bed.right(protected, filters, scale.attack_epochs),
        PLAIN_FILTERED: bed.right(bed.train, filters, scale.attack_epochs),
        SHARPENED: bed.right(protected, sharp),
        PLAIN_SHARPENED: bed.right(bed.train, sharp),
        LOW: bed.right(protected, low),
        PLAIN_LOW: bed.right(bed.train, low),
        NOISE: bed.right(noise.fit_transform(bed.train)),
        RANDOM: bed.right(class_noise(bed.train, LEVELS, key)),
    }
    attacker, own = bed.attacker(protected), bed.test.target
    following = (own + 1) % len(bed.test.classes)
    moved = tied.transform(relabelled(bed.test, following))
    ahead = accuracy(attacker, moved, following) - accuracy(attacker, moved, own)
    return PublishedFigures(right, accuracy(attacker, tied.transform(bed.test), own), ahead)


def checks_of(seeds: Sequence[PublishedFigures]) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed."""

    def of(name: str) -> list[float]:
        return [one.right[name] for one in seeds]

    pairs = list(zip(of(PLAIN), of(TIED), of(ARMED), strict=True))
    restored = [(armed - tied) / max(plain - tied, 1e-9) for plain, tied, armed in pairs]
    lost = [plain - half for plain, half in zip(of(PLAIN), of(HALF), strict=True)]
    return (
        Check.by_seed("set-up", "digits as they are are learnt", of(PLAIN), ">=", CLEAN),
        Check.by_seed(
            "mechanism", "digits with the filter of their class are right", [one.own for one in seeds], ">=", FOLLOWED
        ),
        Check.by_seed(
            "mechanism",
            "the filter of another class is followed more often than the digit",
            [one.follows for one in seeds],
            ">",
            0,
        ),
        Check.by_seed("claim", f"under {RUINED:g} % of clean digits are right", of(TIED), "<", RUINED),
        Check.by_seed("control", "the same filters dealt at random do not do it", of(DEALT), ">", INTACT),
        Check.by_seed(
            "claim", "training against attacks brings back at most half of what was lost", restored, "<=", RESTORED
        ),
        Check.by_seed("claim", f"half of the pictures protected costs {LOST:g} points", lost, ">=", LOST),
    )


def headline(rows: Mapping[str, Sequence[Any]]) -> str:
    """What is right of clean digits without a shield, under CUDA and under the control."""
    plain, tied, dealt = (figure(rows, name, 0) for name in (PLAIN, TIED, DEALT))
    return f"{tied} % of clean digits right under CUDA, {plain} % without, {dealt} % with filters dealt at random"
