"""Smooth unlearning: make the forget loss flat around the solution, so that a few steps of relearning don't undo it.

Relearning walks a little way up the forget loss. Where that loss is low in a whole neighbourhood, a little way brings nothing
back. Any objective's forget loss l is replaced by a smoother one; its retain term is taken at the weights as they are.
(Smoothness-optimised unlearning, arXiv 2502.05374, ICML 2025)

    SAM  max_{|e| <= rho} l(w + e)                    gradient of l at w + rho * g / |g|,   g = grad l(w)
    RS   mean over d of l(w + d), d ~ N(0, sigma^2)   mean of the gradients there
    GP   l(w) + strength * |g|                        g + strength * H g / |g|,   H the Hessian of l
    CR   l(w) + strength * |grad l(w + mu v) - g|     g + strength * (H(w + mu v) - H) u,   v = g / |g|, held fixed,
                                                      u the difference's own direction
    WA   l(w), and the mean of the weights over the last steps

Norms are of all trained parameters as one vector; with adapters these are what is trained and what is perturbed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from .. import catalog
from ..errors import MethodError, setting, unknown
from .base import Method, Objective
from .engine.averaging import WeightAverage
from .engine.batch import KLMask, PairedBatch
from .engine.checks import require
from .engine.landscape import Landscape, Slope, norm, plus
from .engine.loss import Loss
from .engine.phase import Phase

if TYPE_CHECKING:
    from ..models import TrainRecipe
    from .engine.text.work import TextWork

__all__ = ["Smooth"]

Smoothing = Literal["sam", "rs", "gp", "cr", "wa"]
Derivative = Literal["exact", "differences"]
Step = tuple[list[Tensor], dict[str, float]]
DIFFERENCE = 1e-3  # (ours) how far apart the two slopes are of which a difference is taken


def sharpness_aware(at: Landscape, rho: float) -> Step:
    """SAM: the gradient at the worst point within `rho`, to first order."""
    slope = at.slope()
    with at.moved(slope.unit(), rho) as moved:
        worst = at.slope()
    return worst.gradient, {"sharpness": worst.value - slope.value, "moved": moved, "gradient_norm": slope.norm}


def randomised(at: Landscape, sigma: float, samples: int) -> Step:
    """RS: the mean gradient over weights with noise of standard deviation `sigma` in every coordinate."""
    mean = [torch.zeros_like(one) for one in at.parameters]
    for number in range(samples):
        with at.moved(at.noise(number), sigma) as moved:
            mean = plus(mean, 1 / samples, at.slope().gradient)
    return mean, {"moved": moved}


def gradient_penalty(at: Landscape, strength: float, derivative: Derivative) -> Step:
    """GP: the gradient of l + strength * |grad l|."""
    slope = at.slope()
    return plus(slope.gradient, strength, _curvature(at, slope.unit(), slope, derivative)), {"penalty": slope.norm}


def curvature_penalty(at: Landscape, strength: float, mu: float, derivative: Derivative) -> Step:
    """CR: the gradient of l + strength * |grad l(w + mu v) - grad l(w)|, with v held fixed."""
    slope = at.slope()
    with at.moved(slope.unit(), mu):
        ahead = at.slope()
    turn = plus(ahead.gradient, -1, slope.gradient)
    u = [one / (norm(turn) + 1e-12) for one in turn]
    with at.moved(slope.unit(), mu):
        there = _curvature(at, u, ahead, derivative)
    bend = plus(there, -1, _curvature(at, u, slope, derivative))
    return plus(slope.gradient, strength, bend), {"penalty": norm(turn)}


def _curvature(at: Landscape, direction: Sequence[Tensor], here: Slope, derivative: Derivative) -> list[Tensor]:
    """The Hessian times a direction of length 1, at the weights as they are."""
    return at.curvature(direction) if derivative == "exact" else at.difference(direction, DIFFERENCE, here)


@dataclass(frozen=True, kw_only=True)
class Smooth(Objective[Any]):
    """Any objective on texts with a smoother forget loss: `Smooth(NPO(), by="sam", rho=0.01)`.

    The perturbation is that of the whole accumulated batch over all processes (ours: the official code perturbs each
    micro-batch alone), so that cutting a step otherwise changes nothing. A strength of 0 is the inner objective's own step.
    The logs have `forwards` and `backwards`, passes a step over its rows of one kind (forget, retain): the plain step has 2
    of each, SAM 3, RS `samples` + 1, GP 3 and 5 (3 and 3 by differences), CR 5 and 9 (5 and 5), WA 2.

    Args:
        inner: the objective; None for NPO with its defaults, as in the paper. Its own training arguments count. It has to be
            `separable`: a forget term that needs forget rows alone, as all that are `Paired` here.
        by: "sam" (the worst point nearby), "rs" (random noise), "gp" (gradient penalty), "cr" (curvature penalty) or "wa"
            (weight average).
        rho: radius of SAM, >= 0; the length of the whole step in weight space. 0.01 in the paper.
        sigma: standard deviation of RS's noise in every coordinate, >= 0; 1e-4 in the paper.
        samples: draws of RS a step, >= 1.
        strength: factor of the penalty of GP and CR, >= 0 (ours: the official code's penalties have no gradient, so its
            values say nothing).
        mu: how far ahead CR looks, > 0.
        derivative: how GP and CR get the penalty's gradient: "exact", by a backward through the backward (eager or sdpa
            attention), or "differences" of two gradients 1e-3 apart (ours), with any attention, in float32.
        start, interval: WA takes the weights after step `start`, from 1, and every `interval` steps after.
    """

    inner: Objective[Any] | None = field(default=None, kw_only=False)
    by: Smoothing = "sam"
    rho: float = 0.01
    sigma: float = 1e-4
    samples: int = 3
    strength: float = 1.0
    mu: float = 0.01
    derivative: Derivative = "exact"
    start: int = 100
    interval: int = 5
    forgets: ClassVar[tuple[str, ...]] = ("text",)

    def __post_init__(self) -> None:
        if self.inner is not None:
            _check_inner(self.inner)
        for name, allowed in (("by", get_args(Smoothing)), ("derivative", get_args(Derivative))):
            if getattr(self, name) not in allowed:
                raise MethodError(unknown(setting(name), str(getattr(self, name)), allowed))
        for name in ("rho", "sigma", "strength"):
            require(name, getattr(self, name), at_least=0)
        require("mu", self.mu, above=0)
        for name in ("samples", "start", "interval"):
            require(name, getattr(self, name), at_least=1)

    def descend(self, at: Landscape) -> Step:
        """What a step follows in place of the forget loss's gradient, and what is logged of it."""
        steps = {
            "sam": partial(sharpness_aware, rho=self.rho),
            "rs": partial(randomised, sigma=self.sigma, samples=self.samples),
            "gp": partial(gradient_penalty, strength=self.strength, derivative=self.derivative),
            "cr": partial(curvature_penalty, strength=self.strength, mu=self.mu, derivative=self.derivative),
        }
        return steps[self.by](at)

    def phases(self, work: TextWork) -> list[Phase]:
        """The objective's own one, with another descent.

        Raises:
            MethodError: it has more than one.
        """
        phases = self.chosen.phases(work)
        if len(phases) != 1:
            raise MethodError(
                f"{type(self.chosen).__name__} trains in {len(phases)} phases; Smooth takes those with one."
            )
        if {"sam": self.rho, "rs": self.sigma}.get(self.by, self.strength) == 0 or self.by == "wa":
            return [replace(phases[0], loss=partial(_counted, phases[0].loss))]
        return [replace(phases[0], descent=self.descend)]

    def _apply(self, work: TextWork) -> nn.Module:
        if self.by != "wa":
            return work.train(self)
        average = WeightAverage(self.start, self.interval)
        model = replace(work, callbacks=[*work.callbacks, average]).train(self)
        average.place(model)
        return model

    @property
    def chosen(self) -> Objective[Any]:
        """The objective that is smoothed."""
        return self.inner or cast("Objective[Any]", catalog.method("npo").load()())

    def loss(self, batch: PairedBatch) -> Loss:
        """The objective's own."""
        return self.chosen.loss(batch)

    def needed(self) -> frozenset[str]:
        return self.chosen.needed()

    def retain_positions(self) -> KLMask | None:
        return self.chosen.retain_positions()

    def trainable(self, work: TextWork) -> Sequence[Tensor] | None:
        return self.chosen.trainable(work)

    def alternates(self, forget: Any, seed: int) -> Any:
        return self.chosen.alternates(forget, seed)

    def defaults(self) -> Mapping[str, Any]:
        return self.chosen.defaults()

    @property
    def needs_retain(self) -> bool:
        return self.chosen.needs_retain

    def fitted(self, model: nn.Module) -> Self:
        return self if self.inner is None else replace(self, inner=self.inner.fitted(model))

    def check(self, forget: Any, retain: Any) -> None:
        self.chosen.check(forget, retain)

    def _need(self, kind: str, retain: Sized | None, recipe: TrainRecipe | None) -> None:
        super()._need(kind, retain, recipe)
        self.chosen._need(kind, retain, recipe)

    def check_model(self, model: nn.Module, *, adapters: bool = False) -> None:
        """Refuses weights that a perturbation or a second derivative can't be had of, and what the objective refuses."""
        self.chosen.check_model(model, adapters=adapters)
        if getattr(model, "is_quantized", False) and not adapters:
            raise MethodError(
                f"the weights are quantised, so they can't be moved. Train adapters: {setting('peft_config')}."
            )
        if self.by not in ("gp", "cr"):
            return
        attention = getattr(getattr(model, "config", None), "_attn_implementation", "eager")
        if self.derivative == "exact" and attention not in ("eager", "sdpa"):
            raise MethodError(
                f"the attention {attention!r} has no second derivative, which {setting('by', self.by)} takes. Load the model "
                f"with eager attention, or use {setting('derivative', 'differences')}."
            )
        few = {one.dtype for one in model.parameters() if one.requires_grad and one.element_size() < 4}
        if self.derivative == "differences" and few and not adapters:
            raise MethodError(
                f"differences of gradients need float32 weights, and these are {few.pop()}. Use "
                f"{setting('derivative', 'exact')}, or load the model in float32."
            )

    def check_work(self, work: TextWork) -> None:
        super().check_work(work)
        self.chosen.check_work(work)


def _check_inner(inner: object) -> None:
    """Refuses what has no forget loss of its own to smooth, by its name and kind."""
    if not isinstance(inner, Method):
        raise MethodError(f"{setting('inner')} is {inner!r:.60}, no method. Give an objective such as NPO().")
    name = type(inner).__name__
    if not isinstance(inner, Objective):
        raise MethodError(
            f"{setting('inner')} is {name}, {inner.kind} and no objective: it has no loss to smooth. Give one such as NPO()."
        )
    if "text" not in inner.forgets:
        raise MethodError(
            f"{setting('inner')} is {name}, which forgets {' and '.join(inner.forgets)}; Smooth is for texts."
        )
    if not inner.separable:
        raise MethodError(
            f"{setting('inner')} is {name}, whose loss on forget rows can't be told from that on retain rows, so nothing is to be "
            "smoothed by itself. Give one with a forget term of its own, such as NPO()."
        )


def _counted(loss: Any, batch: PairedBatch) -> Loss:
    """The loss with the passes of a plain step in its logs: one forward and backward of each kind of rows."""
    result: Loss = loss(batch)
    passes = 2.0 if batch.retain is not None else 1.0
    return Loss({**result.logs, "forwards": passes, "backwards": passes}, **result.terms)
