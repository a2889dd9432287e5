"""A lost channel as a combination of the channels that stay: the error that is made, and what makes it least.

A channel before its activation is y = a * x + b, with batch normalisation folded into a and b. Of the kept channels, as they are after
quantisation, A holds the filters (a column each) and b the biases. For what is missing of channel j, a filter r_j and a bias d_j,

    l_j(s) = |r_j - A s|^2 + alpha1 (d_j - b . s)^2 + alpha2 |s|^2

is least where (A'A + alpha1 b b' + alpha2 I) s = A' r_j + alpha1 b d_j.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import MethodError, setting

if TYPE_CHECKING:
    from .graph import NetLayer

__all__ = ["Combiner", "Damage", "LayerSite", "RidgeCombination"]


@dataclass(frozen=True)
class LayerSite:
    """Where a layer stands that is about to be compressed.

    Args:
        model: with the layers before this one compressed, and this one and all after it whole.
        layer: the layer.
        weight: its weights after quantisation, of all channels, in the shape they have now.
    """

    model: nn.Module
    layer: NetLayer
    weight: Tensor


@dataclass(frozen=True)
class Damage:
    """What pruning and quantisation do to the channels of one layer, in float64.

    Args:
        filters: `[channels, inputs]`, batch normalisation folded in, before.
        biases: `[channels]`, likewise.
        kept: `[kept]`, the channels that stay, in order.
        survivors: `[kept, inputs]`, their filters after quantisation.
        site: where this is, for a combination that looks at more than weights.
    """

    filters: Tensor
    biases: Tensor
    kept: Tensor
    survivors: Tensor
    site: LayerSite | None = None

    @property
    def selection(self) -> Tensor:
        """`[channels, kept]`, a 1 where a kept channel is itself."""
        ones = torch.zeros(len(self.filters), len(self.kept), dtype=torch.float64, device=self.filters.device)
        ones[self.kept, torch.arange(len(self.kept), device=ones.device)] = 1
        return ones

    @property
    def missing(self) -> tuple[Tensor, Tensor]:
        """What is to be made up for: filters r `[channels, inputs]` and biases d `[channels]`.

        Of a pruned channel that is all of it, of a quantised one the rounding error of its filter.
        """
        filters, biases = self.filters.clone(), self.biases.clone()
        filters[self.kept] -= self.survivors
        biases[self.kept] = 0
        return filters, biases


Combiner = Callable[[Damage], Tensor]  # to s, `[channels, kept]`: 0 where a kept channel meets itself


@dataclass(frozen=True)
class RidgeCombination:
    """The combination of least error, in closed form.

    Args:
        alpha1: weight of the bias's error, >= 0.
        alpha2: of the ridge, >= 0.
        max_terms: kept channels that may stand for one; None for all. Found one by one, each the one that lowers the error most, and all
            solved for anew.
        normalise: measure the ridge by the mean squared length of the kept filters, so that s doesn't change with their scale.
    """

    alpha1: float = 0.01
    alpha2: float = 0.008
    max_terms: int | None = None
    normalise: bool = False

    def __call__(self, damage: Damage) -> Tensor:
        """s, `[channels, kept]`, of every channel.

        Raises:
            MethodError: no ridge, and more kept channels than their filters can tell apart.
        """
        gram, right = self._gram(damage), self._right(damage)
        if self.max_terms is not None and self.max_terms < len(damage.kept):
            return self._sparse(gram, right, damage, self.max_terms)
        factor, info = torch.linalg.cholesky_ex(gram)
        if int(info):
            raise self._dependent(damage)
        solved = torch.cholesky_solve(right.T, factor).T  # [channels, kept]
        # A kept channel must not stand for itself: the least error with that one weight at 0, by the inverse's column.
        inverse = torch.cholesky_inverse(factor)
        own = torch.arange(len(damage.kept), device=gram.device)
        off = solved[damage.kept, own] / inverse.diagonal()
        solved[damage.kept] -= off[:, None] * inverse
        solved[damage.kept, own] = 0
        return solved

    def energy(self, damage: Damage, s: Tensor) -> Tensor:
        """l, `[channels]`, of every channel at these combinations."""
        weight, bias = self.errors(damage, s)
        return weight + self.alpha1 * bias + self._ridge(damage) * s.square().sum(1)

    def errors(self, damage: Damage, s: Tensor) -> tuple[Tensor, Tensor]:
        """The squared errors of filters and of biases, each `[channels]`."""
        filters, biases = damage.missing
        return (filters - s @ damage.survivors).square().sum(1), (biases - s @ damage.biases[damage.kept]).square()

    def _ridge(self, damage: Damage) -> float:
        """alpha2, times the mean squared length of the filters where lengths are to be taken out."""
        length = damage.survivors.norm(dim=1).mean().item() if self.normalise else 1.0
        return self.alpha2 * length**2

    def _gram(self, damage: Damage) -> Tensor:
        """A'A + alpha1 b b' + alpha2 I, `[kept, kept]`."""
        biases = damage.biases[damage.kept]
        gram = damage.survivors @ damage.survivors.T + self.alpha1 * torch.outer(biases, biases)
        gram.diagonal().add_(self._ridge(damage))
        return gram

    def _right(self, damage: Damage) -> Tensor:
        """A' r + alpha1 b d, `[channels, kept]`."""
        filters, biases = damage.missing
        return filters @ damage.survivors.T + self.alpha1 * torch.outer(biases, damage.biases[damage.kept])

    def _dependent(self, damage: Damage) -> MethodError:
        where = f" of {damage.site.layer.name}" if damage.site else ""
        return MethodError(
            f"the {len(damage.kept)} kept channels{where} are not independent, so no one combination is the best. Give "
            f"{setting('alpha2')} above {self.alpha2:g}."
        )

    def _sparse(self, gram: Tensor, right: Tensor, damage: Damage, terms: int) -> Tensor:
        """So many weights a channel at most, by greedy choice; fewer than there are kept channels."""
        s = torch.zeros_like(right)
        barred = damage.selection.bool()
        lengths = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny)
        chosen = torch.zeros(len(right), 0, dtype=torch.int64, device=right.device)
        for _ in range(terms):
            gains = (right - s @ gram).square() / lengths
            best = gains.masked_fill(barred, -1).argmax(1, keepdim=True)
            chosen, barred = torch.cat([chosen, best], 1), barred.scatter(1, best, True)
            squares = gram[chosen[:, :, None], chosen[:, None, :]]  # [channels, terms, terms]
            weights, info = torch.linalg.solve_ex(squares, right.gather(1, chosen)[..., None])
            if bool(info.any()):
                raise self._dependent(damage)
            s = torch.zeros_like(right).scatter(1, chosen, weights[..., 0])
        return s
