"""Whether a text is like those of a deletion request: layer by layer, near one of them or within their cloud.

Of an encoder's layers l = 1 .. L, f_l is the mean state over a text's tokens. With the request's unit vectors F_l, their mean mu_l and
precision P_l,

    s_l = 1000 max_j cos(f_l, F_l[j]) - 0.5 (f_l - mu_l)' P_l (f_l - mu_l)

is one number a layer (the released code has -1000, by which the two work against each other), and a one-class SVM over the L numbers says how usual they are: o. From o on the rows the statistics are made of
and on rows held back, a weight follows that is near 1 between the two and falls off on both sides:

    p = F(o), p' = F(2 x0 - o), x0 = (m1 + m2) / 2;   w = sigmoid(zeta * (1 - max(p, p') + min(p, p')) - 2)

with F of the equal mixture of N(m1, sd2) and N(m2, sd2). (O3, arXiv 2407.10223, and its released code)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from ....errors import DataError, ModelError, setting, unknown
from ..checks import require
from .vectors import unit_rows

__all__ = ["FAR", "FEWEST", "LayerStates", "NoveltyDetector", "NoveltyWeight", "WeightMode", "parted"]

Floats = np.ndarray[Any, np.dtype[np.float64]]
LayerStates = Callable[[Sequence[str]], Floats]  # texts to mean states, [texts, layers, width]
WeightMode = Literal["floor", "paper", "official_eval"]
FEWEST = 32  # texts of a request
NEARNESS = 1000.0  # of the cosine beside the distance: both are then larger for a text like the request's
FOLDS = 5  # parts whose rows are scored by the others
FAR = 1 / (1 + math.exp(2.0))  # sigmoid(-2): what the weight falls to far away


@dataclass(frozen=True)
class NoveltyWeight:
    """How strongly an adapter is applied, from a detector's value.

    Args:
        fitted, held: means of the detector's values on the rows it was made of, and on those held back.
        spread: standard deviation on those held back.
        zeta: factor of the paper, > 0.
        mode: "paper" is the sigmoid itself, 0.119 far away; "floor" takes that off and scales back to 1, so that far away it is exactly 0
            (ours); "official_eval" is the released evaluation's step map, 1.2 above 0.9, the value itself in (0.3, 0.4], else 0.
    """

    fitted: float
    held: float
    spread: float
    zeta: float = 10.0
    mode: WeightMode = "floor"

    def __post_init__(self) -> None:
        require("zeta", self.zeta, above=0)
        if self.mode not in get_args(WeightMode):
            raise DataError(unknown("weight", str(self.mode), get_args(WeightMode)))
        if not all(math.isfinite(one) for one in (self.fitted, self.held, self.spread)) or self.spread <= 0:
            raise DataError(
                f"the detector's values have a spread of {self.spread:g} on the rows held back, so no weight follows from them. "
                "Give more rows, or more varied ones."
            )

    def sigmoid(self, value: float) -> float:
        """w of the paper for one value of the detector."""
        middle = (self.fitted + self.held) / 2
        one, other = self._below(value), self._below(2 * middle - value)
        c = self.zeta * (1 - max(one, other) + min(one, other))
        return 1 / (1 + math.exp(2.0 - c))

    def __call__(self, value: float) -> float:
        """The weight, at least 0."""
        raw = self.sigmoid(value)
        if self.mode == "paper":
            return raw
        if self.mode == "official_eval":
            return 1.2 if raw > 0.9 else raw if 0.3 < raw <= 0.4 else 0.0
        return max(0.0, (raw - FAR) / (1 - FAR)) if raw - FAR > 1e-9 else 0.0

    def _below(self, value: float) -> float:
        """The mixture's distribution function."""
        parts = (math.erf((value - mean) / (self.spread * math.sqrt(2))) for mean in (self.fitted, self.held))
        return sum(0.5 * (1 + part) for part in parts) / 2


