"""Datamodels: what each training row adds to the outputs of each row, regressed on models of random parts of the rows.

The models are trained once per content hash, several at once, and found again for every forget set. Their number is the
price: 1,000 to 20,000 in the paper. (arXiv 2410.23232, after arXiv 2202.00622)

    f_c(x; theta(S_j)) ~ b + sum_{i in S_j} beta_i(x, c),   |S_j| = share * n,   j = 1..M
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ....data.images.images import Images
from ....errors import DataError, MethodError, unknown
from ....models.curvature import evaluating
from ....models.fitting import TrainRecipe
from ....models.image_training import fitted
from ....models.vision_layout import logits_of
from ....runs import progress
from ....runs.jobs import crew
from ..stream import permutation
from .attribution import RowEffects
from .regression_path import Penalty, fitted_effects

__all__ = ["FEWEST", "PartModels", "fit_datamodel", "linear_datamodel_score", "part_models"]

FEWEST = 50  # models, below which a regression on them says nothing
_HALVES = 41  # keeps these draws apart from others of the same seed
Recipe = TrainRecipe | Callable[[], TrainRecipe]


@dataclass(frozen=True, eq=False)
class PartModels:
    """What models of random parts of a training set say of some rows.

    Args:
        masks: which model had which training row, booleans `[models, training rows]`.
        logits: `[models, rows, outputs]`, float32.
        train_index, row_index: the names of both.
        data_hash: of the training set.

    Raises:
        DataError: numbers of models, rows or names that don't fit.
    """

    masks: Tensor
    logits: Tensor
    train_index: Tensor
    row_index: Tensor
    data_hash: str = ""

    def __post_init__(self) -> None:
        models, rows = self.masks.shape
        if self.masks.dtype != torch.bool or rows != len(self.train_index):
            raise DataError(
                f"masks are {str(self.masks.dtype)[6:]} of {rows} rows, and there are {len(self.train_index)} training rows. Give "
                "booleans, one a model and training row."
            )
        if self.logits.ndim != 3 or self.logits.shape[:2] != (models, len(self.row_index)):
            raise DataError(
                f"logits have shape {list(self.logits.shape)}, and there are {models} models and {len(self.row_index)} rows. Give "
                "[models, rows, outputs]."
            )

    def first(self, models: int) -> PartModels:
        """The same of the first models only.

        Raises:
            MethodError: there are not as many.
        """
        if not 1 <= models <= len(self.masks):
            raise MethodError(f"there are {len(self.masks)} models and no first {models}. Take 1 to that.")
        return PartModels(self.masks[:models], self.logits[:models], self.train_index, self.row_index, self.data_hash)

    def of(self, rows: Images) -> PartModels:
        """The same of some of the rows.

        Raises:
            DataError: rows that the models weren't asked.
        """
        place = {name: at for at, name in enumerate(self.row_index.tolist())}
        if unknown_rows := [name for name in rows.index.tolist() if name not in place]:
            raise DataError(f"the models were not asked of row {unknown_rows[0]}. Record it with the others.")
        at = torch.tensor([place[name] for name in rows.index.tolist()])
        return PartModels(self.masks, self.logits[:, at], self.train_index, rows.index, self.data_hash)

    def regressed(self, penalty: Penalty = "lasso", *, least: int = FEWEST, validation: float = 0.1) -> RowEffects:
        """The datamodel: a regression an output of a row, see `fitted_effects`.

        Args:
            penalty: "lasso", as published, or "ridge", in closed form.
            least: models to ask for.
            validation: share of the models that strengths are chosen on.

        Raises:
            MethodError: fewer models.
            DataError: as `fitted_effects`.
        """
        models, rows, outputs = self.logits.shape
        if models < least:
            raise MethodError(
                f"a datamodel is to be regressed on {models} models; it takes at least {least}. Train more."
            )
        effects, _ = fitted_effects(self.masks, self.logits.reshape(models, rows * outputs), penalty, validation)
        cube = effects.reshape(-1, rows, outputs).float()
        return RowEffects(cube, self.train_index, self.row_index, self.data_hash, models)


def part_models(
    recipe: Recipe,
    train: Images,
    rows: Sequence[Images],
    count: int,
    *,
    share: float = 0.5,
    seed: int = 0,
    workers: int | None = 1,
) -> PartModels:
    """Trains models on random parts of `train`, each once and found again, and records what they say of `rows`.

    Args:
        recipe: how the target was trained; or a function without arguments that makes it and that other processes can
            import, such as `functools.partial(image_recipe, SmallMLP, epochs=20)`, without which there is but one.
        rows: sets whose logits are recorded, in evaluation mode and without augmentation; the training rows where
            they are to be matched.
        count: of models, M.
        share: of the rows that each model has, above 0, below 1.
        seed: of the parts; model j is trained from seed + j.
        workers: processes; None for one a core.

    Raises:
        MethodError: no model, a share without a row on either side, several processes without a function.
        DataError: two sets of rows share names.
    """
    kept = round(share * len(train))
    if count < 1:
        raise MethodError(f"{count} models; a datamodel needs at least {FEWEST}.")
    if not 0 < kept < len(train):
        raise MethodError(f"share is {share}, which leaves {kept} of {len(train)} rows; give one between.")
    if isinstance(recipe, TrainRecipe) and workers != 1:
        raise MethodError(
            "a recipe can't be sent to other processes. Give a function that makes it, such as functools.partial(image_recipe, "
            "SmallMLP, epochs=20), or workers=1."
        )
    index = torch.cat([one.index for one in rows])
    if len(index.unique()) < len(index):
        raise DataError("two sets of rows share names. Give each row once.")
    parts = [sorted(permutation(len(train), seed, _HALVES, number)[:kept].tolist()) for number in range(count)]
    jobs = [(number, tuple(part), seed + number) for number, part in enumerate(parts)]
    logits: dict[int, Tensor] = {}
    work = partial(_logits_of_part, recipe, train, tuple(rows))
    with progress(count, "training models on parts of the rows") as bar, crew(workers) as each:
        for job, found in each(work, jobs, lambda running: None):
            logits[job[0]] = found
            bar.advance()
    masks = torch.zeros(count, len(train), dtype=torch.bool)
    for number, part in enumerate(parts):
        masks[number, part] = True
    return PartModels(masks, torch.stack([logits[n] for n in range(count)]), train.index, index, train.hash)


def _logits_of_part(
    recipe: Recipe, train: Images, rows: tuple[Images, ...], job: tuple[int, tuple[int, ...], int]
) -> Tensor:
    _, part, seed = job
    made = recipe if isinstance(recipe, TrainRecipe) else recipe()
    model = fitted(made, train, part, seed)
    with evaluating(model), torch.no_grad():
        return torch.cat([logits_of(model, one.pixels) for one in rows]).float()


def fit_datamodel(
    recipe: Recipe,
    train: Images,
    rows: Sequence[Images] | None = None,
    count: int = 1000,
    *,
    penalty: Penalty = "lasso",
    share: float = 0.5,
    seed: int = 0,
    workers: int | None = 1,
    least: int = FEWEST,
) -> RowEffects:
    """A datamodel of `rows`, the training rows by default: `part_models`, regressed.

    Args:
        penalty, least: as `PartModels.regressed`.
        recipe, train, rows, count, share, seed, workers: as `part_models`.

    Raises:
        MethodError, DataError: as both; too few models before any is trained.
    """
    if count < least:
        raise MethodError(f"a datamodel is to be regressed on {count} models; it takes at least {least}. Train more.")
    if penalty not in ("lasso", "ridge"):
        raise MethodError(unknown("penalty", str(penalty), ("lasso", "ridge")))
    asked = [train] if rows is None else rows
    models = part_models(recipe, train, asked, count, share=share, seed=seed, workers=workers)
    return models.regressed(penalty, least=least)


def linear_datamodel_score(effects: RowEffects, models: PartModels) -> float:
    """Mean over outputs of the correlation of predicted and true outputs over models that it wasn't fitted on, -1 to 1.

    Raises:
        DataError: the models are of other training rows or other rows.
    """
    for name in ("train_index", "row_index"):
        if not torch.equal(getattr(effects, name), getattr(models, name)):
            raise DataError(f"the datamodel and the models differ in {name}. Give models of the same rows.")
    predicted = models.masks.double() @ effects.effects.double().flatten(1)
    true = models.logits.double().flatten(1)
    predicted, true = predicted - predicted.mean(0), true - true.mean(0)
    norms = (predicted.norm(dim=0) * true.norm(dim=0)).clamp(min=1e-12)
    return float(((predicted * true).sum(0) / norms).mean())
