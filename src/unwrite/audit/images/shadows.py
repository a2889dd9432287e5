"""The shadow models of LiRA: what a row's confidence looks like with the row in training, and without it.

Every shadow model is trained on a random half of all rows there are, forget, retain and holdout (arXiv 2112.03570);
here in pairs that share the rows between them. It isn't told what is forgotten, so one set of shadow models, found
again in the cache, serves every forget set of a training set. The price: the audited model saw more rows than any of
them.

Or the halves are of the attacked rows alone, forget and holdout, and every model has all retain rows: then it is like
the audited one, a row counts only against itself, and more is found. On digits, with 32 models and a fifth of the
rows to forget, the AUC is 0.66 instead of 0.61 (means of three models), that of retrained models 0.52 either way.

    phi = log(p_y / (1 - p_y)) of every row under every shadow model; each row inside for exactly half of them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...data.images.images import Images
from ...data.images.splits import ImageSplit
from ...errors import DataError, MethodError, unknown
from ...models.fitting import TrainRecipe
from ...models.image_training import fitted_many
from ...models.vision_layout import logits_of
from ..base import Exhibit, Panel, Score
from ..context import Context
from ..report.parts import Remark
from ..report.report import Report
from .arrays import Floats
from .context import ImageContext
from .evidence import shadow_evidence
from .lira import LEAST, lira, logit_confidence
from .metrics import Contexts, ImageMetric

__all__ = ["ShadowAttack", "Shadows", "shadow_models"]

Halves = Literal["all", "attacked"]
NAMES = ("lira_auc", "lira_tpr_at_0.01", "lira_tpr_at_0.001")


@dataclass(frozen=True, eq=False)
class Shadows(Exhibit):
    """What shadow models say of forget and holdout rows.

    `evaluate(..., references={"shadows": shadows})` attacks every model with it.

    For a whole class the models without a row still know its class, so a model that forgot the class looks unlike both
    sides: the attack is made for random rows.

    Args:
        index: names of the rows, forget rows first, `[rows]`.
        phi: scaled confidences, `[models, rows]`.
        inside: whether the model was trained on the row, `[models, rows]`.
        least: models to ask for; fewer than 32 say little.
        unlearned: whether the models were unlearned, too; the report says so.

    Raises:
        MethodError: fewer models.
    """

    index: NDArray[np.int64]
    phi: Floats
    inside: NDArray[np.bool_]
    least: int = LEAST
    unlearned: bool = False
    reads: ClassVar[type[Context]] = ImageContext

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
        confidences = [logit_confidence(*context.labelled(name)) for name in ("forget", "holdout")]
        of_forget = np.arange(len(self.index)) < len(forget)
        return lira(np.concatenate(confidences), self.phi, self.inside, of_forget, least=self.least)

    def metrics(self) -> Sequence[ImageMetric]:
        """Every figure of the attack, as a metric."""
        return [ShadowAttack(self, name) for name in NAMES]

    def provenance(self) -> Mapping[str, str | float]:
        return {"shadow models": len(self.phi)}

    def remark(self, report: Report) -> Remark | None:
        return shadow_evidence(report)


@dataclass(frozen=True)
class ShadowAttack(ImageMetric):
    """One figure of LiRA with these shadow models.

    Args:
        shadows: what they say of the rows.
        figure: which of the attack's figures.
    """

    shadows: Shadows
    figure: str = NAMES[0]
    panel: ClassVar[Panel] = "privacy"
    needs: ClassVar[tuple[str, ...]] = ("forget", "holdout")

    @property
    def name(self) -> str:
        return self.figure

    @property
    def about(self) -> str:
        way = "by LiRA" + (" with unlearned shadow models" if self.shadows.unlearned else "")
        if self.figure == NAMES[0]:
            return f"Forget rows told from unseen ones {way}: 1 is no error, 0.5 chance, below they look less seen."
        rate = self.figure.split("_")[-1]
        return f"Share of forget rows called members {way} at a false-positive rate of {rate}."

    def measure(self, context: ImageContext, references: Contexts) -> Score:
        return self.shadows.of(context)[self.figure]


def shadow_models(
    recipe: TrainRecipe,
    split: ImageSplit,
    count: int = LEAST,
    seed: int = 0,
    *,
    halves: Halves = "all",
    unlearn: Callable[[nn.Module, Images, Images], nn.Module] | None = None,
    least: int = LEAST,
    tell: Callable[[int], None] = lambda n: None,
) -> Shadows:
    """Trains shadow models, each once and found again; several at once where ray is running.

    Args:
        recipe: how the audited model was trained.
        split: with labels and a holdout set.
        count: an even number: of two models, one has the rows that the other hasn't.
        seed: of the halves; model i is trained from seed + i.
        halves: of "all" rows, or of the "attacked" ones (forget and holdout), retain rows in every model.
        unlearn: from a shadow model, those of the attacked rows that it was trained on, and its other rows, to the
            model without them, in place or not: `lambda model, forget, retain: SCRUB().apply(model, forget, retain,
            recipe=recipe)`. Then the attack asks what the method leaves behind (arXiv 2403.01218). Runs every time.
        least: see `Shadows`.
        tell: gets how many are done.

    Raises:
        MethodError: too few, or an odd number; no holdout; halves of something else.
        DataError: regression targets.
    """
    if count < max(2, least) or count % 2:
        raise MethodError(f"{count} shadow models; use an even number of at least {max(2, least)}.")
    if halves not in ("all", "attacked"):
        raise MethodError(unknown("kind of halves", halves, ("all", "attacked")))
    if split.holdout is None:
        raise MethodError(f"LiRA tells forget from holdout rows, and the split {split.name} has no holdout. Draw one.")
    if split.forget.labels is None:
        raise DataError("LiRA needs labels, and these rows have regression targets. See regression_membership_attack.")
    index = torch.cat([split.forget.index, split.holdout.index])
    pool = split.train.joined(split.holdout)
    at = pool.positions(index).numpy()
    if halves == "all":
        inside = _halves(len(pool), count, seed)
    else:
        inside = np.ones((count, len(pool)), dtype=bool)
        inside[:, at] = _halves(len(at), count, seed)
    models = fitted_many(recipe, pool, [(np.flatnonzero(own).tolist(), seed + i) for i, own in enumerate(inside)], tell)
    rows, attacked = (split.forget, split.holdout), torch.isin(pool.index, index)
    phi = []
    for model, own in zip(models, torch.from_numpy(inside), strict=True):
        if unlearn is not None:
            model = unlearn(model, pool.where(own & attacked, "forget"), pool.where(own & ~attacked, "retain"))
        phi.append(_confidences(model, rows))
    return Shadows(index.numpy(), np.stack(phi), inside[:, at], least, unlearn is not None)


def _halves(rows: int, count: int, seed: int) -> NDArray[np.bool_]:
    """Draws who has which row, `[count, rows]`: models 2i and 2i + 1 share the rows between them."""
    inside = np.zeros((count, rows), dtype=bool)
    for pair in range(count // 2):
        order = np.random.default_rng([seed, pair]).permutation(rows)
        inside[2 * pair, order[: rows // 2]] = True
        inside[2 * pair + 1] = ~inside[2 * pair]
    return inside


@torch.no_grad()
def _confidences(model: nn.Module, sets: tuple[Images, ...], batch_size: int = 256) -> Floats:
    """Returns phi of the sets' rows, one after the other."""
    confidences, model = [], model.eval()
    for rows in sets:
        parts = [logits_of(model, rows.pixels[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
        confidences.append(logit_confidence(torch.cat(parts).double().numpy(), rows.target.numpy()))
    return np.concatenate(confidences)
