"""Do pictures stay unlearnable whatever labels they get? Real digits in colour, labelled by digit, by parity and by colour.

Claim looked at (arXiv 2301.01217): noise tied to clusters of a trained network's features works for labels that the protector does not
know. Error-minimising noise of the digits stands beside it, which is made for one labelling. Controls: random noise of the same size and
clusters, for whatever is tied to what pictures show is a shortcut of a kind; and the trained noise dealt out at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..beds.budget import Budget
from ..beds.coloured_digits import LABELLINGS, ColouredDigits
from ..data.images.images import Images
from ..scoring.intervals import spread
from ..shield.base import Protection
from ..shield.em_noise import EMNoise
from ..shield.engine.features import FeatureReader, PictureFeatures
from ..shield.unlearnable_clusters import UnlearnableClusters, centre_loss
from .base import Claim, figure
from .checks import Check, reason_of

LEARNT = 85.0  # % right on clean pictures, at least
BELOW = 10.0  # points under the controls, at least
LEFT = 0.5  # of the distance to the other centre, at most
LEVELS = 16  # of 255
COLUMNS = tuple(f"{labelling} right, %" for labelling in LABELLINGS)
PLAIN, TIED = "as they are", "unlearnable clusters"
RANDOM, DEALT = "random noise of the same clusters", "the clusters' noise, dealt at random"
CLASSES = "error-minimising noise of digits"


@dataclass(frozen=True)
class ClusterScale:
    """How large the experiment is.

    Args:
        rows: published pictures; test_rows: clean ones.
        epochs, surrogate_epochs: of who trains on them, and of the surrogate.
        steps: of each generator.
        rounds: of the search for error-minimising noise.
    """

    rows: int
    test_rows: int
    epochs: int
    surrogate_epochs: int
    steps: int
    rounds: int


SCALES = {"tiny": ClusterScale(64, 30, 1, 1, 2, 1), "small": ClusterScale(2000, 599, 8, 10, 80, 10)}


@dataclass(frozen=True)
class ClusterFigures:
    """One seed.

    Args:
        right: {what was published: {labelling: % right on clean pictures}}.
        left: the part of the distance to the other centre that is left with each noise of clusters, on the surrogate.
    """

    right: Mapping[str, Mapping[str, float]]
    left: Mapping[str, float]


def run(budget: Budget) -> Claim:
    """Protects, publishes, trains and tests, once a seed."""
    scale = SCALES.get(budget.size, SCALES["small"])
    seeds = [measured(seed, scale) for seed in budget.seeds]
    rows = {
        name: tuple(spread([one.right[name][labelling] for one in seeds]) for labelling in LABELLINGS)
        for name in seeds[0].right
    }
    checks = checks_of(seeds)
    left = {name: spread([one.left[name] for one in seeds]) for name in seeds[0].left}
    extra = {"distance left": {name: [one.left[name] for one in seeds] for name in seeds[0].left}}
    return Claim(
        slug="unlearnable-clusters",
        claim="pictures with noise of clusters can't be learnt from by any labelling, on several data sets and target models and at Azure and "
        "PaddlePaddle (arXiv 2301.01217); its tables were not read, and T2UE's authors find it weak at 32 pixels",
        setting=f"scikit-learn's digits in colour, 32x32, {scale.rows} published and {scale.test_rows} clean ones of other digits; {LEVELS} levels; SmallCNN, "
        f"{scale.epochs} epochs; surrogate: SmallCNN on other pictures; seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(
            checks, f"of the distance to the other centre {left[TIED]} is left, with random noise {left[RANDOM]}"
        ),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def measured(seed: int, scale: ClusterScale) -> ClusterFigures:
    """Every arm on one seed; the key is the seed's, in no other role than any key has."""
    bed = ColouredDigits.of(seed, scale.epochs, scale.rows, scale.test_rows)
    key = 1000 + seed
    surrogate = bed.surrogate(scale.surrogate_epochs)
    shield = UnlearnableClusters(
        key=key,
        eps=LEVELS / 255,
        surrogate=surrogate,
        steps=scale.steps,
        lr=2e-3,
        batch_size=64,
        width=12,
        blocks=2,
        downsamplings=1,
    )
    tied = shield.fit(bed.train)
    generator = np.random.default_rng(key)
    signs = generator.choice([-1.0, 1.0], size=tied.noise_.shape)
    random = replace(tied, state={**tied.state, "noise": (LEVELS / 255 * signs).astype(np.float32)})
    classes = EMNoise(
        key=key, mode="class", eps=LEVELS / 255, rounds=scale.rounds, batch_size=128, surrogate="small-cnn"
    )
    published = {
        PLAIN: bed.train,
        RANDOM: random.transform(bed.train),
        DEALT: dealt(tied, bed.train, generator),
        CLASSES: classes.fit_transform(bed.train),
        TIED: tied.transform(bed.train),
    }
    right = {
        name: {labelling: bed.right(pictures, labelling) for labelling in LABELLINGS}
        for name, pictures in published.items()
    }
    left = {name: distance_left(tied, surrogate, bed.train, published[name]) for name in (TIED, RANDOM)}
    return ClusterFigures(right, left)


