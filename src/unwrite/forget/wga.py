"""Weighted gradient ascent: push each token only as hard as the model still believes in it.

Plain ascent pushes hardest on tokens that are already gone, which is what breaks the model; weighting a token by its
own probability turns that round. (Rethinking LLM unlearning objectives, arXiv 2502.19301)

    L = - mean_t p_t^beta * nll_t,   p_t = exp(-nll_t) without gradient
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Paired, RetainLoss
from .engine.batch import PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerToken


@dataclass(frozen=True, kw_only=True)
class WGA(Paired):
    """Weighted gradient ascent.

    Args:
        beta: how much a token's probability counts, >= 0; 0 is gradient ascent, 1 the usual value.
    """

    forgets: ClassVar[tuple[str, ...]] = ("text", "images")
    beta: float = 1.0
    retain_loss: RetainLoss = "nll"

    def __post_init__(self) -> None:
        super().__post_init__()
        require("beta", self.beta, at_least=0)

    def loss(self, batch: PairedBatch) -> Loss:
        """Ascent on the forget answers. batch.forget.token_nll: [label tokens], in nats."""
        nll = batch["forget"].token_nll
        weight = (-self.beta * nll).detach().exp()
        return Loss({"token_weight": weight.mean()}, forget=PerToken(-weight * nll, "forget"))
