"""Beds of the image experiments: what is trained, what of it is forgotten, and what is measured of every model.

    digits          real 8x8 digits, SmallCNN          class, random
    glyphs          rendered 32x32 characters in nine fonts   class, random, identity (a font)
    digits values   digits with a smooth target        range (the lowest fifth)
    digits, top     digits, audited by features too    the two classes that the target sees in a downstream set

One seed draws the test rows, the holdout, and the weights of the target and of the oracle, which never saw the forget rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from statistics import fmean
from typing import Any

import numpy as np
from torch import nn

from ..audit.base import Metric, Suite
from ..audit.images.context import ImageContext
from ..audit.images.representation import top_classes
from ..audit.suites.known import suite_for
from ..audit.suites.vision import VISION, VISION_REGRESSION
from ..data.images.downstream import digit_downstream
from ..data.images.sets import TrainTest, digits, digits_regression, glyphs
from ..data.images.splits import ImageSplit, split_at_random, split_by_class, split_by_identity, split_by_target
from ..errors import MethodError, unknown
from ..forget.base import Method
from ..forget.engine.cost import Cost
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted, image_recipe
from ..nets.small_vision import SmallCNN
from ..scoring.intervals import spread

__all__ = [
    "BEDS",
    "COLUMNS",
    "DIGIT",
    "Bed",
    "ImageBed",
    "Measured",
    "Setting",
    "bed_named",
    "by_features",
    "digits_at_random",
    "forgetting_class",
    "forgetting_top",
    "mean_of",
    "rows_of",
]

DIGIT = 3
OTHER_SEED = 1000  # added to a seed: that of a second oracle
SHARE = 0.1  # of all rows, where rows are forgotten at random
LOWEST = 0.2  # of the training rows by target, where a range is forgotten
METRICS = ("UA", "test_forget_accuracy", "RA", "TA", "mia_confidence", "avg_gap", "forget_cka", "forget_knn")
BY_FEATURES = (
    "agl", "agr", "h_lr", "test_forget_accuracy", "RA", "TA", "forget_accuracy_former_head", "cka_forget", "cka_forget_to_before",
)  # fmt: skip
COLUMNS = (
    "UA", "test, forgotten class", "RA", "TA", "MIA", "avg gap", "CKA to before", "k-NN of forget rows", "cost, forwards a row",
)  # fmt: skip


@dataclass(frozen=True)
class Bed:
    """What is trained and what is forgotten.

    Args:
        name: data set and kind of forget set.
        data: gives the rows for a seed.
        split: says what of them is forgotten, for a seed.
        net: keyword arguments of `SmallCNN`, and of `image_recipe` where its training differs.
        epochs: of its training.
        metrics: names of what is measured, of the suite for this kind of data or of `suites`; none for all.
        suites: names of other suites, in the place of the one for this kind of data.
        oracle_from: what the oracle's seed adds to the target's. 0 begins both from the same weights, and then their features
            are alike for that alone: where features are compared, the oracle begins elsewhere, as published ones do.
    """

    name: str
    data: Callable[[int], TrainTest]
    split: Callable[[TrainTest, int], ImageSplit]
    net: Mapping[str, int]
    epochs: int
    metrics: tuple[str, ...] = METRICS
    suites: tuple[str, ...] = ()
    oracle_from: int = 0


DIGIT_EPOCHS = 15
DIGITS: dict[str, int] = {"num_classes": 10, "channels": 1, "image_size": 8}
GLYPHS: dict[str, int] = {"num_classes": 10, "channels": 3, "image_size": 32}


def _by_class(of: str | int | Sequence[int], data: TrainTest, seed: int) -> ImageSplit:
    return split_by_class(data.train, of, test=data.test, seed=seed)


def _at_random(share: float, data: TrainTest, seed: int, classes: Sequence[int] | None = None) -> ImageSplit:
    return split_at_random(data.train, share, classes=classes, test=data.test, seed=seed)


def _by_font(data: TrainTest, seed: int) -> ImageSplit:
    """One font of those in training, another each seed."""
    assert data.train.identities is not None
    fonts = data.train.identities
    return split_by_identity(data.train, fonts[seed % len(fonts)], test=data.test, seed=seed)


def _lowest(share: float, data: TrainTest, seed: int) -> ImageSplit:
    assert data.train.targets is not None
    high = float(np.quantile(data.train.targets.numpy(), share))
    return split_by_target(data.train, None, high, test=data.test, seed=seed)


def _by_top(n: int, like: Sequence[int], data: TrainTest, seed: int) -> ImageSplit:
    """The n classes that the target says most often of test rows of some classes, with downstream sets of all test rows."""
    sets = digit_downstream(data.test, like, seed)
    train = _by_class(DIGIT, data, seed).train  # all splits of a seed have the same
    net: dict[str, Any] = {**DIGITS}
    target = fitted(image_recipe(SmallCNN, epochs=DIGIT_EPOCHS, **net), train, range(len(train)), seed)
    return replace(_by_class(top_classes(target, sets["alike"], n), data, seed), downstream=sets)


@cache
def _glyphs(seed: int) -> TrainTest:
    return glyphs(seed=seed)


def _digits(seed: int) -> TrainTest:
    return digits(seed=seed)


def _values(seed: int) -> TrainTest:
    return digits_regression(seed=seed)


def forgetting_class(digit: int) -> Bed:
    """Digits, of which one class is forgotten."""
    return Bed(f"digits, class {digit}", _digits, partial(_by_class, digit), DIGITS, DIGIT_EPOCHS)


def digits_at_random(share: float, classes: Sequence[int] | None = None) -> Bed:
    """Digits, of which a share of all rows, or of those of some classes, is forgotten at random."""
    split = partial(_at_random, share, classes=classes)
    return Bed("digits, random", _digits, split, DIGITS, DIGIT_EPOCHS)


def forgetting_top(like: Sequence[int]) -> Bed:
    """Digits, of which the classes that a downstream set of these digits resembles most are forgotten, as many as it has."""
    split = partial(_by_top, len(like), tuple(like))
    bed = Bed(f"digits, top of {like}", _digits, split, DIGITS, DIGIT_EPOCHS)
    return by_features(bed)


def by_features(bed: Bed) -> Bed:
    """The bed, audited by answers and by features, with an oracle that begins elsewhere."""
    return replace(bed, suites=("representation",), metrics=BY_FEATURES, oracle_from=OTHER_SEED)


BEDS: dict[str, Bed] = {
    "digits/class": replace(forgetting_class(DIGIT), name="digits/class"),
    "digits/random": replace(digits_at_random(SHARE), name="digits/random"),
    "glyphs/class": Bed("glyphs/class", _glyphs, partial(_by_class, "E"), GLYPHS, 12),
    "glyphs/random": Bed("glyphs/random", _glyphs, partial(_at_random, SHARE), GLYPHS, 12),
    "glyphs/identity": Bed("glyphs/identity", _glyphs, _by_font, GLYPHS, 12),
    "digits/range": Bed(
        "digits/range",
        _values,
        partial(_lowest, LOWEST),
        {**DIGITS, "num_classes": 1},
        DIGIT_EPOCHS,
        ("forget_mae", "test_forget_mae", "retain_mae", "test_retain_mae", "wasserstein", "mia_l1", "forget_cka"),
    ),
    "digits/top": replace(forgetting_top((3, 8)), name="digits/top"),
}


def bed_named(name: str) -> Bed:
    """One of `BEDS`.

    Raises:
        MethodError: there is none of this name.
    """
    if name not in BEDS:
        raise MethodError(unknown("bed", name, BEDS))
    return BEDS[name]


@dataclass(frozen=True)
class Measured:
    """One model on one seed: what was measured, and its cost in forwards of one row over all training rows.

    Args:
        verdict: what an audit calls it as a whole; empty where none does.
    """

    values: Mapping[str, float]
    cost: float
    verdict: str = ""

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def figures(self, metrics: Sequence[str] = METRICS) -> list[float]:
        """These metrics, NaN where there is no value, and the cost."""
        return [*(self.values.get(name, float("nan")) for name in metrics), self.cost]


@dataclass
class ImageBed:
    """A target model and its oracle, for one seed of a bed.

    Args:
        bed: what is trained and forgotten.
        seed: of everything.
    """

    bed: Bed
    seed: int

    @cached_property
    def split(self) -> ImageSplit:
        """What is forgotten and what is kept."""
        return self.bed.split(self.bed.data(self.seed), self.seed)

    @property
    def suite(self) -> Suite:
        """The suite for this kind of data."""
        return VISION if self.split.forget.labels is not None else VISION_REGRESSION

    @cached_property
    def metrics(self) -> list[Metric[Any]]:
        """What is measured of every model, each once."""
        suites = [suite_for(name, ImageContext.kind, self.split) for name in self.bed.suites] or [self.suite]
        metrics = {one.name: one for suite in suites for one in suite.for_split(self.split)}
        return [one for name, one in metrics.items() if not self.bed.metrics or name in self.bed.metrics]

    def recipe_of(self, **differs: Any) -> TrainRecipe:
        """How target and oracle are trained, with what differs (`masks`, `start`, ...)."""
        return image_recipe(SmallCNN, **{"epochs": self.bed.epochs, **self.bed.net, **differs})

    @property
    def recipe(self) -> TrainRecipe:
        """How target and oracle are trained."""
        return self.recipe_of()

    @property
    def kept(self) -> list[int]:
        """Positions of the retain rows among the training rows."""
        return self.split.train.positions(self.split.retain.index).tolist()

    @cached_property
    def before(self) -> nn.Module:
        """The target."""
        train = self.split.train
        return fitted(self.recipe, train, range(len(train)), self.seed)

    @cached_property
    def oracle(self) -> nn.Module:
        """Trained without the forget rows, from the same seed unless the bed says otherwise."""
        return fitted(self.recipe, self.split.train, self.kept, self.seed + self.bed.oracle_from)

    @cached_property
    def again(self) -> nn.Module:
        """Trained as the oracle, from another seed: how near to it anything can come."""
        return fitted(self.recipe, self.split.train, self.kept, self.seed + self.bed.oracle_from + OTHER_SEED)

    def unlearn(
        self, method: Method, args: Mapping[str, Any] | None = None, model: nn.Module | None = None, **options: Any
    ) -> tuple[nn.Module, float]:
        """An unlearned copy of the target, or of another model, and its cost in forwards of one row."""
        cost, split = Cost(), self.split
        keywords = {
            "holdout": split.holdout,
            "recipe": self.recipe,
            "args": {"seed": self.seed, **(args or {})},
            **options,
        }
        target = self.before if model is None else model
        return method.apply(target, split.forget, split.retain, copy=True, cost=cost, **keywords), cost.forwards

    def apply(self, method: Method, args: Mapping[str, Any] | None = None, **options: Any) -> Measured:
        """Unlearns a copy of the target and measures it."""
        return self.measure(*self.unlearn(method, args, **options))

    def measure(self, model: nn.Module, forwards: float = 0.0, oracle: nn.Module | None = None) -> Measured:
        """What the audit says of a model, beside this bed's oracle or another."""
        other = self._of_oracle if oracle is None else self._of(oracle)
        context, references = self._of(model), {"before": self._of_before, "oracle": other}
        measurements = {metric.name: metric(context, references).value for metric in self.metrics}
        values = {name: float(value) for name, value in measurements.items() if value is not None}
        return Measured(values, forwards / len(self.split.train))

    def _of(self, model: nn.Module) -> ImageContext:
        """Nothing of it is kept on disk: an experiment measures hundreds of models, each once."""
        return ImageContext(model, self.split, cached=False)

    @cached_property
    def _of_before(self) -> ImageContext:
        return self._of(self.before)

    @cached_property
    def _of_oracle(self) -> ImageContext:
        return self._of(self.oracle)

    def retraining(self) -> Measured:
        """The oracle, at what its training cost."""
        return self.measure(self.oracle, 3 * self.bed.epochs * len(self.split.retain))

    def retraining_again(self) -> Measured:
        """The oracle of another seed, at what its training cost."""
        return self.measure(self.again, 3 * self.bed.epochs * len(self.split.retain))


@dataclass(frozen=True)
class Setting:
    """One point of a grid.

    Args:
        method: what unlearns.
        args: its training arguments.
    """

    method: Method
    args: Mapping[str, Any] = field(default_factory=dict)

    def short(self) -> Setting:
        """With two steps of training, where it trains at all."""
        return replace(self, args={**self.args, "max_steps": 2}) if self.args else self


def mean_of(measurements: Mapping[str, Sequence[Measured]], name: str, metric: str) -> float:
    """Of one model, over seeds."""
    return fmean(one[metric] for one in measurements[name])


def rows_of(
    measurements: Mapping[str, Sequence[Measured]], metrics: Sequence[str] = METRICS
) -> dict[str, tuple[str, ...]]:
    """{model: these metrics and the cost, as "mean +- sd" over seeds}."""
    rows = {}
    for name, seeds in measurements.items():
        columns = zip(*(one.figures(metrics) for one in seeds), strict=True)
        rows[name] = tuple("–" if column[0] != column[0] else spread(list(column)) for column in columns)
    return rows
