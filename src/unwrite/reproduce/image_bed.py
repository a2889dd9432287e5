"""The bed of the image experiments: real 8x8 digits, a small CNN that knows them, and what is measured of every model.

One seed draws the test rows, the holdout, and the weights of the target and of the oracle, which never saw the forget rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from ..audit.vision import VISION, ImageContext
from ..data.image_sets import digits
from ..data.image_splits import ImageSplit, split_at_random, split_by_class
from ..forget.base import Cost, Method
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted, image_recipe
from ..nets.small_vision import SmallCNN
from .claims import spread

__all__ = ["COLUMNS", "DIGIT", "ImageBed", "Measured", "rows_of"]

DIGIT, EPOCHS = 3, 15
METRICS = ("UA", "test_forget_accuracy", "RA", "TA", "mia_confidence", "avg_gap", "forget_cka", "forget_knn")
COLUMNS = (
    "UA", "test, forgotten class", "RA", "TA", "MIA", "avg gap", "CKA to before", "k-NN of forget rows", "cost, forwards a row",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One model on one seed: what `METRICS` say, and its cost in forwards of one row over all training rows."""

    values: Mapping[str, float]
    cost: float

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def figures(self) -> list[float]:
        """In the order of `COLUMNS`; NaN where there is no value."""
        return [*(self.values.get(name, float("nan")) for name in METRICS), self.cost]


@dataclass
class ImageBed:
    """A target model and its oracle.

    Args:
        seed: of everything.
        share: forget this share of all rows at random, instead of all rows of one digit.
    """

    seed: int
    share: float | None = None

    @cached_property
    def split(self) -> ImageSplit:
        """What is forgotten and what is kept."""
        data = digits(seed=self.seed)
        if self.share is not None:
            return split_at_random(data.train, self.share, test=data.test, seed=self.seed)
        return split_by_class(data.train, DIGIT, test=data.test, seed=self.seed)

    @property
    def recipe(self) -> TrainRecipe:
        """How target and oracle are trained."""
        return image_recipe(SmallCNN, epochs=EPOCHS, num_classes=10, channels=1, image_size=8)

    @cached_property
    def before(self) -> nn.Module:
        """The target."""
        train = self.split.train
        return fitted(self.recipe, train, range(len(train)), self.seed)

    @cached_property
    def oracle(self) -> nn.Module:
        """Trained without the forget rows, from the same seed."""
        train = self.split.train
        return fitted(self.recipe, train, train.positions(self.split.retain.index).tolist(), self.seed)

    def apply(self, method: Method, args: Mapping[str, Any] | None = None, **options: Any) -> Measured:
        """Unlearns a copy of the target and measures it."""
        cost, split = Cost(), self.split
        given = {
            "holdout": split.holdout,
            "recipe": self.recipe,
            "args": {"seed": self.seed, **(args or {})},
            **options,
        }
        model = method.apply(self.before, split.forget, split.retain, copy=True, cost=cost, **given)
        return self.measure(model, cost.forwards)

    def measure(self, model: nn.Module, forwards: float = 0.0) -> Measured:
        """What the audit says of a model."""
        context = ImageContext(model, self.split)
        context.others = {"before": self._of_before, "oracle": self._of_oracle, "after": context}
        found = {m.name: m(context).value for m in VISION.for_split(self.split) if m.name in METRICS}
        values = {name: float(value) for name, value in found.items() if value is not None}
        return Measured(values, forwards / len(self.split.train))

    @cached_property
    def _of_before(self) -> ImageContext:
        return ImageContext(self.before, self.split)

    @cached_property
    def _of_oracle(self) -> ImageContext:
        return ImageContext(self.oracle, self.split)

    def retraining(self) -> Measured:
        """The oracle, at what its training cost."""
        return self.measure(self.oracle, 3 * EPOCHS * len(self.split.retain))


def rows_of(found: Mapping[str, Sequence[Measured]]) -> dict[str, tuple[str, ...]]:
    """{model: its figures as "mean +- sd" over seeds}."""
    rows = {}
    for name, seeds in found.items():
        columns = zip(*(one.figures for one in seeds), strict=True)
        rows[name] = tuple("–" if column[0] != column[0] else spread(list(column)) for column in columns)
    return rows
