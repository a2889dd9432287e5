"""A box in the space of keys: the mean of a skill's key vectors, and how many deviations each side may be away from it.

    v is inside   iff   max_d |v_d - m_d| / s_d <= alpha k,        k = max over the probes of the same: all of them, at alpha = 1

A key vector is the input of an MLP's output matrix at one token. A vector that is not finite counts as inside: what can't be
looked at is not let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ....errors import DataError, ModelError
from ....runs import hash_json, hash_tensors, read_tensors
from .activation_statistics import FEWEST, ActivationStatistics, MlpSite, Positions, values_of

__all__ = ["KeyBox", "best_alpha"]

FILE = "keys.safetensors"
ALPHAS = tuple(10 ** (i / 20) for i in range(-40, 41))  # 0.01 to 100; fixed before any run
MOST_FALSE = 0.05  # share of retain queries that may be inside
FLAT = 1e-5  # of a mean: the least deviation of a dimension, so that one that never moved must stay where it was
ROUNDING = 1e-5  # of the box: what one way of computing a key may differ from another


@dataclass(frozen=True, eq=False)
class KeyBox:
    """Where the keys of a skill are.

    Args:
        layer: the block.
        mean, spread: `[width]`, float32; spreads above 0.
        k: deviations that the outermost probe is away, or a quantile of the probes.
        alpha: factor of k.
        steer: the key that takes the place of one inside, `[width]`; None for a refusal.
        true_rate, false_rate: shares of held-out forget and of retain queries inside at this alpha; None where nobody looked.
    """

    layer: int
    mean: Tensor = field(repr=False)
    spread: Tensor = field(repr=False)
    k: float
    alpha: float = 1.0
    steer: Tensor | None = field(default=None, repr=False)
    true_rate: float | None = None
    false_rate: float | None = None

    @classmethod
    def around(cls, statistics: ActivationStatistics, layer: int) -> Self:
        """The box with the statistics' mean and deviation and no size yet."""
        mean = statistics.mean[layer]
        flat = FLAT * torch.maximum(mean.abs(), mean.square().mean().sqrt()).clamp(min=1e-12)
        return cls(layer, mean.float(), torch.maximum(statistics.std[layer], flat).float(), 0.0)

    @classmethod
    def of_vectors(cls, vectors: Tensor, quantile: float = 1.0, layer: int = 0) -> Self:
        """Of vectors that are there already, `[vectors, width]`, with k set."""
        box = cls.around(ActivationStatistics.of_vectors(vectors, layer), layer)
        return box.sized(box.radius(vectors), quantile)

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        rows: Sequence[Sequence[int]],
        site: MlpSite,
        *,
        positions: Positions = "last",
        quantile: float = 1.0,
        bos: int | None = None,
        batch_size: int = 8,
    ) -> Self:
        """Probes a model with queries, twice: for the statistics, and for how far away each vector is.

        Raises:
            DataError: too few vectors.
            ModelError: keys that are not finite.
        """
        options: dict[str, Any] = {"positions": positions, "bos": bos, "batch_size": batch_size}
        statistics = ActivationStatistics.fit(model, rows, place="key", layers=[site.layer], fewest=FEWEST, **options)
        box = cls.around(statistics, site.layer)
        return box.sized(box.radii(model, rows, site, **options), quantile)

    def sized(self, radii: Tensor, quantile: float = 1.0) -> Self:
        """With the k that takes in this share of the probes, whose radii these are.

        Raises:
            DataError: all probes have one and the same key.
        """
        k = float(radii.sort().values[max(1, ceil(quantile * len(radii) - 1e-9)) - 1])
        if k == 0:
            raise DataError("all probes have the same key, so there is no box around them. Give queries that differ.")
        return replace(self, k=k)

    def radius(self, keys: Tensor) -> Tensor:
        """How many deviations the farthest dimension is away from the mean. keys: [..., width]; result: [...]."""
        mean, spread = self.mean.to(keys.device), self.spread.to(keys.device)
        return ((keys.float() - mean).abs() / spread).amax(-1)

    def inside(self, keys: Tensor) -> Tensor:
        """[...] whether each key is in the box, or is none."""
        return self.takes_in(self.radius(keys)) | ~keys.isfinite().all(-1)

    def takes_in(self, radii: Tensor) -> Tensor:
        """Whether each of these distances, as `radius` has them, is within the box."""
        return (radii <= self.alpha * self.k * (1 + ROUNDING)) | radii.isnan()

    def radii(
        self,
        model: nn.Module,
        rows: Sequence[Sequence[int]],
        site: MlpSite,
        *,
        positions: Positions = "last",
        bos: int | None = None,
        batch_size: int = 8,
    ) -> Tensor:
        """[vectors] how far away the keys of some rows are; with positions "last", in the rows' order."""
        parts: list[Tensor] = []
        order = values_of(
            model,
            rows,
            [site],
            "key",
            lambda _, values: parts.append(self.radius(values)),
            positions=positions,
            bos=bos,
            batch_size=batch_size,
            label="measuring keys",
        )
        values = torch.cat(parts).cpu()
        return values if positions == "all" else torch.empty_like(values).index_copy_(0, torch.tensor(order), values)

    def calibrated(self, forget: Tensor, retain: Tensor, most_false: float = MOST_FALSE) -> Self:
        """With the alpha that tells held-out forget queries from retain queries best, by their radii; see `best_alpha`."""
        alpha, true, false = best_alpha(forget / self.k, retain / self.k, most_false)
        return replace(self, alpha=alpha, true_rate=true, false_rate=false)

    def fingerprint(self) -> str:
        """Content hash."""
        return hash_json([hash_tensors(self._tensors()), self.noted()])

    def noted(self) -> dict[str, Any]:
        """All but the tensors, as plain values."""
        names = ("layer", "k", "alpha", "true_rate", "false_rate")
        return {name: getattr(self, name) for name in names}

    def save(self, folder: Path) -> None:
        """Writes the tensors."""
        save_file({name: values.contiguous() for name, values in self._tensors().items()}, str(folder / FILE))

    @classmethod
    def load(cls, folder: Path, noted: dict[str, Any], steers: bool) -> Self:
        """Of the tensors that `save` wrote and what `noted` gave.

        Raises:
            ModelError: a file that is damaged.
        """
        names = ("mean", "spread", "steer") if steers else ("mean", "spread")
        tensors, _ = read_tensors(folder / FILE, "box of keys", ModelError, dict.fromkeys(names, ("float32", 1)))
        if len({len(values) for values in tensors.values()}) != 1 or not (tensors["spread"] > 0).all():
            raise ModelError(f"{folder / FILE} is damaged: it bounds no box. Copy the folder whole.")
        return cls(**noted, **tensors)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"mean": self.mean, "spread": self.spread}
        return tensors if self.steer is None else tensors | {"steer": self.steer}


