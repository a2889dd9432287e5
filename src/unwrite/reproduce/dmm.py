"""Can a model be brought to say what one retrained without some rows would say? Real digits, a net of one hidden layer.

Claim looked at (arXiv 2410.23232): matching the outputs that datamodels predict comes closer to retraining, in KLoM, than descent on
retain rows, ascent on forget rows and SCRUB, and near matching retrained models themselves. Forget rows are the two ends of principal
components of the datamodel, and rows drawn at random; settings are chosen on another component. Beside it stand a datamodel whose
training rows are exchanged, which predicts changes of the same size at wrong places, and the influence of the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..audit.images.klom import klom, margins_of
from ..audit.images.lira import logit_confidence
from ..beds.budget import Budget
from ..beds.images import Setting
from ..data.images.images import Images
from ..data.images.sets import TrainTest, digits
from ..forget.engine.images.attribution import RowEffects
from ..forget.engine.images.datamodel import PartModels, linear_datamodel_score, part_models
from ..forget.engine.images.matching import retain_rows
from ..forget.engine.images.regression_path import fitted_effects
from ..forget.gradient_ascent import GradientAscent
from ..forget.vision.dmm import DMM
from ..forget.vision.fine_tuning import FineTune
from ..forget.vision.oracle_matching import OracleMatching
from ..forget.vision.scrub import SCRUB
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted_many, image_recipe
from ..models.vision_layout import logits_of
from ..nets.small_mlp import SmallMLP
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

OWN, OM, DIRECT, EXCHANGED, HEAD = "DMM", "oracle matching", "DM-Direct", "DMM, rows exchanged", "DMM, last layer"
NOTHING, FLOOR, GD, GA = "nothing", "floor: other retrained models", "descent on retain rows", "ascent on forget rows"
CHOOSING = 3  # the component whose ends settings are chosen on, counted from 0; 0, 1, 2 are reported, one a seed
SETS = ("forget", "retain", "test")
COLUMNS = tuple(f"{name}, {what}" for name in SETS for what in ("95th percentile", "mean"))
SEED = 42  # of the retain subset, which the datamodel is fitted on
ORIGINALS, ORACLES, PARTS = 0, 1_000, 10_000  # first seeds of the models of a kind
NEAR, ROOM = 0.2, 1.0  # nats: as far as kept rows may move; how far doing nothing must lie above the floor
SCORE = 0.5  # of a datamodel on planted effects


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        parts: models of half the rows that the datamodel is regressed on, M.
        models, choosing: of a kind that KLoM compares, N, where it is reported and where settings are chosen.
        forget, measured: rows to forget, and retain and test rows to measure on.
        epochs: of every training.
        rates, lengths: learning rates and epochs to choose from.
        retain: retain rows that are matched, a forget row.
    """

    parts: int
    models: int
    choosing: int
    forget: int
    measured: int
    epochs: int
    rates: tuple[float, ...]
    lengths: tuple[int, ...]
    retain: float = 5.0


SCALES = {
    "tiny": Size(50, 3, 3, 4, 10, 1, (1e-2,), (2,), 2.0),
    "small": Size(500, 50, 20, 20, 200, 15, (1e-3, 3e-3, 1e-2), (4, 20)),
}
Figures = dict[str, dict[str, np.ndarray]]  # {arm: {set: KLoM of every row}}