@dataclass(frozen=True)
class NoveltyDetector:
    """A detector fitted on one request's texts.

    Args:
        means: of the layers, [layers, width].
        precisions: [layers, width, width].
        bank: the request's states at unit length, [texts, layers, width]. They are made of deleted texts: a saved one tells of them.
        normal, offset: of the one-class SVM over layers, [layers] and a number: its value is `scores @ normal` with `offset` the
            share of rows that lie outside.
        weight: from a value to how strongly the adapter is applied.
        nearness: factor of the cosine, `NEARNESS` or, as the released code has it, its negative.
    """

    means: Floats
    precisions: Floats
    bank: Floats
    normal: Floats
    offset: float
    weight: NoveltyWeight
    nearness: float = NEARNESS

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        encode: LayerStates,
        *,
        held: float = 0.2,
        nu: float = 0.1,
        zeta: float = 10.0,
        mode: WeightMode = "floor",
        official: bool = False,
        seed: int = 0,
        fewest: int = FEWEST,
    ) -> Self:
        """From a request's texts, of which some are held back.

        Args:
            held: share that is held back, in (0, 1); drawn by `seed`.
            nu: of the one-class SVM, the share of rows outside at most, in (0, 1].
            official: the cosine with a minus, precisions by the plain covariance's pseudo-inverse, and a machine fitted to rows that are scored by
                statistics they are part of, as the released code does; else the covariance is shrunk (Ledoit-Wolf), and the
                scores the machine is fitted to come from the other four fifths (ours), as those of other texts do.

        Raises:
            DataError: fewer than `fewest` texts; no row left on either side; states that are not finite.
        """
        if len(texts) < fewest:
            raise DataError(
                f"a detector of what a request is about needs {fewest} texts, and the forget set has {len(texts)}. Give more rows, or put "
                "requests together."
            )
        require("held", held, above=0, below=1)
        fitted, back = parted(len(texts), held, seed)
        states = _finite(encode(texts))
        used, rest = states[fitted], states[back]
        made = cls._of(used, official)
        own = made.layer_scores(used)
        normal, offset = _one_class(own if official else cls._crossed(used), nu)
        values, others = own @ normal, made.layer_scores(rest) @ normal
        weight = NoveltyWeight(float(values.mean()), float(others.mean()), float(others.std()), zeta, mode)
        return replace(made, normal=normal, offset=offset, weight=weight)

    @classmethod
    def _of(cls, states: Floats, official: bool) -> Self:
        """The statistics alone."""
        unset = NoveltyWeight(0.0, 0.0, 1.0)
        near = -NEARNESS if official else NEARNESS
        return cls(states.mean(0), _precisions(states, official), unit_rows(states), np.zeros(0), 0.0, unset, near)

    @classmethod
    def _crossed(cls, states: Floats) -> Floats:
        """Scores of rows by the statistics of the others, a part of them at a time, [texts, layers]."""
        scores = np.zeros(states.shape[:2])
        parts = np.arange(len(states)) % min(FOLDS, len(states))
        for part in range(parts.max() + 1):
            scores[parts == part] = cls._of(states[parts != part], official=False).layer_scores(states[parts == part])
        return scores

    def layer_scores(self, states: Floats) -> Floats:
        """s_l of every text, [texts, layers]. states: [texts, layers, width]."""
        cosines = np.einsum("tlw,blw->tbl", unit_rows(states), self.bank)
        away = states - self.means
        distance = np.einsum("tlw,lwv,tlv->tl", away, self.precisions, away, optimize=True)
        scores: Floats = self.nearness * cosines.max(1) - 0.5 * distance
        return scores

    def values(self, states: Floats) -> Floats:
        """o of every text, [texts]. states: [texts, layers, width]."""
        scores: Floats = self.layer_scores(_finite(states)) @ self.normal
        return scores

    def weights(self, states: Floats) -> list[float]:
        """w of every text."""
        return [self.weight(float(value)) for value in self.values(states)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is stored: tensors, and plain settings."""
        arrays = {"means": self.means, "precisions": self.precisions, "bank": self.bank, "normal": self.normal}
        weight = self.weight
        settings = {
            "offset": self.offset,
            "nearness": self.nearness,
            "fitted": weight.fitted,
            "held": weight.held,
            "spread": weight.spread,
            "zeta": weight.zeta,
            "mode": weight.mode,
        }
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, settings

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """The detector that was stored.

        Raises:
            ModelError: something is missing.
        """
        try:
            arrays = {name: tensors[name].double().numpy() for name in ("means", "precisions", "bank", "normal")}
            weight = NoveltyWeight(*(settings[name] for name in ("fitted", "held", "spread", "zeta", "mode")))
            return cls(**arrays, offset=float(settings["offset"]), weight=weight, nearness=float(settings["nearness"]))
        except (KeyError, TypeError) as error:
            raise ModelError(f"a stored detector lacks {error}. Copy the folder whole.") from error


def parted(count: int, held: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the rows that a detector is made of, and of those held back, at least two each; both in order."""
    order = np.random.default_rng([seed, 23]).permutation(count).tolist()
    back = min(count - 2, max(2, round(held * count)))
    return sorted(order[back:]), sorted(order[:back])


def _one_class(scores: Floats, nu: float) -> tuple[Floats, float]:
    """The linear one-class SVM over rows of layer scores: its normal [layers], and its offset."""
    from sklearn.svm import OneClassSVM

    require("nu", nu, above=0, at_most=1)
    fitted = OneClassSVM(nu=nu, kernel="linear").fit(scores)
    return np.asarray(fitted.coef_[0], dtype=np.float64), float(fitted.offset_[0])


def _precisions(states: Floats, official: bool) -> Floats:
    """The inverse covariance of every layer, [layers, width, width]."""
    from sklearn.covariance import EmpiricalCovariance, LedoitWolf

    estimator = EmpiricalCovariance if official else LedoitWolf
    layers = [states[:, i] - states[:, i].mean(0) for i in range(states.shape[1])]
    return np.stack([estimator(assume_centered=False).fit(layer).precision_ for layer in layers])


def _finite(states: Floats) -> Floats:
    states = np.asarray(states, dtype=np.float64)
    if not np.isfinite(states).all():
        raise DataError(f"a detector's states are not finite. Check the model that {setting('encoder')} names.")
    return states
