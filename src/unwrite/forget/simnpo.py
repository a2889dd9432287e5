"""SimNPO: negative preference optimisation without a reference, on the mean nll of each answer.

Dividing by the answer's length keeps long answers from fading first, and no reference model is needed.
(Simplicity Prevails, arXiv 2410.07163)

    L = -(2 / beta) * mean_b log sigmoid(beta * (nll_b / m_b - margin)),   m_b label tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from .base import Paired, RetainLoss
from .engine.batch import PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerRow


@dataclass(frozen=True, kw_only=True)
class SimNPO(Paired):
    """Length-normalised, reference-free NPO.

    Args:
        beta: inverse temperature, > 0; 4.5 for TOFU forget10, 2.5 for forget05.
        margin: the paper's gamma (open-unlearning's delta), in nats per token.
        forget_weight: 0.125 for TOFU forget10, 0.1375 for forget05.
    """

    forgets: ClassVar[tuple[str, ...]] = ("text", "images")
    beta: float = 4.5
    margin: float = 0.0
    forget_weight: float = 0.125
    retain_loss: RetainLoss = "nll"

    def __post_init__(self) -> None:
        super().__post_init__()
        require("beta", self.beta, above=0)
        require("margin", self.margin, at_least=0)

    def loss(self, batch: PairedBatch) -> Loss:
        """A preference loss on mean losses. batch.forget.nll: [rows], summed; .tokens: [rows]."""
        forget = batch["forget"]
        gap = self.beta * (forget.nll / forget.tokens - self.margin)
        weight = (2 * torch.sigmoid(-gap) / forget.tokens).detach()
        return Loss({"token_weight": weight.mean()}, forget=PerRow(-(2 / self.beta) * F.logsigmoid(gap)))
