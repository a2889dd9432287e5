"""Negative preference optimisation: push forget answers down, but less once they are down.

Gradient ascent never stops pushing and the model collapses; weighting each answer by how likely it still is,
relative to the model before unlearning, makes the pull fade. (NPO, arXiv 2404.05868, eq. 3)

    L = -(2 / beta) * mean_b log sigmoid(beta * (nll_b - nll_ref_b)),   nll summed over answer tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Paired, RetainLoss
from .engine.batch import PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerRow


def npo_loss(nll: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Equation 3 per row. nll, reference: [rows], summed over answer tokens, in nats; result [rows]."""
    return -(2 / beta) * F.logsigmoid(beta * (nll - reference))


@dataclass(frozen=True, kw_only=True)
class NPO(Paired):
    """Negative preference optimisation.

    Args:
        beta: inverse temperature, > 0. Towards 0 the loss is gradient ascent; 0.1 in the paper.
        retain_loss, retain_weight: the retain term: "nll" is the paper's NPO+RT, "kl" its NPO+KL, "none" plain NPO.
    """

    forgets: ClassVar[tuple[str, ...]] = ("text", "images")
    beta: float = 0.1
    retain_loss: RetainLoss = "nll"
    reads: ClassVar[frozenset[str]] = frozenset({"nll", "reference nll"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require("beta", self.beta, above=0)

    def loss(self, batch: PairedBatch) -> Loss:
        """The bounded preference loss. batch.forget.nll, .reference: [rows], summed over each answer's tokens, in nats."""
        forget = batch["forget"]
        assert forget.reference is not None
        ratio = (forget.nll - forget.reference).detach()
        weight = 2 * torch.sigmoid(-self.beta * ratio)  # what is left of gradient ascent's pull, in (0, 2)
        logs = {"weight": weight.mean(), "log_ratio": ratio.mean()}
        return Loss(logs, forget=PerRow(npo_loss(forget.nll, forget.reference, self.beta)))
