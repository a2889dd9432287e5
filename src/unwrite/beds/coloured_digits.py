"""The bed of label-agnostic shields: real digits in colour, 32x32, which whoever trains may label by digit, by parity or by colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.images.images import Images
from ..data.images.sets import digits
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted, image_recipe
from ..nets.small_vision import SmallCNN

__all__ = ["COLOURS", "LABELLINGS", "ColouredDigits", "coloured", "labellings"]

SIDE = 32
TEST_SHARE = 1 / 3
SMALLEST, LARGEST = 24, 30  # pixels of a digit's side
NOISE = 0.03  # standard deviation of a pixel
BRIGHTEST = 0.35  # of a background
DIMMEST = 0.5  # of a digit, in each channel
COLOURS = ("red", "green", "blue")  # whichever is brightest
LABELLINGS: Mapping[str, tuple[str, ...]] = {
    "digit": tuple("0123456789"),
    "parity": ("even", "odd"),
    "colour": COLOURS,
}


@dataclass(frozen=True)
class ColouredDigits:
    """Coloured digits that are published, clean ones of other digits that nobody trains on, and who trains.

    Args:
        train, test: pictures of disjoint digits; their labels are the digits.
        epochs: of who trains.
        seed: of the split, of the drawing and of the attacker's weights.
        colours: {"train" or "test": `[rows]`}, the colour of each.
    """

    train: Images
    test: Images
    epochs: int
    seed: int
    colours: Mapping[str, Tensor]

    @classmethod
    def of(cls, seed: int, epochs: int, rows: int = 2000, test_rows: int = 599) -> ColouredDigits:
        """For one seed: so many pictures from 1198 digits, and so many from 599 others."""
        split = digits(test_share=TEST_SHARE, seed=seed)
        random = np.random.default_rng([seed, 32])
        train, train_colours = coloured(split.train, rows, random, "coloured digits")
        test, test_colours = coloured(split.test, test_rows, random, "other coloured digits")
        return cls(train, test, epochs, seed, {"train": train_colours, "test": test_colours})

    def surrogate(self, epochs: int) -> nn.Module:
        """A network trained on other pictures of the training digits, as many, labelled by digit and colour at once: it sees both.

        What a public backbone is for photos: it was made for other pictures and other labels.
        """
        source = digits(test_share=TEST_SHARE, seed=self.seed).train
        random = np.random.default_rng([self.seed, 33])
        pictures, colours = coloured(source, len(self.train), random, "the surrogate's coloured digits")
        classes = tuple(f"{colour} {digit}" for digit in LABELLINGS["digit"] for colour in COLOURS)
        labels = pictures.target * len(COLOURS) + colours
        return fitted(
            recipe_of(len(classes), epochs, width=16),
            replace(pictures, labels=labels, classes=classes),
            range(len(pictures)),
            self.seed,
        )

    def right(self, published: Images, labelling: str) -> float:
        """How many clean test pictures they get right who train on these pictures labelled so, in %.

        Args:
            published: the training pictures, in their order, protected or not.
            labelling: one of `LABELLINGS`.
        """
        labels = labellings(self.train, self.colours["train"])[labelling]
        wanted = labellings(self.test, self.colours["test"])[labelling]
        classes = LABELLINGS[labelling]
        model = fitted(
            recipe_of(len(classes), self.epochs),
            replace(published, labels=labels, classes=classes),
            range(len(published)),
            self.seed,
        )
        return share_right(model, self.test, wanted)


def recipe_of(classes: int, epochs: int, width: int = 12) -> TrainRecipe:
    """How a small network for these pictures is trained."""
    net: dict[str, Any] = {"num_classes": classes, "channels": 3, "image_size": SIDE, "width": width}
    return image_recipe(SmallCNN, epochs=epochs, **net)


@torch.no_grad()
def share_right(model: nn.Module, pictures: Images, labels: Tensor) -> float:
    """How many pictures a network gives these labels, in %. labels: `[rows]`"""
    return 100 * float((model(pictures.pixels).argmax(1) == labels).float().mean())


def labellings(pictures: Images, colours: Tensor) -> dict[str, Tensor]:
    """{labelling: `[rows]`} of pictures whose own labels are digits. colours: `[rows]`"""
    return {"digit": pictures.target, "parity": pictures.target % 2, "colour": colours}


def coloured(source: Images, rows: int, random: np.random.Generator, name: str) -> tuple[Images, Tensor]:
    """Digits of 8x8, each as often as another within one, scaled, coloured and put on a dim smooth background.

    Args:
        source: `[rows, 1, 8, 8]`, labelled by digit.
        rows: how many pictures.
        random: decides size, place, colour, background and noise.

    Returns:
        pictures of 8 bits in 0..1, labelled by digit, and the colour of each, `[rows]`, which no digit has a part in.
    """
    chosen = np.concatenate([random.permutation(len(source)) for _ in range(-(-rows // len(source)))])[:rows]
    sizes = random.integers(SMALLEST, LARGEST + 1, size=rows)
    places = (random.random((rows, 2)) * (SIDE - sizes + 1)[:, None]).astype(int)
    paint = random.uniform(DIMMEST, 1, (rows, 3))
    corners = torch.from_numpy(random.uniform(0, BRIGHTEST, (rows, 3, 3, 3))).float()
    noise = torch.from_numpy(NOISE * random.standard_normal((rows, 3, SIDE, SIDE))).float()
    ground = F.interpolate(corners, (SIDE, SIDE), mode="bilinear", align_corners=True)
    ink = torch.zeros(rows, 1, SIDE, SIDE)
    for row, (size, (top, left)) in enumerate(zip(sizes.tolist(), places.tolist(), strict=True)):
        drawn = F.interpolate(source.pixels[[chosen[row]]], (size, size), mode="bilinear")
        ink[row, :, top : top + size, left : left + size] = drawn[0]
    pixels = ground * (1 - ink) + ink * torch.from_numpy(paint).float()[:, :, None, None] + noise
    pixels = torch.round(pixels.clamp(0, 1) * 255) / 255
    labels = source.target[torch.from_numpy(chosen)]
    return Images(pixels, labels, classes=LABELLINGS["digit"], name=name), torch.from_numpy(paint.argmax(1))