def dealt(protection: Protection, pictures: Images, generator: np.random.Generator) -> Images:
    """Pictures with the noise of a cluster that has nothing to do with them, each cluster's as often as before."""
    clusters = generator.permutation(protection.assignment_)
    levels = torch.from_numpy(np.rint(protection.noise_[clusters] * 255))
    return replace(pictures, pixels=(torch.round(pictures.pixels * 255) + levels).clamp(0, 255) / 255)


@torch.no_grad()
def distance_left(protection: Protection, surrogate: nn.Module, pictures: Images, published: Images) -> float:
    """How far published pictures are from their cluster's target on the surrogate, over how far they were."""
    reader = FeatureReader(PictureFeatures(surrogate), 3, pictures.shape[1], 1.0, "cpu")
    totals = []
    for images in (published, pictures):
        features = reader.of(images.pixels)
        total = 0.0
        for cluster, target in enumerate(protection.targets_):
            members = torch.from_numpy(protection.assignment_ == cluster)
            centre = torch.from_numpy(protection.centres_[target])
            total += float(centre_loss(features[members], centre)) * int(members.sum())
        totals.append(total)
    return totals[0] / totals[1]


def checks_of(seeds: Sequence[ClusterFigures]) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed; of three labellings the worst counts."""

    def least(below: str, name: str) -> list[float]:
        return [min(one.right[name][kind] - one.right[below][kind] for kind in LABELLINGS) for one in seeds]

    def ahead(labelling: str) -> list[float]:
        return [one.right[TIED][labelling] - one.right[CLASSES][labelling] for one in seeds]

    learnt = [min(one.right[PLAIN].values()) for one in seeds]
    left, random = ([one.left[name] for one in seeds] for name in (TIED, RANDOM))
    further = [one - other for one, other in zip(random, left, strict=True)]
    return (
        Check.by_seed("set-up", "digit, parity and colour of clean pictures are learnt", learnt, ">=", LEARNT),
        Check.by_seed(
            "mechanism", "half of the distance to the other centre is gone on the surrogate", left, "<=", LEFT
        ),
        Check.by_seed("mechanism", "random noise leaves more of it", further, ">", 0),
        Check.by_seed(
            "claim",
            f"{BELOW:g} points below random noise of the clusters for every labelling",
            least(TIED, RANDOM),
            ">=",
            BELOW,
        ),
        Check.by_seed(
            "control",
            "the clusters' noise dealt at random does not do it for any labelling",
            least(TIED, DEALT),
            ">=",
            BELOW,
        ),
        Check.by_seed("claim", "noise made for digits is stronger on digits", ahead("digit"), ">", 0),
        Check.by_seed("claim", "noise made for digits is weaker on colours", ahead("colour"), "<", 0),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is right of each labelling under noise of clusters, and under random noise of the same clusters."""
    tied, random = (
        "/".join(figure(rows, name, column) for column in range(len(LABELLINGS))) for name in (TIED, RANDOM)
    )
    return f"digit/parity/colour: {tied} % right, random noise {random} %"
