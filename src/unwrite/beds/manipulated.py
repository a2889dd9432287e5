"""Beds of manipulated training rows, of which a share gamma is identified: `digits/poisoned`, `digits/poisoned@0.5`.

    digits/poisoned, glyphs/poisoned    a patch in the lower right corner of some rows, all labelled 0
    digits/confused, glyphs/confused    half the rows of two classes have each other's label

Gamma stands behind the @ and is 0.1 without. Target and oracle are trained as in the paper (SGD, its learning rates): the
oracle, retrained without the identified rows, has the others. Beside it stands a model that saw no manipulated row.
(Corrective machine unlearning, arXiv 2402.14015)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..audit.base import Suite
from ..audit.suites.corrective import CORRECTIVE
from ..data.images.manipulation import InterclassConfusion, Manipulation, Poisoning, split_identified
from ..data.images.sets import TrainTest
from ..data.images.splits import ImageSplit
from ..errors import MethodError, unknown
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted
from ..models.recipe import CausalTraining, fit_rows
from ..models.vision_layout import logits_of
from ..nets.small_vision import SmallCNN
from .images import BEDS as IMAGES
from .images import Bed, ImageBed

__all__ = [
    "BEDS",
    "COLUMNS",
    "METRICS",
    "BudgetedTraining",
    "ManipulatedBed",
    "ManipulatedModels",
    "bed_named",
    "manipulated_bed",
]

GAMMA = 0.1
METRICS = (
    "corrected_accuracy", "corrected_accuracy_others", "clean_accuracy", "manipulated_accuracy", "identified_accuracy",
    "wrong_labels",
)  # fmt: skip
COLUMNS = (
    "corrected", "corrected, other classes", "clean", "manipulated rows", "identified rows", "wrong labels left",
    "cost, forwards a row",
)  # fmt: skip


@dataclass(frozen=True)
class BudgetedTraining(CausalTraining):
    """Training by the paper's learning rates: a short rise, then a linear fall that ends above 0."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on."""
        return super().settings | {"rates": "budgeted"}

    def rate(self, step: int, steps: int) -> float:
        """`lr (t + 1) / (w + 1)` for the first w = steps / 100 steps, then `lr (1 - (t - w) / (1.25 steps))`."""
        rising = steps // 100
        share = (step + 1) / (rising + 1) if step < rising else 1 - (step - rising) / (1.25 * steps)
        return self.lr * share


def budgeted_recipe(net: Mapping[str, int], epochs: int, lr: float = 0.025, batch_size: int = 64) -> TrainRecipe:
    """A `SmallCNN` trained by SGD with momentum 0.9 and weight decay 5e-4.

    Args:
        net: keyword arguments of `SmallCNN`.
        epochs: passes over the rows; the paper counts steps, 4000 of 512 rows on CIFAR-10.
        lr: highest learning rate.
        batch_size: rows a step.
    """
    how = BudgetedTraining(epochs, lr, batch_size, weight_decay=5e-4, clip=1e9, momentum=0.9)

    def build(seed: int) -> nn.Module:
        return SmallCNN(**net)

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        def loss(model: nn.Module, rows: list[Any], device: str) -> Tensor:
            batch = data[rows]
            return F.cross_entropy(logits_of(model, batch.pixels.to(device)), batch.target.to(device))

        fit_rows(model, indices, how, seed, folder, loss)

    return TrainRecipe(build, fit, name="budgeted", settings={"version": 1, "net": dict(net), **how.settings})


def identified(manipulation: Manipulation, gamma: float, data: TrainTest, seed: int) -> ImageSplit:
    """A bed's split; see `split_identified`."""
    return split_identified(data.train, manipulation, gamma, test=data.test, seed=seed)


@dataclass(frozen=True)
class ManipulatedBed(Bed):
    """A bed whose split is of manipulated rows; see `Bed`."""


def manipulated_bed(name: str, like: Bed, manipulation: Manipulation, gamma: float = GAMMA) -> ManipulatedBed:
    """A bed of another one's data and net, with this manipulation.

    Args:
        name: without gamma.
        like: gives the clean rows, the net and the epochs.
        manipulation: of its training rows.
        gamma: identified share of the manipulated rows, above 0 to 1.

    Raises:
        MethodError: gamma outside its range.
    """
    if not 0 < gamma <= 1:
        raise MethodError(f"gamma of bed {name} is {gamma}; it lies above 0, at most 1.")
    label = name if gamma == GAMMA else f"{name}@{gamma:g}"
    return ManipulatedBed(label, like.data, partial(identified, manipulation, gamma), like.net, like.epochs, METRICS)


MANIPULATIONS: dict[str, Manipulation] = {
    "digits/poisoned": Poisoning(share=0.03, size=2),
    "digits/confused": InterclassConfusion(classes=(3, 8)),
    "glyphs/poisoned": Poisoning(share=0.03, size=3),
    "glyphs/confused": InterclassConfusion(classes=("E", "F")),
}
BEDS: dict[str, ManipulatedBed] = {
    name: manipulated_bed(name, IMAGES[f"{name.partition('/')[0]}/class"], manipulation)
    for name, manipulation in MANIPULATIONS.items()
}


def bed_named(name: str) -> ManipulatedBed:
    """One of `BEDS`, with gamma behind an @.

    Raises:
        MethodError: there is none of this name; no number behind the @, or one outside its range.
    """
    base, at, text = name.partition("@")
    if base not in BEDS:
        raise MethodError(unknown("bed", base, BEDS))
    if not at:
        return BEDS[base]
    try:
        gamma = float(text)
    except ValueError:
        raise MethodError(f"{text!r} in bed {name!r} is no gamma. Write {base}@0.5, for example.") from None
    return manipulated_bed(base, BEDS[base], MANIPULATIONS[base], gamma)


@dataclass
class ManipulatedModels(ImageBed):
    """A manipulated target, the model retrained without what is identified, and one without any manipulated row."""

    @property
    def suite(self) -> Suite:
        """`CORRECTIVE`."""
        return CORRECTIVE

    def recipe_of(self, **differs: Any) -> TrainRecipe:
        """How all of them are trained."""
        return budgeted_recipe(self.bed.net, **{"epochs": self.bed.epochs, **differs})

    @cached_property
    def clean(self) -> nn.Module:
        """Trained without any manipulated row, from the same seed: what retraining gives at gamma 1."""
        train, manipulated = self.split.train, self.split.evaluation["manipulated"]
        chosen = {*manipulated.index.tolist()}
        rows = [at for at, index in enumerate(train.index.tolist()) if index not in chosen]
        return fitted(self.recipe, train, rows, self.seed)