@dataclass
class DatamodelBed:
    """The digits, the models of half of them, and the models before.

    Args:
        scale: how large it is.
    """

    scale: Size

    @cached_property
    def data(self) -> TrainTest:
        """Training and test rows, always the same."""
        return digits(seed=0)

    @property
    def make_recipe(self) -> partial[TrainRecipe]:
        """How every model is trained; importable, so that several processes can."""
        net: dict[str, Any] = {"num_classes": 10, "channels": 1, "image_size": 8, "width": 32}
        return partial(image_recipe, SmallMLP, epochs=self.scale.epochs, lr=1e-2, batch_size=256, **net)

    @cached_property
    def parts(self) -> PartModels:
        """What models of half the rows say of all rows."""
        data = self.data
        rows = [data.train, data.test]
        return part_models(self.make_recipe, data.train, rows, self.scale.parts, seed=PARTS, workers=1)

    @cached_property
    def before(self) -> list[nn.Module]:
        """N models of all training rows."""
        every = range(len(self.data.train))
        return fitted_many(
            self.make_recipe(), self.data.train, [(every, ORIGINALS + n) for n in range(self.scale.models)]
        )

    @cached_property
    def components(self) -> Tensor:
        """Where each training row lies on the principal components of the datamodel of margins, `[training rows, 4]`."""
        train, logits = self.data.train, self.parts.of(self.data.train).logits
        assert train.labels is not None
        margins = np.stack([logit_confidence(one.double().numpy(), train.labels.numpy()) for one in logits])
        effects, _ = fitted_effects(self.parts.masks, torch.from_numpy(margins), "ridge")
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            left: Tensor = torch.svd_lowrank(effects - effects.mean(0), q=2 * (CHOOSING + 1), niter=8)[0]
        return left[:, : CHOOSING + 1]

    def ends(self, component: int) -> list[int]:
        """Names of the training rows at both ends of a component."""
        order = torch.argsort(self.components[:, component])
        half = self.scale.forget // 2
        chosen: list[int] = self.data.train.index[
            torch.cat([order[:half], order[-(self.scale.forget - half) :]])
        ].tolist()
        return chosen

    def drawn(self, seed: int) -> list[int]:
        """Names of training rows drawn at random."""
        at = np.random.default_rng(seed).permutation(len(self.data.train))[: self.scale.forget]
        names: list[int] = self.data.train.index[torch.from_numpy(at)].tolist()
        return names


