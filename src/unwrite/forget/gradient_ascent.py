"""Gradient ascent and its three retain variants, the baselines of TOFU (arXiv 2401.06121, section 3).

    GA:        L = - mean_t nll(forget)
    GradDiff:  L = GA + retain_weight * mean_t nll(retain)
    KL:        L = GA + retain_weight * mean_t KL(p_before || p) on retain rows

The ascent has no lower bound: it never stops pushing, and the model collapses unless it is stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Paired, RetainLoss
from .engine.batch import PairedBatch
from .engine.loss import Loss, PerToken


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Paired):
    """Raises the mean token nll of forget answers."""

    forgets: ClassVar[tuple[str, ...]] = ("text", "images")

    def loss(self, batch: PairedBatch) -> Loss:
        """Ascent on the forget answers. batch.forget.token_nll: [label tokens], in nats."""
        return Loss(forget=PerToken(-batch["forget"].token_nll, "forget"))


@dataclass(frozen=True, kw_only=True)
class GradientDifference(GradientAscent):
    """Gradient ascent on forget answers, ordinary training on retain answers."""

    retain_loss: RetainLoss = "nll"


@dataclass(frozen=True, kw_only=True)
class KLAscent(GradientAscent):
    """Gradient ascent on forget answers, staying close to the model before on retain rows."""

    retain_loss: RetainLoss = "kl"
