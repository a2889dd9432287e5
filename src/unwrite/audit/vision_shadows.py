"""The shadow models of LiRA: what a row's confidence looks like with the row in training, and without it.

Every shadow model is trained on all retain rows and on a random half of the forget and holdout rows, which the attack
tells apart. So it is a model like the one that is audited, and a row counts only against itself. (Halves as in
arXiv 2112.03570, section IV, which draws them of all rows: there the target has seen half of them, too.)

    phi = log(p_y / (1 - p_y)) of every row under every shadow model; each row inside for exactly half of them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..data.image_splits import ImageSplit
from ..data.images import Images
from ..errors import DataError, MethodError
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted_many
from ..models.vision_layout import logits_of
from .base import Score
from .vision_arrays import Floats
from .vision_lira import LEAST, lira, logit_confidence

if TYPE_CHECKING:
    from .vision import ImageContext, ImageMetric

__all__ = ["Shadows", "shadow_models"]

NAMES = ("lira_auc", "lira_tpr_at_0.01", "lira_tpr_at_0.001")


@dataclass(frozen=True, eq=False)
class Shadows:
    """What shadow models say of forget and holdout rows. `evaluate(..., shadows=...)` attacks every model with it.

    For a whole class the models without a row still know its class, so a model that forgot the class looks unlike both
    sides: the attack is made for random rows. Confidences of shadow models that were unlearned, too, may stand here as well
    (arXiv 2403.01218): then it asks what the method leaves behind.

    Args:
        index: names of the rows, forget rows first, `[rows]`.
        phi: scaled confidences, `[models, rows]`.
        inside: whether the model was trained on the row, `[models, rows]`.
        least: models to ask for; fewer than 32 say little.

    Raises:
        MethodError: fewer models.
    """

    index: NDArray[np.int64]
    phi: Floats
    inside: NDArray[np.bool_]
    least: int = LEAST

    def __post_init__(self) -> None:
        if len(self.phi) < self.least:
            raise MethodError(
                f"LiRA needs at least {self.least} shadow models, and there are {len(self.phi)}. Train more, or say "
                f"least={len(self.phi)} and report N."
            )

    def of(self, context: ImageContext) -> dict[str, Score]:
        """The attack on one model: AUC, and the share of forget rows found at two false-positive rates; 0 to 1.

        Raises:
            DataError: the shadow models are of other rows.
        """
        forget, holdout = context.set("forget"), context.set("holdout")
        if not np.array_equal(self.index, torch.cat([forget.index, holdout.index]).numpy()):
            raise DataError(f"the shadow models are of other forget and holdout rows than {context.split.name} has.")
        seen = [logit_confidence(*context.labelled(name)) for name in ("forget", "holdout")]
        asked = np.arange(len(self.index)) < len(forget)
        return lira(np.concatenate(seen), self.phi, self.inside, asked, least=self.least)

    def metrics(self) -> list[ImageMetric]:
        """Rows of a report."""
        from .vision import ImageMetric

        def one(name: str) -> Callable[[ImageContext], Score]:
            return lambda context: self.of(context)[name]

        told = f"by LiRA with {len(self.phi)} shadow models"
        abouts = {"lira_auc": f"Forget rows told from unseen ones {told}: 0.5 is chance, 1 without error."}
        return [
            ImageMetric(
                name,
                one(name),
                abouts.get(
                    name, f"Share of forget rows called members {told}, at most {name.split('_')[-1]} false alarms."
                ),
                panel="privacy",
                needs=("forget", "holdout"),
            )
            for name in NAMES
        ]


def shadow_models(
    recipe: TrainRecipe,
    split: ImageSplit,
    count: int = LEAST,
    seed: int = 0,
    *,
    least: int = LEAST,
    tell: Callable[[int], None] = lambda n: None,
) -> Shadows:
    """Trains shadow models, each once and found again; several at once where ray is running.

    Args:
        recipe: how the audited model was trained.
        split: with labels and a holdout set.
        count: an even number: of two models, one has the rows that the other hasn't.
        seed: of the halves; model i is trained from seed + i.
        least: see `Shadows`.
        tell: gets how many are done.

    Raises:
        MethodError: too few, or an odd number; no holdout.
        DataError: regression targets.
    """
    if count < max(2, least) or count % 2:
        raise MethodError(f"{count} shadow models; use an even number of at least {max(2, least)}.")
    if split.holdout is None or split.retain is None:
        raise MethodError(f"LiRA tells forget from holdout rows, and the split {split.name} has no holdout. Draw one.")
    if split.forget.labels is None:
        raise DataError("LiRA needs labels, and these rows have regression targets. See regression_membership_attack.")
    asked = torch.cat([split.forget.index, split.holdout.index]).numpy()
    data = split.train.joined(split.holdout)
    inside = _halves(len(asked), count, seed)
    kept = data.positions(split.retain.index).tolist()
    own = data.positions(torch.from_numpy(asked)).numpy()
    jobs = [(sorted([*kept, *own[inside[i]].tolist()]), seed + i) for i in range(count)]
    rows = split.forget, split.holdout
    phi = np.stack([_confidences(model, rows) for model in fitted_many(recipe, data, jobs, tell)])
    return Shadows(asked, phi, inside, least)


def _halves(rows: int, count: int, seed: int) -> NDArray[np.bool_]:
    """`[count, rows]`: models 2i and 2i + 1 share the rows between them."""
    inside = np.zeros((count, rows), dtype=bool)
    for pair in range(count // 2):
        order = np.random.default_rng([seed, pair]).permutation(rows)
        inside[2 * pair, order[: rows // 2]] = True
        inside[2 * pair + 1] = ~inside[2 * pair]
    return inside


@torch.no_grad()
def _confidences(model: nn.Module, sets: tuple[Images, ...], batch_size: int = 256) -> Any:
    """phi of the sets' rows, one after the other; the model is in evaluation mode."""
    found = []
    for rows in sets:
        parts = [logits_of(model, rows.pixels[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
        found.append(logit_confidence(torch.cat(parts).double().numpy(), rows.target.numpy()))
    return np.concatenate(found)
