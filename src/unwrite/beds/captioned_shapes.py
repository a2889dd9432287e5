"""The bed of shields that read captions: drawn shapes with captions, two halves of which share words and no caption.

A caption is a shape, a colour and a place, as in "a red ring at top left". A small CLIP of all captions and pictures of its own stands for
one that has seen the world; a generator of noise is trained on one half, and the other is published: another small CLIP and a classifier
are trained on that afresh and tested on clean pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.images.images import Images
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted, image_recipe
from ..models.recipe import CausalTraining, fit_rows
from ..nets.small_dual_encoder import SmallDualEncoder
from ..nets.small_vision import SmallCNN
from ..shield.engine.dual_encoders import info_nce

__all__ = ["CAPTIONS", "WORDS", "CaptionedShapes", "Retrieval", "drawn", "hits", "uniform_noise"]

SIDE = 32
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Whether a place (x to the right, y down, the shape's radius is 1) is within the shape.
SHAPES: dict[str, Distance] = {
    "disc": lambda x, y: x**2 + y**2 < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.85,
    "triangle": lambda x, y: (y < 0.8) & (y > 2 * abs(x) - 1),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.35),
}
COLOURS = {
    "red": (0.85, 0.2, 0.2),
    "green": (0.2, 0.75, 0.25),
    "blue": (0.2, 0.3, 0.9),
    "yellow": (0.9, 0.85, 0.2),
    "purple": (0.65, 0.25, 0.75),
    "white": (0.95, 0.95, 0.95),
}
PLACES = {  # x, y
    "top left": (9, 9),
    "top right": (22, 9),
    "bottom left": (9, 22),
    "bottom right": (22, 22),
}
CONCEPTS = tuple(itertools.product(SHAPES, COLOURS, PLACES))
CAPTIONS = tuple(f"a {colour} {shape} at {place}" for shape, colour, place in CONCEPTS)
WORDS = tuple(sorted({word for caption in CAPTIONS for word in caption.split()}))
FEATURES = 64
STRAY = 2  # small shapes that no caption tells of


@dataclass(frozen=True)
class Retrieval:
    """How a dual encoder finds clean test pairs, in %.

    Args:
        text: of the pictures, how many have their caption among the nearest.
        picture: of the captions, how many have a picture of theirs among the nearest.
    """

    text: float
    picture: float


@dataclass(frozen=True)
class CaptionedShapes:
    """Two halves of the captions, each with pictures of its own; labels are captions, and classes their texts.

    Args:
        world: pictures of all captions, for the surrogate.
        known: of the one half, for the generator.
        published: of the other half, to be protected.
        test: clean pictures of that half.
        epochs: of who trains on what is published.
        seed: of the halves, the pictures and all weights.
    """

    world: Images
    known: Images
    published: Images
    test: Images
    epochs: int
    seed: int

    @classmethod
    def of(cls, seed: int, each: int, test_each: int, epochs: int) -> CaptionedShapes:
        """For one seed, with so many pictures of each caption."""
        random = np.random.default_rng(seed)
        order = random.permutation(len(CAPTIONS))
        halves = np.sort(order[::2]), np.sort(order[1::2])
        return cls(
            drawn(np.arange(len(CAPTIONS)), each, random, "world"),
            drawn(halves[0], each, random, "known"),
            drawn(halves[1], each, random, "published"),
            drawn(halves[1], test_each, random, "test"),
            epochs,
            seed,
        )

    def encoders(self, pictures: Images, seed: int, epochs: int | None = None) -> SmallDualEncoder:
        """A dual encoder trained afresh on these pictures with their captions."""
        recipe = dual_recipe(self.epochs if epochs is None else epochs)
        model = fitted(recipe, pictures, range(len(pictures)), seed)
        assert isinstance(model, SmallDualEncoder)
        return model

    def retrieval(self, pictures: Images) -> Retrieval:
        """Of a dual encoder trained on these pictures, on clean test pictures."""
        return hits(self.encoders(pictures, self.seed), self.test)

    def right(self, pictures: Images) -> float:
        """Accuracy on clean test pictures of a classifier of captions trained on these, in %."""
        recipe = image_recipe(
            SmallCNN, epochs=self.epochs, num_classes=len(pictures.classes), channels=3, image_size=SIDE, width=16
        )
        model = fitted(recipe, pictures, range(len(pictures)), self.seed)
        with torch.no_grad():
            return 100 * float((model(self.test.pixels).argmax(1) == self.test.target).float().mean())


def drawn(concepts: np.ndarray, each: int, random: np.random.Generator, name: str) -> Images:
    """Pictures of these concepts, so many of each.

    Size, place and colour jitter; the ground is patterned, small shapes of other kinds lie about, and the camera adds noise.
    """
    labels = np.repeat(np.arange(len(concepts)), each)
    pictures = np.stack([_picture(CONCEPTS[concepts[label]], random) for label in labels])
    return Images(
        torch.from_numpy(pictures),
        torch.from_numpy(labels),
        classes=tuple(CAPTIONS[one] for one in concepts),
        name=name,
    )


def _picture(concept: tuple[str, str, str], random: np.random.Generator) -> np.ndarray:
    """`[3, side, side]`, float32, of a shape, its colour and its place."""
    shape, colour, place = concept
    y, x = np.mgrid[:SIDE, :SIDE]
    wave = random.uniform(-0.6, 0.6, 2)
    picture = random.uniform(0.2, 0.7, (3, 1, 1)) + 0.15 * np.sin(wave[0] * x + wave[1] * y + random.uniform(0, 6.3))
    centre = np.array(PLACES[place]) + random.uniform(-2.5, 2.5, 2)
    small = [(random.uniform(2, 30, 2), random.uniform(1.5, 3.0), *_other(random)) for _ in range(STRAY)]
    for at, radius, form, paint in (*small, (centre, random.uniform(4.5, 7.0), shape, COLOURS[colour])):
        inside = SHAPES[form]((x - at[0]) / radius, (y - at[1]) / radius)
        picture = np.where(inside, np.array(paint)[:, None, None] + random.uniform(-0.15, 0.15, (3, 1, 1)), picture)
    picture = picture + random.normal(0, 0.01, (3, SIDE, SIDE))
    levels = np.rint(np.clip(picture, 0, 1) * 255) / 255  # as a file has them
    return levels.astype(np.float32)


def _other(random: np.random.Generator) -> tuple[str, tuple[float, float, float]]:
    """A shape and a colour, whatever the caption says."""
    return list(SHAPES)[random.integers(len(SHAPES))], list(COLOURS.values())[random.integers(len(COLOURS))]


def dual_recipe(epochs: int) -> TrainRecipe:
    """How a small CLIP is trained on pictures whose classes are captions."""
    how = CausalTraining(epochs, 2e-3, 64, weight_decay=5e-4, clip=1e9)
    settings: dict[str, Any] = {"version": 1, "features": FEATURES, "width": 16, **how.settings}

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return SmallDualEncoder(WORDS, FEATURES, 16, SIDE)

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        def loss(model: nn.Module, rows: list[Any], device: str) -> Tensor:
            assert isinstance(model, SmallDualEncoder)
            batch = data[rows]
            images, texts = _units(model, batch.pixels.to(device), [data.classes[one] for one in batch.target])
            return info_nce(images * model.factor, texts, 1.0)

        fit_rows(model, indices, how, seed, folder, loss)

    return TrainRecipe(build, fit, name="dual encoder", settings=settings)


def _units(model: SmallDualEncoder, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Features of pictures and texts, of length 1 each."""
    return F.normalize(model.image_features(pixels), dim=-1), F.normalize(model.text_features(texts), dim=-1)


@torch.no_grad()
def hits(model: SmallDualEncoder, pictures: Images, nearest: int = 1) -> Retrieval:
    """How often what belongs together is among so many nearest; 1 of 60 captions is about the share that the paper's 10 of 1,000 are."""
    images, texts = _units(model, pictures.pixels, list(pictures.classes))
    similarity = images @ texts.T  # [pictures, captions]
    own = F.one_hot(pictures.target, len(pictures.classes)).bool()
    text = own.gather(1, similarity.topk(nearest, dim=1).indices).any(1)
    picture = own.T.gather(1, similarity.T.topk(nearest, dim=1).indices).any(1)
    return Retrieval(100 * float(text.float().mean()), 100 * float(picture.float().mean()))


def uniform_noise(pictures: Images, levels: int, seed: int) -> Images:
    """Pictures with noise of their own, uniform up to so many levels of 255."""
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, tuple(pictures.pixels.shape))
    pixels = (torch.round(pictures.pixels * 255) + torch.from_numpy(noise.astype(np.float32))).clamp(0, 255) / 255
    return replace(pictures, pixels=pixels)
