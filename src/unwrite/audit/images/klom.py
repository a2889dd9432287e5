"""KLoM: how far the margins of unlearned models lie from those of retrained ones, as distributions, row by row.

One model says little of a method: N models are trained and unlearned, N are retrained, and the margins that either kind gives a row
are compared as histograms. The figure has a floor above 0, which depends on N alone where nothing differs: other N retrained models
in place of the unlearned ones. Figures of different N can't be compared. (KLoM, arXiv 2410.23232)

    KLoM(x) = KL(p || q) in nats,   p, q: margins log(p_y / (1 - p_y)) of x over the unlearned and the retrained models, in 20 bins
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from ...data.images.images import Images
from ...data.images.splits import ImageSplit
from ...errors import DataError, MethodError
from ...models.fitting import TrainRecipe
from ...models.image_training import fitted_many
from ...models.vision_layout import logits_of
from ..base import Better, Exhibit, Panel, Score
from ..context import Context
from .arrays import Floats
from .context import ImageContext
from .lira import logit_confidence
from .metrics import Contexts, ImageMetric

__all__ = ["KLoM", "MarginModels", "klom", "margin_models", "margins_of"]

BINS, LEAST_CHANCE, CLIP = 20, 1e-5, 100.0
FEWEST = 2  # models, for there to be a distribution
KlomSet = Literal["forget", "retain", "test retain"]
SETS: tuple[KlomSet, ...] = get_args(KlomSet)
Unlearn = Callable[[nn.Module, Images, Images], nn.Module]


def klom(unlearned: ArrayLike, oracles: ArrayLike, bins: int = BINS) -> Floats:
    """KLoM of every row, `[rows]`, in nats, >= 0; 0 where both have the same histogram, ln(1e5) where none overlaps.

    Margins are clipped to -100..100; the bins divide the range of both, whose right end is closed. What no oracle has counts as 1e-5.

    Args:
        unlearned, oracles: margins `[models, rows]` of as many models of either kind.

    Raises:
        DataError: other shapes, margins that are not finite.
        MethodError: fewer than two models of a kind, or bins.
    """
    p, q = (np.asarray(one, dtype=float) for one in (unlearned, oracles))
    if p.ndim != 2 or p.shape != q.shape:
        raise DataError(
            f"margins have shape {list(p.shape)} of unlearned and {list(q.shape)} of retrained models. Give [models, rows] of as "
            "many models of either kind, for KLoM depends on their number."
        )
    if len(p) < FEWEST:
        raise MethodError(
            f"KLoM compares distributions, and there is {len(p)} model of a kind. Give at least {FEWEST}."
        )
    if bins < 1:
        raise MethodError(f"bins is {bins}; give at least 1.")
    for name, one in (("unlearned", p), ("retrained", q)):
        if not np.isfinite(one).all():
            model, row = np.argwhere(~np.isfinite(one))[0]
            raise DataError(
                f"the margin of row {row} under {name} model {model} is {one[model, row]}. Leave that model out."
            )
    p, q = np.clip(p, -CLIP, CLIP), np.clip(q, -CLIP, CLIP)
    return np.array([_divergence(p[:, row], q[:, row], bins) for row in range(p.shape[1])])


def _divergence(p: Floats, q: Floats, bins: int) -> float:
    low, high = min(p.min(), q.min()), max(p.max(), q.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    mine, theirs = (np.histogram(one, edges)[0] / len(one) for one in (p, q))
    theirs = np.where(mine > 0, np.maximum(theirs, LEAST_CHANCE), theirs)
    theirs = theirs / theirs.sum()
    some = mine > 0
    return float((mine[some] * np.log(mine[some] / theirs[some])).sum())


def margins_of(model: nn.Module, rows: Images, batch_size: int = 256) -> Floats:
    """log(p_y / (1 - p_y)) of every row, `[rows]`, in evaluation mode.

    Raises:
        DataError: regression targets.
    """
    if rows.labels is None:
        raise DataError(
            f"a margin is that of a label, and {rows.name} has regression targets. KLoM is for classifiers."
        )
    model = model.eval()
    with torch.no_grad():
        parts = [logits_of(model, rows.pixels[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
    return logit_confidence(torch.cat(parts).double().numpy(), rows.labels.numpy())


@dataclass(frozen=True, eq=False)
class MarginModels(Exhibit):
    """What N models before, N unlearned, N retrained and N other retrained ones give rows of a split.

    `evaluate(..., references={"klom": models})` adds KLoM to a report: under the column of the unlearned model that of the method, under
    the model before that of doing nothing, under the retrained model the floor.

    Args:
        before, unlearned, oracles, others: margins `[models, rows]` by set: "forget", "retain", "test retain".
        index: the rows' names by set.

    Raises:
        DataError: numbers of models or rows that don't fit, or margins that are not finite; as `klom`.
    """

    before: Mapping[str, Floats]
    unlearned: Mapping[str, Floats]
    oracles: Mapping[str, Floats]
    others: Mapping[str, Floats]
    index: Mapping[str, Sequence[int]]
    reads: ClassVar[type[Context]] = ImageContext

    def __post_init__(self) -> None:
        for name in self.index:
            for kind in ("before", "unlearned", "others"):
                klom(getattr(self, kind)[name], self.oracles[name])

    @property
    def count(self) -> int:
        """How many models there are of a kind."""
        return len(next(iter(self.oracles.values())))

    def floor(self, name: str) -> Floats:
        """KLoM of the other retrained models to the retrained ones on a set, `[rows]`: what no method goes below."""
        return klom(self.others[name], self.oracles[name])

    def of(self, name: str, kind: Literal["before", "unlearned"] = "unlearned") -> Floats:
        """KLoM to the retrained models on a set, `[rows]`, of the unlearned models or of those before."""
        return klom(getattr(self, kind)[name], self.oracles[name])

    def metrics(self) -> Sequence[ImageMetric]:
        """One a set."""
        return [KLoM(self, name) for name in SETS if name in self.index]

    def provenance(self) -> Mapping[str, str | float]:
        return {"models of a kind for KLoM": self.count}


@dataclass(frozen=True)
class KLoM(ImageMetric):
    """The mean over a set's rows of KLoM; the note has the median, the 95th percentile and the floor.

    Args:
        models: what models of each kind say of the rows.
        on: the set.
    """

    models: MarginModels
    on: KlomSet = "forget"

    @property
    def name(self) -> str:
        return f"klom_{self.on.replace(' ', '_')}"

    @property
    def about(self) -> str:
        rows = {"forget": "forget rows", "retain": "retain rows", "test retain": "unseen rows to be kept"}[self.on]
        return (
            f"Distance of {self.models.count} models' margins to those of as many retrained models on {rows}, in nats."
        )

    @property
    def better(self) -> Better:
        return "lower"

    @property
    def panel(self) -> Panel:
        return "forgotten" if self.on == "forget" else "kept"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        """By the context's role; the one model that it holds isn't asked.

        Raises:
            DataError: the margins are of other rows.
        """
        if list(self.models.index[self.on]) != context.set(self.on).index.tolist():
            raise DataError(
                f"the margins are of other {self.on} rows than {context.split.name} has. Take them of this split."
            )
        floor = self.models.floor(self.on)
        if context.role == "oracle":
            values = floor
        elif context.role in ("before", "after"):
            values = self.models.of(self.on, "before" if context.role == "before" else "unlearned")
        else:
            return Score(self.name, None, note="KLoM is of many models, and there are none of this kind.")
        note = (
            f"Median {np.median(values):.3g}, 95th percentile {np.quantile(values, 0.95):.3g}. Floor (retrained models against "
            f"others) {floor.mean():.3g}, 95th percentile {np.quantile(floor, 0.95):.3g}, at N = {self.models.count}."
        )
        return Score.mean(self.name, values.tolist(), "lower", note)


def margin_models(
    recipe: TrainRecipe,
    split: ImageSplit,
    unlearn: Unlearn,
    count: int = 100,
    seed: int = 0,
    tell: Callable[[int], None] = lambda n: None,
) -> MarginModels:
    """Trains the models of KLoM, each once and found again, and unlearns N of them: 3 N trainings, and N unlearnings.

    Args:
        recipe: how the audited model was trained.
        split: with labels.
        unlearn: from a model, the forget and the retain rows to the model without them, in place or not:
            `lambda model, forget, retain: DMM().apply(model, forget, retain)`. Runs every time.
        count: N, of each kind; 100 in the paper.
        seed: models are trained from seed, seed + 1, ...
        tell: gets how many are trained.

    Raises:
        MethodError: fewer than two. DataError: regression targets, margins that are not finite.
    """
    if count < FEWEST:
        raise MethodError(f"{count} models of a kind; KLoM compares distributions. Give at least {FEWEST}.")
    sets = {name: rows for name in SETS if (rows := ImageContext.rows_named(split, name)) is not None}
    train = split.train
    kept = train.positions(split.retain.index).tolist()
    jobs = [(range(len(train)), seed + i) for i in range(count)]
    jobs += [(kept, seed + count + i) for i in range(2 * count)]
    models = fitted_many(recipe, train, jobs, tell)

    def margins(some: Sequence[nn.Module]) -> dict[str, Floats]:
        return {name: np.stack([margins_of(model, rows) for model in some]) for name, rows in sets.items()}

    before, oracles, others = (margins(models[first : first + count]) for first in (0, count, 2 * count))
    unlearned = margins([unlearn(model, split.forget, split.retain) for model in models[:count]])
    return MarginModels(before, unlearned, oracles, others, {name: rows.index.tolist() for name, rows in sets.items()})
