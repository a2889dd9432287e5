"""Persons that are not the label: rendered characters, the font is the person, and some persons ask to be forgotten."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np

from ..data.images.sets import TrainTest, glyphs
from ..data.images.splits import ImageSplit, split_by_identity
from .images import GLYPHS, Bed

__all__ = ["BEDS", "METRICS"]

DRAWS, EPOCHS = 20, 20
FORGOTTEN = 3  # of seven persons in training
METRICS = (
    "nomus", "TA", "forgetting_score", "mia_loss", "utility_gap", "mia_gap", "forget_gap", "forget_kl", "forget_accuracy", "RA",
)  # fmt: skip


@cache
def persons(seed: int) -> TrainTest:
    """Glyphs whose fonts are persons: seven to train on, two to test, two never seen, each as often drawn."""
    made = glyphs(draws=DRAWS, test_draws=DRAWS, new_fonts=4, seed=seed)
    others = made.evaluation["new fonts"]
    assert others.identity is not None
    first = others.identity < 2
    return TrainTest(made.train, others.where(first, "test fonts"), {"unseen": others.where(~first, "unseen fonts")})


def by_persons(count: int, data: TrainTest, seed: int) -> ImageSplit:
    """So many fonts, drawn by the seed, of those in training; the labels are the characters."""
    fonts = len(data.train.identities)
    chosen = np.random.default_rng(seed).permutation(fonts)[:count].tolist()
    split = split_by_identity(data.train, chosen, test=data.test, holdout=data.evaluation["unseen"], seed=seed)
    return replace(split, test_forget=None)  # identities are numbered anew in every set: none of these is forgotten


_NET = {**GLYPHS, "weight_decay": 0}
BEDS: dict[str, Bed] = {
    "glyphs/persons": Bed(
        "glyphs/persons", persons, partial(by_persons, FORGOTTEN), _NET, EPOCHS, METRICS, suites=("mufac",)
    )
}
