"""What the ratio of two importances selects, I_f / I_D of every weight, and how far dampening shrinks what is selected.

beta_i = min(lambda I_D,i / I_f,i, 1)  where  I_f,i > alpha I_D,i,  else 1       (SSD, arXiv 2308.07707)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import MethodError, ModelError
from ...models.curvature import Importances, trainable

__all__ = [
    "LayerSelection",
    "WeightSelection",
    "dampen",
    "factors",
    "percentile_of_share",
    "ratios",
    "selection",
    "tensors_of",
    "times",
]


def dampen(theta: Tensor, all_data: Tensor, forget: Tensor, alpha: float, lam: float) -> Tensor:
    """The weights after dampening, in their own dtype; those not selected bit-identical.

    Args:
        theta: weights, any shape.
        all_data, forget: I_D and I_f in the same shape, >= 0.
        alpha: how many times I_D a selected weight's I_f exceeds, >= 0; `inf` selects none.
        lam: lambda, >= 0; 0 sets the selected weights to 0.
    """
    return times(theta, factors(all_data, forget, alpha, lam)[0])


def percentile_of_share(share: float) -> float:
    """ASSD's p = 100 - ln(1 + 100 share), the percentile of I_f / I_D that becomes alpha; share in 0..1."""
    return max(0.0, 100 - math.log1p(100 * share))


@dataclass(frozen=True)
class LayerSelection:
    """What was selected of one parameter.

    Args:
        name: of the parameter.
        weights: how many it has.
        selected: how many of them are.
        least, mean: of the selected weights' beta, in 0..1; 1 where none is selected.
    """

    name: str
    weights: int
    selected: int
    least: float
    mean: float


@dataclass(frozen=True)
class WeightSelection:
    """What dampening selects.

    Args:
        alpha: the bar on I_f / I_D.
        layers: every parameter that could be dampened, in the model's order.
    """

    alpha: float
    layers: tuple[LayerSelection, ...]

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return sum(layer.weights for layer in self.layers)

    @property
    def selected(self) -> int:
        """How many of them are selected."""
        return sum(layer.selected for layer in self.layers)

    @property
    def share(self) -> float:
        """`selected / weights`, 0 to 1."""
        return self.selected / self.weights

    @property
    def shares(self) -> dict[str, float]:
        """The share selected of each parameter, 0 to 1, by its name; the audit's `Selection` draws it."""
        return {layer.name: layer.selected / layer.weights for layer in self.layers}


def selection(
    model: nn.Module, all_data: Importances, forget: Importances, alpha: float, lam: float = 1.0
) -> WeightSelection:
    """What dampening with these importances selects; the model stays as it is.

    Raises:
        ModelError: importances of another model's parameters.
    """
    layers = []
    for name, theta in trainable(model).items():
        beta, chosen = factors(*tensors_of(name, theta, all_data, forget), alpha, lam)
        own = beta[chosen]
        least, mean = (float(own.min()), float(own.mean())) if len(own) else (1.0, 1.0)
        layers.append(LayerSelection(name, theta.numel(), len(own), least, mean))
    return WeightSelection(alpha, tuple(layers))


def factors(all_data: Tensor, forget: Tensor, alpha: float, lam: float) -> tuple[Tensor, Tensor]:
    """(beta in float64, 1 where not selected; selected). 0 / 0 is never selected, and no ratio of it is taken."""
    of_data, of_forget = all_data.double(), forget.double()
    chosen = of_forget > alpha * of_data  # inf * 0 is NaN, which nothing exceeds
    beta = torch.ones_like(of_data)
    beta[chosen] = (lam * of_data[chosen] / of_forget[chosen]).clamp(max=1)
    return beta, chosen


def times(theta: Tensor, beta: Tensor) -> Tensor:
    """`beta * theta`, rounded once to the weights' own dtype, so that no weight grows."""
    return (theta.detach().double() * beta).to(theta.dtype)


def ratios(all_data: Importances, forget: Importances) -> np.ndarray:
    """I_f / I_D of all weights where it is finite, `[weights]`.

    Raises:
        MethodError: it is nowhere.
    """
    parts = [(forget.tensors[name].double() / tensor.double()).flatten() for name, tensor in all_data.tensors.items()]
    finite = torch.cat([part[part.isfinite()].cpu() for part in parts]).numpy()
    if not len(finite):
        raise MethodError("no weight has an importance on all data, so there is no percentile. Use SSD with an alpha.")
    return finite


def tensors_of(name: str, theta: Tensor, all_data: Importances, forget: Importances) -> tuple[Tensor, Tensor]:
    """A parameter's importances, on its device."""
    tensors = []
    for one in (all_data, forget):
        tensor = one.tensors.get(name)
        if tensor is None or tensor.shape != theta.shape:
            have = "missing" if tensor is None else list(tensor.shape)
            raise ModelError(
                f"these importances are of another model: {name} is {have}, not {list(theta.shape)}. "
                "Take them of this one."
            )
        tensors.append(tensor.to(theta.device))
    return tensors[0], tensors[1]
