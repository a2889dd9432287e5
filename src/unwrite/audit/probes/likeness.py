"""P6: how like a model's states on the forget rows are to those of the model before, by linear CKA (Kornblith et al., 2019).

    CKA(X, Y) = |X'Y|^2 / (|X'X| |Y'Y|), Frobenius norms of centred states [positions, hidden]

It is worked out from Gram matrices [positions, positions], so that rows can be drawn again without another pass. (arXiv 1905.00414)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from ...errors import MethodError
from ...models import anatomy
from ...models.merging import merged
from ..base import Better, Score
from ..text.context import TextContext
from ..text.metric import TextMetric
from .base import Findings, Floats, Probe
from .layers import evenly, states_at

__all__ = ["Likeness", "WeightDistance", "cka_of_grams"]


def cka_of_grams(k: Floats, m: Floats, weights: Floats) -> float:
    """Linear CKA of two Gram matrices [positions, positions], each position counted so many times. In [0, 1]."""
    parts = [_weighted(gram, weights) for gram in (k, m)]
    pair = weights[:, None] * weights
    one, two, both = ((pair * a * b).sum() for a, b in ((parts[0],) * 2, (parts[1],) * 2, parts))
    return float(both / np.sqrt(one * two)) if one > 0 and two > 0 else 0.0


def _weighted(gram: Floats, weights: Floats) -> Floats:
    """A Gram matrix centred by the weighted mean of its positions."""
    mean = gram @ weights / weights.sum()
    return np.asarray(gram - mean[:, None] - mean + weights @ mean / weights.sum())


@dataclass(frozen=True)
class Alike(Findings):
    """Gram matrices of two models on the same positions, by layer.

    Args:
        rows: [positions] the forget row of each.
        grams: per layer, the model's own and that of the model before.
        most: draws that are worked out; the others repeat them.
    """

    rows: Floats = field(default_factory=lambda: np.empty(0, dtype=int))
    grams: Sequence[tuple[Floats, Floats]] = ()
    most: int = 200

    def on(self, rows: Floats) -> Floats:
        drawn = rows[: self.most]
        figures = []
        for draw in drawn:
            weights = np.bincount(draw, minlength=len(self.per_row)).astype(float)[self.rows]
            figures.append(np.mean([cka_of_grams(*pair, weights) for pair in self.grams]))
        return np.resize(np.array(figures), len(rows))


@dataclass(frozen=True)
class Likeness(Probe):
    """P6: linear CKA of the states with those of the model before on the forget rows, the mean over layers.

    Args:
        layers: blocks that are read, evenly spaced and the last among them.
        positions: places of the forget answers at most, as many of each row.
        draws: of the bootstrap over rows.
    """

    layers: int = 4
    positions: int = 400
    draws: int = 200

    name: ClassVar[str] = "likeness"
    way: ClassVar[str] = "the likeness of its states"
    about: ClassVar[str] = "How like the model's states on forget rows are to those of the model before (linear CKA)."
    weights: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = ("before",)

    def __post_init__(self) -> None:
        if min(self.layers, self.positions, self.draws) < 1:
            raise MethodError("likeness needs layers, positions and draws of at least 1.")

    def observe(self, context: TextContext, references: Mapping[str, TextContext]) -> Findings:
        before = references["before"].bare
        own, other = self._states(context.bare), self._states(before)
        rows = np.array([i for i, places in enumerate(self._places(before)) for _ in places])
        grams = [(x @ x.T, y @ y.T) for x, y in ((own[:, layer], other[:, layer]) for layer in range(own.shape[1]))]
        return Alike([1.0] * len(context.split.forget), rows=rows, grams=grams, most=self.draws)

    def _places(self, context: TextContext) -> list[list[int]]:
        """The places of each forget row's labels, evenly thinned."""
        most = max(1, self.positions // len(context.split.forget))
        places = []
        for windows in context.encoded(context.split.forget):
            whole = range(max(1, windows[0].prompt_length), len(windows[0].input_ids))
            places.append([whole[i * len(whole) // most] for i in range(most)] if len(whole) > most else list(whole))
        return places

    def _states(self, context: TextContext) -> Floats:
        first = [windows[0] for windows in context.encoded(context.split.forget)]
        layers = evenly(len(anatomy(context.model).blocks), self.layers)
        states = torch.cat(states_at(context, first, self._places(context), layers))
        return np.asarray(states.double().numpy())


@dataclass(frozen=True)
class WeightDistance(TextMetric):
    """How far the weights moved from the model before, |w - w'| / |w'| over all of them; adapters folded in, guards opened."""

    name: ClassVar[str] = "weight_distance"
    about: ClassVar[str] = "How far the weights are from those before, as a share of their length."
    better: ClassVar[Better] = "toward_reference"
    roles: ClassVar[tuple[str, ...]] = ("before",)

    @torch.no_grad()
    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        here, before = (_weights(one.bare.model) for one in (context, references["before"]))
        if {name: one.shape for name, one in here.items()} != {name: one.shape for name, one in before.items()}:
            return Score(self.name, None, note="Its weights have other names or shapes than those before.")
        moved = sum(float((here[name].double() - old.double()).square().sum()) for name, old in before.items())
        whole = sum(float(old.double().square().sum()) for old in before.values())
        return Score(self.name, (moved / whole) ** 0.5)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    whole = merged(model) if hasattr(model, "merge_and_unload") else model
    return {name: weight.detach().cpu() for name, weight in whole.named_parameters()}
