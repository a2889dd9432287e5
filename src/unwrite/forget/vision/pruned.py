"""Prune first, then unlearn: what a sparse model learnt sits in fewer weights, and an unlearner gets closer to retraining.

The smallest weights of all convolutions together become 0; then any method runs on those that survive, and zeros stay
exactly 0 whatever momentum and weight decay do. (Sparse MU, arXiv 2304.04934, section 4, "prune first, then unlearn")

    theta_u = m * unlearn(m * theta_o),   m_i = 0 for the round(rate * n) smallest |theta_i|

The paper retrains the pruned model before it unlearns: `models.pruning.omp` makes such an original, `rate=None` takes
it as it is, and its oracle is `fitted(recipe_of(masks=masks), ...)` on the retain set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import nn
from transformers import TrainerControl, TrainerState

from ...data.images.images import Images
from ...errors import MethodError, notice, unknown
from ...models.pruning import Scope, apply_masks, magnitude_masks, zero_masks
from ..base import Edit, Guard, Method, Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages, add_losses
from ..engine.images.work import ImageWork
from ..engine.loss import Loss
from ..engine.masking import KeepMask
from ..engine.phase import Phase

if TYPE_CHECKING:
    from ...models import TrainRecipe

__all__ = ["Pruned"]


@dataclass(frozen=True, kw_only=True)
class FineTuneSurvivors(Objective[ImageWork]):
    """Plain fine-tuning on the retain set as the paper has it: the default of `Pruned`."""

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {"num_train_epochs": 10, "per_device_train_batch_size": 256}

    def loss(self, batch: PairedImages) -> Loss:
        """The ordinary loss. batch.retain: what the ordinary training minimises."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on retain rows."""
        return [Phase("retain", self.loss)]


@dataclass(frozen=True, kw_only=True)
class Pruned(Edit[ImageWork]):
    """Prunes the model and unlearns with what is left.

    A method that replaces weights (retraining, an edit) is masked afterwards. What comes from a fresh model inside a
    method, such as a teacher, isn't pruned.

    Args:
        inner: what unlearns; None for plain fine-tuning on the retain set. Its own training arguments count.
        rate: share of the weights to prune, in [0, 1); None if the model is pruned already, its zeros being the mask.
        scope: "conv", or "weights" for linear layers too.
    """

    inner: Method[ImageWork] | None = None
    rate: float | None = 0.95
    scope: Scope = "conv"
    forgets: ClassVar[tuple[str, ...]] = ("images",)

    def __post_init__(self) -> None:
        if self.inner is not None and (not isinstance(self.inner, Method) or isinstance(self.inner, Guard | Pruned)):
            raise MethodError(
                f"inner is {self.inner!r:.60}. Give an objective or an edit, whose weights can be held at 0."
            )
        if self.rate is not None:
            require("rate", self.rate, at_least=0, below=1)
        if self.scope not in ("conv", "weights"):
            raise MethodError(unknown("scope", str(self.scope), ("conv", "weights")))

    @property
    def chosen(self) -> Method[ImageWork]:
        """What unlearns."""
        return self.inner or FineTuneSurvivors()

    def defaults(self) -> Mapping[str, Any]:
        return self.chosen.defaults()

    def fitted(self, model: nn.Module) -> Self:
        return self if self.inner is None else replace(self, inner=self.inner.fitted(model))

    def check(self, forget: Images, retain: Images | None) -> None:
        self.chosen.check(forget, retain)

    def check_work(self, work: ImageWork) -> None:
        self.chosen.check_work(work)

    def _need(self, kind: str, retain: Sized | None, recipe: TrainRecipe | None) -> None:
        super()._need(kind, retain, recipe)
        self.chosen._need(kind, retain, recipe)

    def _apply(self, work: ImageWork) -> nn.Module:
        """Prunes in place, unlearns with the mask held, and leaves every pruned weight exactly 0.

        Raises:
            ModelError: nothing to prune in the scope; no zeros where `rate` is None.
        """
        if self.rate is None:
            masks = zero_masks(work.model, self.scope)
        else:
            masks = magnitude_masks(work.model, self.rate, self.scope)
        if empty := [name for name, mask in masks.items() if not bool(mask.any())]:
            notice(
                f"every weight of {', '.join(empty)} is pruned, so nothing may pass there any more. Lower the rate, or "
                "give a model that was trained.",
            )
        apply_masks(work.model, masks)
        masked = replace(work, callbacks=[*work.callbacks, _KeepZero(masks)])
        model = self.chosen._apply(masked)
        apply_masks(model, masks)
        return model


class _KeepZero(KeepMask):
    """Holds what was pruned at 0, also where the method has put new weights since (EU-k)."""

    def on_train_begin(
        self, args: object, state: TrainerState, control: TrainerControl, model: Any = None, **more: Any
    ) -> None:
        apply_masks(model, self.masks)
        super().on_train_begin(args, state, control, model=model, **more)
