"""The random-feature classifier on which NPO's authors show the collapse of gradient ascent (2404.05868, section 4).

A two-class model: 128 fixed ReLU features of 16 inputs, only the second layer is trained, by full-batch gradient
descent in float64. Retain inputs are centred at -gap, forget inputs at +gap, with opposite labels. The model is fitted
on both, then unlearns; its distance to a model fitted on the retain data alone is the KL divergence of the
predictions on fresh inputs of each kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

INPUTS, FEATURES, RETAIN, FORGET, FRESH = 16, 128, 1000, 200, 1000


@dataclass(frozen=True)
class RowKind:
    """Inputs as features [n, 128] and labels [n] of one kind, for fitting and fresh."""

    features: Tensor
    labels: Tensor
    fresh: Tensor


def log_probs(features: Tensor, weight: Tensor) -> Tensor:
    """Log-probabilities [n, 2] of a model whose second layer is `weight` [128]; class 1's logit is fixed at 0."""
    logit = features @ weight
    return F.log_softmax(torch.stack([logit, torch.zeros_like(logit)], dim=-1), dim=-1)


def nll(kind: RowKind, weight: Tensor) -> Tensor:
    """[n], in nats."""
    return -log_probs(kind.features, weight).gather(1, kind.labels[:, None])[:, 0]


def make(seed: int, gap: float) -> dict[str, RowKind]:
    """Retain and forget data of one seed."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first = normal(FEATURES, INPUTS) / INPUTS**0.5
    kinds = {}
    for name, count, sign, label in (("retain", RETAIN, -1.0, 0), ("forget", FORGET, 1.0, 1)):
        noise = normal(count, INPUTS)
        chance = torch.sigmoid(noise.sum(1) / INPUTS**0.5 + 1.0)  # of the kind's own label
        drawn = torch.rand(count, generator=generator, dtype=torch.float64) < chance
        labels = torch.where(drawn, label, 1 - label)
        centre = sign * gap
        kinds[name] = RowKind(
            torch.relu((noise + centre) @ first.T), labels, torch.relu((normal(FRESH, INPUTS) + centre) @ first.T)
        )
    return kinds


def descend(weight: Tensor, loss: Callable[[Tensor], Tensor], rate: float, steps: int) -> Tensor:
    """Plain gradient descent; returns the new weight."""
    for _ in range(steps):
        weight = weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(weight), weight)
        weight = weight - rate * gradient
    return weight.detach()


def fit(kinds: list[RowKind], steps: int) -> Tensor:
    """The model fitted on the given data: rate 0.05 from zero."""
    features, labels = torch.cat([k.features for k in kinds]), torch.cat([k.labels for k in kinds])
    both = RowKind(features, labels, features)
    return descend(torch.zeros(FEATURES, dtype=torch.float64), lambda w: nll(both, w).mean(), 0.05, steps)


def distance(fresh: Tensor, weight: Tensor, oracle: Tensor) -> float:
    """KL(oracle || model) on fresh inputs, in nats."""
    value = F.kl_div(log_probs(fresh, weight), log_probs(fresh, oracle), log_target=True, reduction="batchmean")
    return float(value)


@dataclass(frozen=True)
class Track:
    """Distances to the oracle while unlearning, one entry a record."""

    forget: list[float]
    retain: list[float]

    @property
    def best(self) -> int:
        """Where the forget distance is smallest."""
        return min(range(len(self.forget)), key=self.forget.__getitem__)


def unlearn(
    kinds: dict[str, RowKind],
    start: Tensor,
    oracle: Tensor,
    loss: Callable[[Tensor], Tensor],
    rate: float,
    steps: int,
    every: int = 25,
) -> Track:
    """Follows one loss from the fitted model."""
    track, weight = Track([], []), start
    for step in range(0, steps + 1, every):
        track.forget.append(distance(kinds["forget"].fresh, weight, oracle))
        track.retain.append(distance(kinds["retain"].fresh, weight, oracle))
        if step < steps:
            weight = descend(weight, loss, rate, every)
    return track
