"""Teach a refusal in place of the answer: IDK by plain training, DPO by preferring the refusal.

(TOFU, arXiv 2401.06121, section 3: "I don't know" and preference optimisation. The factor 2 / beta, which trl's
DPO has not, makes DPO's first step comparable to NPO's.)

    IDK:  L = mean_t nll over the tokens of refusals and retain answers together
    DPO:  L = -(2 / beta) * mean_b log sigmoid(beta * [(s_b(refusal) - ref) - (s_b(answer) - ref)]),  s = -nll summed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..data import Examples
from .base import Objective, Paired, RetainLoss
from .engine.batch import PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerRow, PerToken
from .engine.text.refusals import default_refusals, refuse


@dataclass(frozen=True, kw_only=True)
class _Refusing(Objective):
    """An objective whose alternate answers are refusals.

    Args:
        refusals: sentences to refuse with; empty for the hundred that ship.
    """

    refusals: tuple[str, ...] = ()

    def alternates(self, forget: Examples, seed: int) -> Examples:
        return refuse(forget, self.refusals or default_refusals(), seed)


@dataclass(frozen=True, kw_only=True)
class IDK(_Refusing):
    """Trains on refusals to the forget questions, and on retain answers, as one mean over all their tokens."""

    reads: ClassVar[frozenset[str]] = frozenset({"alternate nll", "retain nll"})

    def loss(self, batch: PairedBatch) -> Loss:
        """One mean over refusals and retain answers. batch.alternate, batch.retain: token_nll [label tokens]."""
        values = [batch[part].token_nll for part in ("alternate", "retain")]
        return Loss(refusal=PerToken(torch.cat(values), "alternate", "retain"))


@dataclass(frozen=True, kw_only=True)
class DPO(_Refusing, Paired):
    """Prefers a refusal over the answer, relative to the model before.

    Args:
        beta: inverse temperature, > 0; 0.1 in TOFU.
    """

    beta: float = 0.1
    retain_loss: RetainLoss = "nll"
    reads: ClassVar[frozenset[str]] = frozenset({"nll", "alternate nll", "reference nll", "reference alternate nll"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require("beta", self.beta, above=0)

    def loss(self, batch: PairedBatch) -> Loss:
        """batch.alternate (the refusal wins) and batch.forget (the answer loses): nll, reference [rows]."""
        win, lose = batch["alternate"], batch["forget"]
        assert win.reference is not None
        assert lose.reference is not None
        margin = (win.reference - win.nll) - (lose.reference - lose.nll)
        return Loss({"margin": margin.mean()}, forget=PerRow(-(2 / self.beta) * F.logsigmoid(self.beta * margin)))
