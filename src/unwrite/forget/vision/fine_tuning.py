"""The baselines that only look at what stays: train on, on the retain set, all of the model, its end, or from the start.

What is not rehearsed may fade; how far, says the retrained model, which never saw the forget set.
(Fine-tuning as in SSD, arXiv 2308.07707; CF-k and EU-k, arXiv 2201.06640: the last k blocks trained on, or anew.)

    theta_u = argmin mean_{D_r} CE(f(x), y)    from theta_o (FT, CF-k), from new last k blocks (EU-k), from new weights (retrain)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from ...models.image_training import fitted
from ...models.vision_layout import VisionLayout
from ..base import Edit, Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages, add_losses
from ..engine.images.schedules import FINE_TUNING
from ..engine.images.work import ImageWork
from ..engine.loss import Loss
from ..engine.phase import Phase

__all__ = ["CFk", "EUk", "FineTune", "Retrain"]


@dataclass(frozen=True, kw_only=True)
class FineTune(Objective[ImageWork]):
    """Ordinary training on the retain set, by cross-entropy, or the absolute error of a regressor."""

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = FINE_TUNING

    def loss(self, batch: PairedImages) -> Loss:
        """The ordinary loss. batch.retain: what the ordinary training minimises, averaged over the rows."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on retain rows."""
        return [Phase("retain", self.loss)]


@dataclass(frozen=True, kw_only=True)
class CFk(FineTune):
    """Fine-tunes the last k blocks on the retain set; all before them stays as it is, running statistics included.

    Args:
        k: blocks to train, from 1 (the head alone) to all.
    """

    k: int = 2

    def __post_init__(self) -> None:
        require("k", self.k, at_least=1)

    def trainable(self, work: ImageWork) -> Sequence[Tensor]:
        """The parameters of the last k blocks."""
        last = set(work.layout.last(self.k))
        return [value for name, value in work.layout.model.named_parameters() if name in last]

    def _apply(self, work: ImageWork) -> nn.Module:
        work.layout.last(self.k)  # refuses a k that is too large before anything changes
        still = _Still(work.layout, self.k)
        return super()._apply(replace(work, callbacks=[*work.callbacks, still]))


@dataclass(frozen=True, kw_only=True)
class EUk(CFk):
    """Gives the last k blocks new weights, drawn by the seed, and trains them on the retain set."""

    requires: ClassVar[tuple[str, ...]] = ("retain", "recipe")

    def _apply(self, work: ImageWork) -> nn.Module:
        names = work.layout.last(self.k)
        fresh = work.layout.of(work.fresh(work.args.seed)).model.state_dict()
        state = work.layout.model.state_dict()
        with torch.no_grad():
            for name in names:
                state[name].copy_(fresh[name])
        return super()._apply(work)


@dataclass(frozen=True, kw_only=True)
class Retrain(Edit[ImageWork]):
    """The recipe's model trained on the retain set alone, from the seed: the exact answer, and what it costs.

    It is trained once and found again by its content, as every model that `fitted` makes; it is the oracle that others
    train by `fitted(recipe, split.train, split.train.positions(split.retain.index), seed)`. The cost counted is that
    of the whole training, whether it was found or not.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain", "recipe")

    def _apply(self, work: ImageWork) -> nn.Module:
        """Loads the retrained weights and running statistics into the model.

        Raises:
            ModelError: the recipe makes another architecture.
        """
        layout = work.layout
        layout.of(work.fresh(0))  # refuses before the long training
        data = work.retained.joined(work.forget)
        seed = work.args.seed
        model = fitted(work.recipe, data, data.positions(work.retained.index).tolist(), seed)
        layout.model.load_state_dict(layout.of(model).model.state_dict())
        settings = work.recipe.settings
        epochs = min(settings.get("epochs", 0), settings.get("stop_after", float("inf")))
        work.cost.add(len(work.retained), epochs, epochs)
        return work.model.eval()


@dataclass
class _Still(TrainerCallback):
    """Keeps the blocks before the last k in evaluation mode: batch statistics would move them without a gradient."""

    layout: VisionLayout
    k: int
    _modules: list[nn.Module] = field(default_factory=list)

    def __post_init__(self) -> None:
        paths = [path for block in self.layout.blocks[: -self.k] for path in block.modules]
        self._modules = [self.layout.model.get_submodule(path) for path in paths]

    def on_step_begin(self, args: object, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for module in self._modules:
            module.eval()