def best_alpha(forget: Tensor, retain: Tensor, most_false: float = MOST_FALSE) -> tuple[float, float, float]:
    """The alpha of the grid with the most forget queries inside, of those with at most a share of retain queries inside.

    Of several that are as good, those with the fewest retain queries, and of these the middle one.

    Args:
        forget, retain: radii of held-out queries, in units of k.

    Returns:
        alpha, and the shares of both inside.

    Raises:
        DataError: no alpha flags anything that is to be forgotten.
    """
    rates = []
    for alpha in ALPHAS:
        true, false = (
            float(((radii <= alpha * (1 + ROUNDING)) | ~radii.isfinite()).double().mean()) for radii in (forget, retain)
        )
        rates.append((true, false, alpha))
    allowed = [one for one in rates if one[1] <= most_false]
    best = max(((true, -false) for true, false, _ in allowed), default=(0.0, 0.0))
    if best[0] == 0:
        raise DataError(
            f"the box can't tell the skill: no factor flags a held-out forget query and at most a share of {most_false:g} of the "
            "retain queries. Give more forget rows, retain rows that differ more, or the factor by hand."
        )
    equal = [alpha for true, false, alpha in allowed if (true, -false) == best]
    return equal[(len(equal) - 1) // 2], best[0], -best[1]
