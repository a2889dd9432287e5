"""Does noise made from captions alone ruin training on the pictures? Drawn shapes are published with it, and a small CLIP trains on them.

Claim looked at (arXiv 2508.03091): a generator that was trained once on other pairs protects pictures it never sees, both against
contrastive training on pairs and against supervised training. The control has the same noise, dealt out at random. Beside it
stand noise that is found on the pictures themselves, and random noise that only a caption's identity decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..beds.budget import Budget
from ..beds.captioned_shapes import FEATURES, CaptionedShapes, Retrieval, uniform_noise
from ..beds.protected_digits import class_noise
from ..data.images.images import Images
from ..nets.small_dual_encoder import SmallDualEncoder
from ..nets.text_noise_generator import TextNoiseGenerator
from ..scoring.intervals import spread
from ..shield.em_noise import EMNoise
from ..shield.engine.dual_encoders import info_nce
from ..shield.engine.generator_training import GeneratorTraining, train_generator
from ..shield.t2ue import T2UE
from .base import Claim, figure
from .checks import Check, reason_of

LEARNT, LEARNT_RIGHT = 60.0, 60.0  # % found and % right, of who trains on clean pictures
HARMLESS = 10.0  # points, at most, that uniform noise costs
AHEAD = 10.0  # points, at least, by which the noise costs more than uniform noise, and than dealt at random
COLUMNS = ("caption found, %", "picture found, %", "right, %")
PLAIN, UNIFORM, SIGNS = "as they are", "uniform noise", "random signs of each caption"
EM, DEALT, TIED = "error-minimising noise of each caption", "T2UE, captions dealt at random", "T2UE"


@dataclass(frozen=True)
class CaptionScale:
    """How large the experiment is.

    Args:
        each, test_each: pictures of a caption that are published, and clean ones.
        epochs: of the dual encoders and the classifiers.
        generator_epochs, channels: of the generator.
        rounds: of the search for error-minimising noise.
    """

    each: int
    test_each: int
    epochs: int
    generator_epochs: int
    channels: tuple[int, ...]
    rounds: int


SCALES = {"tiny": CaptionScale(2, 1, 1, 1, (8, 8), 1), "small": CaptionScale(20, 8, 12, 14, (32, 32, 32), 6)}
LEVELS = 16  # of 255
LR, BATCH = 2e-3, 32  # of the generator


@dataclass(frozen=True)
class CaptionFigures:
    """One seed.

    Args:
        found: {what was published: how a dual encoder trained on it finds clean pairs}.
        right: {what was published: % right of a classifier trained on it}.
        loss: {noise: the surrogate's loss on published pairs}.
        towards: by how much the noise of another caption draws pictures to that caption, in cosine similarity.
    """

    found: Mapping[str, Retrieval]
    right: Mapping[str, float]
    loss: Mapping[str, float]
    towards: float


def run(budget: Budget) -> Claim:
    """Trains the generator on one half, publishes the other in every form, trains and tests, once a seed."""
    scale = SCALES.get(budget.size, SCALES["small"])
    seeds = [
        measured(CaptionedShapes.of(seed, scale.each, scale.test_each, scale.epochs), scale) for seed in budget.seeds
    ]
    rows = {
        name: (
            spread([one.found[name].text for one in seeds]),
            spread([one.found[name].picture for one in seeds]),
            spread([one.right[name] for one in seeds]),
        )
        for name in seeds[0].found
    }
    extra = {
        "surrogate's loss": {name: [one.loss[name] for one in seeds] for name in seeds[0].loss},
        "drawn to another caption, cosine": [one.towards for one in seeds],
    }
    checks = checks_of(seeds)
    return Claim(
        slug="t2ue",
        claim="CLIP of a ResNet-50 on Flickr30k under T2UE finds 18.2 % of captions among ten (49.3 % without), a ResNet-18 on CIFAR-10 is "
        "10.02 % right (90.34 % without); no picture is read (arXiv 2508.03091)",
        setting=f"drawn shapes of 32 x 32, 60 captions published, 60 others for a generator of {len(scale.channels)} blocks; {LEVELS} levels; "
        f"small CLIP and SmallCNN, {scale.epochs} epochs; seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(checks, f"noise found on the pictures leaves {rows[EM][0]} % and {rows[EM][2]} %"),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def measured(bed: CaptionedShapes, scale: CaptionScale) -> CaptionFigures:
    """Every arm on one seed."""
    key, eps = 1000 + bed.seed, LEVELS / 255
    surrogate = bed.encoders(bed.world, key)  # of other weights than who trains on what is published
    how = GeneratorTraining(epochs=scale.generator_epochs, batch_size=BATCH, lr=LR, seed=bed.seed)
    with torch.random.fork_rng():
        torch.manual_seed(bed.seed)
        blank = TextNoiseGenerator(FEATURES, 32, scale.channels, eps=eps)
    generator = train_generator(bed.known, None, surrogate, how, generator=blank)
    protection = T2UE(key=key, eps=eps, generator=generator, text_encoder=surrogate, batch_size=64).fit(bed.published)
    captions = captions_of(bed.published)
    order = np.random.default_rng(key).permutation(len(captions))
    dealt = [captions[row] for row in order]
    search = EMNoise(
        key=key,
        mode="class",
        eps=eps,
        alpha=1.6 / 255,
        rounds=scale.rounds,
        batch_size=128,
        share=1.0,
        surrogate="small-cnn",
    )
    published = {
        PLAIN: bed.published,
        UNIFORM: uniform_noise(bed.published, LEVELS, key),
        SIGNS: class_noise(bed.published, LEVELS, key),
        EM: search.fit_transform(bed.published),
        DEALT: protection.transform(bed.published, dealt),
        TIED: protection.transform(bed.published),
    }
    losses = {name: loss_of(surrogate, published[name]) for name in (PLAIN, UNIFORM, DEALT, TIED)}
    drawn = towards(surrogate, published[DEALT], dealt) - towards(surrogate, bed.published, dealt)
    found = {name: bed.retrieval(pictures) for name, pictures in published.items()}
    return CaptionFigures(found, {name: bed.right(one) for name, one in published.items()}, losses, drawn)


def captions_of(pictures: Images) -> list[str]:
    """Each picture's caption."""
    return [pictures.classes[label] for label in pictures.target]


@torch.no_grad()
def loss_of(surrogate: SmallDualEncoder, pictures: Images) -> float:
    """The surrogate's contrastive loss on a picture of each caption, the mean over such batches, in nats."""
    texts = F.normalize(surrogate.text_features(pictures.classes), dim=-1)
    images = F.normalize(surrogate.image_features(pictures.pixels), dim=-1)
    each = len(pictures) // len(pictures.classes)
    first = torch.arange(len(pictures.classes)) * each  # rows stand by caption
    return float(torch.stack([info_nce(images[first + n], texts, surrogate.scale) for n in range(each)]).mean())


@torch.no_grad()
def towards(surrogate: SmallDualEncoder, pictures: Images, captions: Sequence[str]) -> float:
    """The mean cosine of pictures and these captions, one each."""
    texts = F.normalize(surrogate.text_features(captions), dim=-1)
    return float((F.normalize(surrogate.image_features(pictures.pixels), dim=-1) * texts).sum(-1).mean())


def checks_of(seeds: Sequence[CaptionFigures]) -> tuple[Check, ...]:
    """The card's conditions, each a figure a seed."""

    def text(name: str) -> list[float]:
        return [one.found[name].text for one in seeds]

    def right(name: str) -> list[float]:
        return [one.right[name] for one in seeds]

    def below(ours: list[float], theirs: list[float]) -> list[float]:
        return [other - one for one, other in zip(ours, theirs, strict=True)]

    lowered = [min(one.loss[PLAIN], one.loss[UNIFORM]) - one.loss[TIED] for one in seeds]
    return (
        Check.by_seed("set-up", "a dual encoder learns clean pairs", text(PLAIN), ">=", LEARNT),
        Check.by_seed("set-up", "a classifier learns clean pictures", right(PLAIN), ">=", LEARNT_RIGHT),
        Check.by_seed(
            "set-up", "uniform noise costs retrieval little", below(text(UNIFORM), text(PLAIN)), "<=", HARMLESS
        ),
        Check.by_seed(
            "mechanism",
            "on captions it has not seen the noise lowers the surrogate's loss, and uniform noise less",
            lowered,
            ">",
            0,
        ),
        Check.by_seed(
            "mechanism", "the noise of another caption draws a picture to it", [one.towards for one in seeds], ">", 0
        ),
        Check.by_seed(
            "claim",
            f"retrieval is {AHEAD:g} points below that under uniform noise",
            below(text(TIED), text(UNIFORM)),
            ">=",
            AHEAD,
        ),
        Check.by_seed(
            "claim",
            f"accuracy is {AHEAD:g} points below that under uniform noise",
            below(right(TIED), right(UNIFORM)),
            ">=",
            AHEAD,
        ),
        Check.by_seed(
            "control",
            "the same noise dealt at random costs retrieval less",
            below(text(TIED), text(DEALT)),
            ">=",
            AHEAD,
        ),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is found and right under T2UE and under uniform noise."""
    found, right, plain, plain_right = (figure(rows, name, column) for name in (TIED, UNIFORM) for column in (0, 2))
    return f"{found} % of captions found, {right} % right under T2UE; {plain}, {plain_right} under uniform noise"
