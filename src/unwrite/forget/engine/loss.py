"""What an objective returns: named sums, each with the count it is divided by.

Dividing every sum by its own count over the whole accumulated batch and all processes makes one batch of 8,
4 x 2 accumulated and two processes give the same weights, also when answers differ in length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """Values to sum, and the names of the counts whose total divides them ("forget.rows", "retain.tokens")."""

    values: Tensor
    counts: tuple[str, ...]

    def total(self, counts: Mapping[str, Tensor]) -> Tensor:
        """sum(values) / count, a scalar; 0 where there is nothing to count."""
        count = torch.stack([counts[name] for name in self.counts]).sum()
        return self.values.sum() / count.clamp(min=1)


def PerRow(values: Tensor, of: str = "forget") -> Term:
    """One value a row, [rows]: averaged over rows."""
    return Term(values, (f"{of}.rows",))


def PerToken(values: Tensor, *of: str) -> Term:
    """One value a label token, or a sum of such: averaged over the label tokens of the named parts."""
    return Term(values, tuple(f"{part}.tokens" for part in of or ("forget",)))


def PerMark(values: Tensor, of: str = "forget", *, marked: bool = True) -> Term:
    """One value a label token that the rows mark, or do not: averaged over those tokens."""
    return Term(values, (f"{of}.{'marks' if marked else 'unmarked'}",))


def PerPosition(values: Tensor, of: str = "retain") -> Term:
    """One value a position at which the part's logits were taken: averaged over those positions."""
    return Term(values, (f"{of}.positions",))


class Loss:
    """Named terms and numbers to log.

    The base multiplies the term named "forget" by `forget_weight` and adds the retain term.
    """

    def __init__(self, logs: Mapping[str, Tensor | float] | None = None, **terms: Term) -> None:
        self.terms = terms
        self.logs = dict(logs or {})


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(p_reference || p) of each position, in nats, float32. Both: [positions, vocab]; result [positions]."""
    log_q = reference.float().log_softmax(-1)
    log_p = logits.float().log_softmax(-1)
    return F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
