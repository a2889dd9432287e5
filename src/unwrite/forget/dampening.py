"""Selective synaptic dampening: shrink the weights that matter far more to the forget set than to all data.

One pass over each set finds how much every weight matters; no step of training follows. A weight is selected where
its forget importance exceeds alpha times its importance on all data, and shrunk the more, the more it exceeds it.
(SSD, arXiv 2308.07707; without labels: LFSSD, 2402.19308; alpha found by itself: ASSD; for poison: Potion, 2406.09173)

    theta_i <- beta_i theta_i  where  I_f,i > alpha I_D,i,   beta_i = min(lambda I_D,i / I_f,i, 1)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from ..data.images.images import Images
from ..errors import DataError, MethodError, ModelError, notice, setting
from ..models.curvature import Importances, Loss, importances, stored, trainable
from ..runs import progress
from .base import Edit
from .engine.checks import require
from .engine.importance import accuracy, logit_norms, squared_logit_norms
from .engine.importance_ratio import (
    LayerSelection,
    WeightSelection,
    dampen,
    factors,
    percentile_of_share,
    ratios,
    selection,
    tensors_of,
    times,
)
from .engine.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .engine.images.arguments import ImageArguments
    from .engine.text.arguments import UnlearnArguments

__all__ = [
    "ASSD",
    "LFSSD",
    "SSD",
    "Dampening",
    "LayerSelection",
    "Potion",
    "RandomDampening",
    "WeightSelection",
    "dampen",
    "percentile_of_share",
    "selection",
]

WORTH_A_WARNING = 0.2  # of the weights: more than that is no selection any more
PAPER_ALPHA = 10.0  # of SSD and LFSSD, for ResNet-18
FIRST_SHARE, GROWTH = 1 / 25, 1.1  # of Potion's search: what part of |D_f| / |D| it begins with, and each next try


@dataclass(frozen=True, kw_only=True)
class Dampening(Edit):
    """Weights that matter more to the forget set than to all data, made smaller. Subclasses say how alpha is found.

    I_D is taken over the retain batches and then the forget batches, in evaluation mode and in the sets' own order.
    So a batch's rows are of one kind, and I_f / I_D never exceeds the number of all batches over that of forget
    batches: an alpha above it selects nothing.

    Args:
        lam: lambda, >= 0; 1 in the paper, 0.1 for faces.
        importance_batch: rows whose gradient is averaged before it is squared; the same for both sets, or alpha loses
            its meaning. 128 in the official code; less for long texts.
        stored: a folder with I_D that `importances_of(...).save(folder)` wrote, taken of all training rows; then no
            retain rows are needed.
        cache: keep the importances of retain rows on disk, by content.
    """

    forgets: ClassVar[tuple[str, ...]] = ("text", "images")
    trains: ClassVar[bool] = False
    of: ClassVar[Literal["square", "absolute"]] = "square"
    lam: float = 1.0
    importance_batch: int = 128
    stored: str | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        require("lam", self.lam, at_least=0)
        require("importance_batch", self.importance_batch, at_least=1)

    @property
    def needs_retain(self) -> bool:
        return self.stored is None

    def check(self, forget: Any, retain: Any) -> None:
        super().check(forget, retain)
        if retain is None and self.needs_retain:
            raise DataError(
                f"{type(self).__name__} compares importances on forget rows with those on all data, but there is no "
                f"retain set. Give {setting('retain')}, or stored importances: {setting('stored', 'folder')}."
            )

    def importances_of(
        self,
        model: nn.Module,
        rows: Sized,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        args: UnlearnArguments | ImageArguments | dict[str, Any] | None = None,
    ) -> Importances:
        """Importances of some rows as this method takes them; of all training rows they can be saved for `stored`."""
        work = self.work(model, rows, processing_class=processing_class, args=args)
        work.place()
        return self._importances(work, work.encoded(rows))

    def select(
        self,
        model: nn.Module,
        forget: Sized,
        retain: Sized | None = None,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        args: UnlearnArguments | ImageArguments | dict[str, Any] | None = None,
    ) -> WeightSelection:
        """What `apply` with these arguments selects, for reports; the model stays as it is.

        With `cache` the pass over retain rows is not repeated by the `apply` that follows.

        Raises:
            as `apply`.
        """
        self.check(forget, retain)
        work = self.work(model, forget, retain, processing_class=processing_class, args=args)
        work.place()
        both = self._both(work)
        return selection(model, *both, self._alpha(work, *both), self.lam)

    def check_model(self, model: nn.Module, *, adapters: bool = False) -> None:
        super().check_model(model, adapters=adapters)
        if adapters:
            raise MethodError(
                f"{type(self).__name__} rewrites weights and trains no adapters. Leave out {setting('peft_config')}."
            )

    def _apply(self, work: Work) -> nn.Module:
        both = self._both(work)
        alpha = self._alpha(work, *both)
        self._warn(selection(work.model, *both, alpha, self.lam))
        self._dampen(work.model, *both, alpha)
        return work.model.eval()

    def _foresee(self, forget_batches: int, all_batches: int) -> None:
        """Says before the first pass what these rows make impossible."""

    @abstractmethod
    def _alpha(self, work: Work, all_data: Importances, forget: Importances) -> float:
        """The bar on I_f / I_D."""

    def _loss(self, work: Work) -> Loss:
        """What the gradient is of."""
        return work.row_loss

    def _beta(self, name: str, all_data: Tensor, forget: Tensor, alpha: float) -> Tensor:
        """What the parameter is multiplied with, float64 in its shape; 1 where it is not selected."""
        return factors(all_data, forget, alpha, self.lam)[0]

    @torch.no_grad()
    def _dampen(self, model: nn.Module, all_data: Importances, forget: Importances, alpha: float) -> None:
        for name, theta in trainable(model).items():
            theta.copy_(times(theta, self._beta(name, *tensors_of(name, theta, all_data, forget), alpha)))

    def _both(self, work: Work) -> tuple[Importances, Importances]:
        """(I_D, I_f); every batch goes through the model once.

        Raises:
            ModelError: an image model that doesn't fit the data; stored importances of another kind or model.
        """
        forget_rows = work.encoded(work.forget)
        retain_rows = None if self.stored is not None else work.encoded(work.retained)
        if retain_rows is not None:
            forget_batches, retain_batches = (
                -(-len(part) // self.importance_batch) for part in (forget_rows, retain_rows)
            )
            self._foresee(forget_batches, forget_batches + retain_batches)
        of_forget = self._importances(work, forget_rows)
        work.cost.forwards += of_forget.cost
        if retain_rows is None:
            return self._loaded(work.model), of_forget
        if self.cache:
            of_retain = stored(
                lambda: self._importances(work, retain_rows),
                model=work.model,
                data=work.content(retain_rows),
                settings={"loss": self._loss(work).__name__, "of": self.of, "batch": self.importance_batch},
            )
        else:
            of_retain = self._importances(work, retain_rows)
        work.cost.forwards += of_retain.cost  # also where they were on disk: what a method costs depends on no cache
        return of_retain.joined(of_forget), of_forget

    def _importances(self, work: Work, rows: Any) -> Importances:
        return importances(work.model, work.batches(rows, self.importance_batch), self._loss(work), of=self.of)

    def _loaded(self, model: nn.Module) -> Importances:
        """Stored importances, once they are of this kind and batch size."""
        assert self.stored is not None
        all_data = Importances.load(self.stored).need_finite()
        kind = (all_data.each, all_data.of, all_data.over)
        if kind != ("batch", self.of, "mean"):
            raise ModelError(
                f"{self.stored} holds the {all_data.over} of each {all_data.each}'s {all_data.of}; {type(self).__name__} needs "
                f"the mean of each batch's {self.of}. Take them by its importances_of."
            )
        full = -(-all_data.rows // self.importance_batch)
        if all_data.batches not in (full, full + 1):  # two sets one after the other have two last batches
            raise ModelError(
                f"{self.stored} was taken on {all_data.rows} rows in {all_data.batches} batches, which are not of "
                f"{self.importance_batch} rows. Set {setting('importance_batch')} to what it was taken with."
            )
        for name, theta in trainable(model).items():
            tensors_of(name, theta, all_data, all_data)
        return all_data

    def _warn(self, chosen: WeightSelection) -> None:
        name = type(self).__name__
        if not chosen.selected:
            notice(
                f"{name} selects none of {chosen.weights} weights at alpha {chosen.alpha:.3g}, so nothing is forgotten. "
                f"Lower {setting('alpha')}.",
            )
        elif chosen.share > WORTH_A_WARNING:
            notice(
                f"{name} selects {chosen.share:.0%} of {chosen.weights} weights at alpha {chosen.alpha:.3g}, which "
                f"can wreck the model. Raise {setting('alpha')}.",
            )


@dataclass(frozen=True, kw_only=True)
class SSD(Dampening):
    """Selective synaptic dampening by the squared gradient of the loss (arXiv 2308.07707).

    Args:
        alpha: how many times its importance on all data a weight's forget importance must exceed, >= 0. 10 for
            ResNet-18 (50 for faces); 5 (a class) or 25 (a sub-class) for ViT. `inf` selects none. None takes 10 where
            that selects any weight, and else ASSD's percentile: on few rows no ratio reaches 10.
        lam, importance_batch, stored, cache: see `Dampening`.
    """

    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.alpha != math.inf:
            require("alpha", self.alpha, at_least=0)

    def _foresee(self, forget_batches: int, all_batches: int) -> None:
        most = all_batches / forget_batches
        if self.alpha is not None and math.inf > self.alpha >= most:
            notice(
                f"{type(self).__name__} at alpha {self.alpha:g} can select no weight: with {forget_batches} of "
                f"{all_batches} batches to forget, none matters more than {most:.3g} times as much as on all data. "
                f"Lower {setting('alpha')}, or leave it out."
            )

    def _alpha(self, work: Work, all_data: Importances, forget: Importances) -> float:
        if self.alpha is not None:
            return self.alpha
        if selection(work.model, all_data, forget, PAPER_ALPHA).selected:
            return PAPER_ALPHA
        alpha = _adaptive(all_data, forget)
        notice(
            f"{type(self).__name__} takes alpha {alpha:.3g}, ASSD's percentile: at the paper's {PAPER_ALPHA:g} it "
            f"would select no weight, with {forget.batches} of {all_data.batches} batches to forget."
        )
        return alpha


@dataclass(frozen=True, kw_only=True)
class LFSSD(SSD):
    """SSD without labels: importances are |gradient| of the mean squared norm of the logits (arXiv 2402.19308).

    Args:
        alpha, lam, importance_batch, stored, cache: see `SSD`.
    """

    of: ClassVar[Literal["square", "absolute"]] = "absolute"

    def _loss(self, work: Work) -> Loss:
        return squared_logit_norms


@dataclass(frozen=True, kw_only=True)
class RandomDampening(SSD):
    """The control of SSD: in every parameter as many weights by the same betas, at random places.

    Args:
        control_seed: of the places.
        alpha, lam, importance_batch, stored, cache: see `SSD`.
    """

    control_seed: int = 0

    def _beta(self, name: str, all_data: Tensor, forget: Tensor, alpha: float) -> Tensor:
        beta = super()._beta(name, all_data, forget, alpha)
        generator = torch.Generator().manual_seed(self.control_seed + crc32(name.encode()))
        places = torch.randperm(beta.numel(), generator=generator).to(beta.device)
        return beta.flatten()[places].view_as(beta)


@dataclass(frozen=True, kw_only=True)
class ASSD(Dampening):
    """SSD whose alpha is a percentile of I_f / I_D over all weights, p = 100 - ln(1 + 100 |D_f| / |D|).

    Args:
        lam, importance_batch, stored, cache: see `Dampening`.
    """

    def _alpha(self, work: Work, all_data: Importances, forget: Importances) -> float:
        return _adaptive(all_data, forget)


@dataclass(frozen=True, kw_only=True)
class Potion(Dampening):
    """Heals poisoned models: the share of weights grows until the forget rows' poisoned labels are gone (2406.09173).

    Importances are |gradient| of the mean norm of the logits. A share s takes the place of |D_f| / |D| in ASSD's
    percentile: it begins at |D_f| / |D| / 25 and grows by 1.1, each time from the original weights, while accuracy on
    the forget rows with the labels they have exceeds rho times what it was. Of texts, accuracy is over label tokens.

    Args:
        rho: what may be left of that accuracy, 0 to 1. The official script sweeps 0 to 0.75.
        tries: at most so many shares.
        lam, importance_batch, stored, cache: see `Dampening`.
    """

    of: ClassVar[Literal["square", "absolute"]] = "absolute"
    rho: float = 0.2
    tries: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        require("rho", self.rho, at_least=0, at_most=1)
        require("tries", self.tries, at_least=1)

    def check(self, forget: Any, retain: Any) -> None:
        super().check(forget, retain)
        if isinstance(forget, Images) and forget.labels is None:
            raise DataError("Potion stops by accuracy, which regression targets don't have. Use ASSD.")

    def _loss(self, work: Work) -> Loss:
        return logit_norms

    def _alpha(self, work: Work, all_data: Importances, forget: Importances) -> float:
        rows = work.encoded(work.forget)
        original = {name: theta.detach().clone() for name, theta in trainable(work.model).items()}
        bar = self.rho * accuracy(work, rows, self.importance_batch)
        first = forget.rows / all_data.rows * FIRST_SHARE
        shares = [first * GROWTH**number for number in range(self.tries)]
        alphas = np.percentile(ratios(all_data, forget), [percentile_of_share(share) for share in shares]).tolist()
        try:
            for alpha in progress(alphas, "trying shares"):
                self._dampen(work.model, all_data, forget, alpha)
                left = accuracy(work, rows, self.importance_batch)
                _restore(work.model, original)
                if left <= bar:
                    return float(alpha)
        finally:
            _restore(work.model, original)
        notice(
            f"Potion tried {self.tries} shares, up to {shares[-1]:.3g}, and {left:.1%} of the forget rows still have "
            f"their labels; {setting('rho', self.rho)} allows {bar:.1%}. The last share is kept: raise "
            f"{setting('tries')} or {setting('rho')}.",
        )
        return float(alphas[-1])


def _adaptive(all_data: Importances, forget: Importances) -> float:
    """ASSD's alpha."""
    return float(np.percentile(ratios(all_data, forget), percentile_of_share(forget.rows / all_data.rows)))


@torch.no_grad()
def _restore(model: nn.Module, original: Mapping[str, Tensor]) -> None:
    for name, theta in trainable(model).items():
        theta.copy_(original[name])
