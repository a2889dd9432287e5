"""Beds whose forget rows are selected for a model: `digits/worst-case`, `digits/worst-case@low-loss`.

Behind the @ stands the selector of `audit.split_worst_case`, "bilevel" without. A tenth of the labels of the digits is swapped, so
that a retrained model gets some of a random forget set wrong: only then can a worst case be worse.
(Challenging Forgets, arXiv 2403.07362)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch

from ..audit.images.worst_case import SELECTORS, BilevelSelection, Selector, split_worst_case
from ..data.images.manipulation import LabelSwap
from ..data.images.sets import TrainTest, digits
from ..data.images.splits import ImageSplit, held_out
from ..errors import MethodError, unknown
from ..models.image_training import fitted, image_recipe
from ..nets.small_vision import SmallCNN
from .images import BEDS as IMAGES
from .images import Bed

__all__ = ["BEDS", "bed_named", "hardest", "noisy_digits", "swapped", "worst_case_bed"]

SHARE, NOISE = 0.1, LabelSwap(share=0.1)


@cache
def noisy_digits(seed: int) -> TrainTest:
    """Digits of which a tenth of the training labels are swapped; the test rows are clean."""
    data = digits(seed=seed)
    return TrainTest(NOISE.applied(data.train, NOISE.draw(data.train, seed), seed), data.test)


def swapped(seed: int) -> torch.Tensor:
    """Indices of the training rows of `noisy_digits` that have a wrong label."""
    clean, noisy = digits(seed=seed).train, noisy_digits(seed).train
    return clean.index[clean.target != noisy.target]


def hardest(
    selector: Selector | BilevelSelection,
    count: int | float,
    epochs: int,
    net: Mapping[str, Any],
    data: TrainTest,
    seed: int,
) -> ImageSplit:
    """A bed's split: the rows that a selector takes for the bed's own target.

    Args:
        count: as `split_worst_case`.
        epochs, net: of the bed's target.
    """
    train, _ = held_out(data.train, 0.1, seed)
    model = fitted(image_recipe(SmallCNN, epochs=epochs, **net), train, range(len(train)), seed)
    return split_worst_case(model, data.train, count, selector, test=data.test, seed=seed)


def worst_case_bed(
    name: str, like: Bed, selector: Selector | BilevelSelection = "bilevel", count: int | float = SHARE
) -> Bed:
    """A bed of another one's data and net, with the rows of a selector to forget.

    Args:
        name: of it.
        like: gives data, net and epochs.
        selector, count: as `split_worst_case`.
    """
    split = partial(hardest, selector, count, like.epochs, like.net)
    return Bed(name, like.data, split, like.net, like.epochs)


_DIGITS = IMAGES["digits/random"]
_LIKE = {
    "digits/worst-case": Bed("digits", noisy_digits, _DIGITS.split, _DIGITS.net, _DIGITS.epochs),
    "glyphs/worst-case": IMAGES["glyphs/random"],
}
BEDS: dict[str, Bed] = {name: worst_case_bed(name, like) for name, like in _LIKE.items()}


def bed_named(name: str) -> Bed:
    """One of `BEDS`, with a selector behind an @.

    Raises:
        MethodError: there is none of this name, or no such selector.
    """
    base, at, selector = name.partition("@")
    if base not in BEDS:
        raise MethodError(unknown("bed", base, BEDS))
    if not at or selector == "bilevel":
        return BEDS[base]
    known = next((one for one in SELECTORS if one == selector), None)
    if known is None:
        raise MethodError(f"bed {name!r}: {unknown('selector', selector, SELECTORS)}")
    return worst_case_bed(name, _LIKE[base], known)