@dataclass
class ForgetTask:
    """Some rows of the bed to forget, with the models that were retrained without them.

    Args:
        bed: the models before, and of half the rows.
        names: of the forget rows.
        models: of a kind that KLoM compares, N.
    """

    bed: DatamodelBed
    names: Sequence[int]
    models: int

    @cached_property
    def forget(self) -> Images:
        """The rows to forget."""
        return self.bed.data.train.subset(self.names, "forget")

    @cached_property
    def retain(self) -> Images:
        """The other training rows."""
        train = self.bed.data.train
        return train.where(~torch.isin(train.index, self.forget.index), "retain")

    @cached_property
    def measured(self) -> dict[str, Images]:
        """The rows that KLoM is taken on: all forget rows, and some of the others, evenly drawn."""
        sets = {"retain": self.retain, "test": self.bed.data.test}
        size = self.bed.scale.measured
        some = {name: rows.subset(rows.index[:: max(1, len(rows) // size)][:size]) for name, rows in sets.items()}
        return {"forget": self.forget, **some}

    @cached_property
    def oracles(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Margins of N retrained models, and of N others."""
        n = self.models
        jobs = [(range(len(self.retain)), ORACLES + number) for number in range(2 * n)]
        models = fitted_many(self.bed.make_recipe(), self.retain, jobs)
        return self.margins(models[:n]), self.margins(models[n:])

    @property
    def before(self) -> list[nn.Module]:
        """The models before, N of them."""
        return self.bed.before[: self.models]

    def margins(self, models: Sequence[nn.Module]) -> dict[str, np.ndarray]:
        """`[models, rows]` by set."""
        return {name: np.stack([margins_of(model, rows) for model in models]) for name, rows in self.measured.items()}

    def distance(self, margins: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """KLoM to the retrained models, row by row."""
        return {name: klom(margins[name], self.oracles[0][name]) for name in SETS}

    @cached_property
    def effects(self) -> RowEffects:
        """The datamodel by lasso, as published, of the rows that are matched."""
        matched = retain_rows(self.retain, len(self.forget), self.bed.scale.retain, SEED)
        rows = self.forget if matched is None else self.forget.joined(matched)
        return self.bed.parts.of(rows).regressed("lasso")

    @cached_property
    def exchanged(self) -> RowEffects:
        """The same with the training rows in another order: as large changes, at wrong places."""
        order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(self.effects.train_index)))
        return replace(self.effects, effects=self.effects.effects[order])

    def direct(self) -> dict[str, np.ndarray]:
        """Margins of the models before with what the datamodel, by ridge, predicts of every measured row."""
        margins = {}
        for name, rows in self.measured.items():
            effects = self.bed.parts.of(rows).regressed("ridge")
            change = effects.predicted_change(self.forget.index, rows.index)
            with torch.no_grad():
                logits = [(logits_of(model, rows.pixels) + change).double().numpy() for model in self.before]
            margins[name] = np.stack([logit_confidence(one, rows.target.numpy()) for one in logits])
        return margins

    def unlearned(self, name: str, setting: Setting) -> dict[str, np.ndarray]:
        """Margins of the models before after a method, each by a training of its own seed where it can be."""
        recipe, models = self.bed.make_recipe(), []
        for number, model in enumerate(self.before):
            seed = SEED if "DMM" in name else ORACLES + number  # DMM's retain subset is the datamodel's
            args = {**setting.args, "seed": seed}
            models.append(setting.method.apply(model, self.forget, self.retain, recipe=recipe, args=args, copy=True))
        return self.margins(models)

    def grids(self) -> dict[str, dict[str, Setting]]:
        """{method: {what is set: setting}}, rates and lengths alike for all."""
        few: dict[str, Any] = {"retain_multiplier": self.bed.scale.retain, "forget_multiplier": 5.0}
        methods: dict[str, Any] = {
            OWN: DMM(attributor=self.effects, **few),
            HEAD: DMM(**few),
            EXCHANGED: DMM(attributor=self.exchanged, **few),
            OM: OracleMatching(**few),
            GD: FineTune(),
            GA: GradientAscent(),
            "SCRUB": SCRUB(msteps=1, decay=(2,)),
        }
        common = {"optim": "adam", "weight_decay": 0.0, "per_device_train_batch_size": 512}
        points = {
            f"lr {lr:g}, {epochs} epochs": {**common, "learning_rate": lr, "num_train_epochs": epochs}
            for lr in self.bed.scale.rates
            for epochs in self.bed.scale.lengths
        }
        return {name: {key: Setting(one, args) for key, args in points.items()} for name, one in methods.items()}


def run(budget: Budget) -> Claim:
    """Chooses settings on one component's ends, then measures every method on others and on random rows."""
    bed = DatamodelBed(SCALES.get(budget.size, SCALES["small"]))
    chosen, tried = chosen_points(ForgetTask(bed, bed.ends(CHOOSING), bed.scale.choosing))
    tasks = {f"component {seed % CHOOSING + 1}": bed.ends(seed % CHOOSING) for seed in budget.seeds}
    tasks["random"] = bed.drawn(budget.seeds[0])
    figures = {name: measured(ForgetTask(bed, names, bed.scale.models), chosen) for name, names in tasks.items()}
    checks, rows = _checks(figures, planted_score()), _rows(figures)
    return Claim(
        slug="dmm",
        claim="Matching outputs that datamodels predict comes near oracle matching in KLoM and beats gradient descent, ascent and "
        "SCRUB, at a small fraction of a retraining, datamodels not counted (ResNets on CIFAR-10 and Living-17; arXiv 2410.23232)",
        setting=f"scikit-learn's digits, MLP of 32 hidden units, {bed.scale.forget} rows forgotten ({', '.join(tasks)}), a datamodel of "
        f"{bed.scale.parts} models, KLoM of {bed.scale.models} models of a kind; settings chosen on component {CHOOSING + 1}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks, _reason(rows)),
        checks=checks,
        seeds=budget.seeds,
        extra={
            "points": chosen,
            "by setting on the chosen component": tried,
            "N": bed.scale.models,
            "M": bed.scale.parts,
        },
    )


def chosen_points(task: ForgetTask) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Each method's setting by the sum over the three sets of the 95th percentile of KLoM, and all that were tried."""
    tried: dict[str, dict[str, float]] = {}
    for name, grid in task.grids().items():
        tried[name] = {key: round(_total(task.distance(task.unlearned(name, one))), 3) for key, one in grid.items()}
    return {name: min(one, key=lambda key: one[key]) for name, one in tried.items()}, tried


def _total(distance: Mapping[str, np.ndarray]) -> float:
    return sum(_high(values) for values in distance.values())


def _high(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.95))


def measured(task: ForgetTask, chosen: Mapping[str, str]) -> Figures:
    """KLoM of every arm on every set, row by row."""
    arms = {
        NOTHING: task.margins(task.before),
        FLOOR: task.oracles[1],
        DIRECT: task.direct(),
        **{name: task.unlearned(name, grid[chosen[name]]) for name, grid in task.grids().items()},
    }
    return {name: task.distance(margins) for name, margins in arms.items()}


def planted_score() -> float:
    """How a lasso predicts planted effects of few rows on models that it wasn't fitted on, -1 to 1."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(600, 100, generator=generator) < 0.5
    effects = torch.zeros(100, 5)
    effects[:5] = torch.eye(5)
    logits = (masks.float() @ effects + 0.5 * torch.randn(600, 5, generator=generator))[:, None]
    models = PartModels(masks, logits, torch.arange(100), torch.zeros(1, dtype=torch.int64))
    unseen = PartModels(masks[400:], logits[400:], models.train_index, models.row_index)
    return linear_datamodel_score(models.first(400).regressed("lasso"), unseen)


def _checks(figures: Mapping[str, Figures], score: float) -> tuple[Check, ...]:
    """The card's conditions, each a figure a forget set."""

    def high(arm: str) -> np.ndarray:
        return np.array([_high(one[arm]["forget"]) for one in figures.values()])

    def moved(arm: str) -> list[float]:
        """The larger of what kept and unseen rows lie farther than with nothing done, on average."""
        gaps = [[float((one[arm][s] - one[NOTHING][s]).mean()) for s in ("retain", "test")] for one in figures.values()]
        return [max(gap) for gap in gaps]

    own, nothing = high(OWN), high(NOTHING)
    rivals = np.min([nothing, high(GD), high(GA)], axis=0)
    closed = (nothing - own) - 0.5 * (nothing - high(OM))
    room = f"with nothing done forget rows lie {ROOM:g} nat above the floor"
    kept = f"kept and unseen rows lie at most {NEAR} nats farther than with nothing done"
    wrong = "a datamodel with its training rows exchanged leaves forget rows farther"
    return (
        Check.by_seed("set-up", room, (nothing - high(FLOOR)).tolist(), ">=", ROOM),
        Check("mechanism", "planted effects are predicted on models held back", score, ">", SCORE),
        Check.by_seed("mechanism", "oracle matching is nearer than nothing", (nothing - high(OM)).tolist(), ">", 0),
        Check.by_seed(
            "claim", "forget rows are nearer than by nothing, descent, ascent", (rivals - own).tolist(), ">", 0
        ),
        Check.by_seed("claim", "half of the way to oracle matching is closed", closed.tolist(), ">=", 0),
        Check.by_seed("claim", kept, moved(OWN), "<=", NEAR),
        Check.by_seed("claim", "forget rows are nearer than by SCRUB", (high("SCRUB") - own).tolist(), ">", 0),
        Check.by_seed("control", wrong, (high(EXCHANGED) - own).tolist(), ">", 0),
    )


def _rows(figures: Mapping[str, Figures]) -> dict[str, tuple[str, ...]]:
    rows = {}
    for arm in next(iter(figures.values())):
        columns = [[how(one[arm][name]) for one in figures.values()] for name in SETS for how in (_high, np.mean)]
        rows[arm] = tuple(spread([float(value) for value in column]) for column in columns)
    return rows


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """The 95th percentile of KLoM on forget rows of the method, its bounds and nothing."""
    own, om, nothing, floor = (figure(rows, name, 0) for name in (OWN, OM, NOTHING, FLOOR))
    return f"KLoM of forget rows {own} nats (nothing {nothing}, oracle matching {om}, floor {floor})"


def _reason(rows: Mapping[str, Sequence[Any]]) -> str:
    forget = ", ".join(f"{figure(rows, name, 0)} {name}" for name in rows)
    unseen = ", ".join(
        f"{figure(rows, name, COLUMNS.index('test, mean'))} {name}" for name in (OWN, NOTHING, GD, "SCRUB")
    )
    return f"95th percentile of KLoM on forget rows: {forget}. Mean on unseen rows: {unseen}"
