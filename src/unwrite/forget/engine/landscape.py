"""The forget loss of one optimiser step as a function of the weights: its slope and curvature, here and a little way off.

What smooths a loss asks for gradients at weights that are not the model's own. Each is summed over the accumulated batch and
over all processes, dropout draws the same numbers every time, and the weights come back to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...errors import MethodError, setting

__all__ = ["Descent", "Landscape", "Slope", "norm", "plus"]

_SMALL = 1e-12  # added to a norm that is divided by: at a gradient of zero nothing moves


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all of them as one vector, computed in float32 at least."""
    parts = [torch.linalg.vector_norm(one.float() if one.element_size() < 4 else one).double().cpu() for one in tensors]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def plus(first: Sequence[Tensor], factor: float, second: Sequence[Tensor]) -> list[Tensor]:
    """first + factor * second, tensor by tensor."""
    return [one.add(other, alpha=factor) for one, other in zip(first, second, strict=True)]


@dataclass(frozen=True)
class Slope:
    """The loss at some weights, and its gradient there.

    Args:
        value: the loss, summed over the step's batches and processes.
        gradient: a tensor a trained parameter, in its shape.
    """

    value: float
    gradient: list[Tensor]

    @property
    def norm(self) -> float:
        """The gradient's length."""
        return norm(self.gradient)

    def unit(self) -> list[Tensor]:
        """The gradient's direction, of length 1; zeros where the gradient is zero."""
        length = self.norm + _SMALL
        return [one / length for one in self.gradient]


@dataclass
class Landscape:
    """One step's forget loss around the weights as they are.

    Args:
        parameters: what is trained, each once.
        losses: compute the share of the loss of each accumulated batch, a scalar, at the weights as they are then.
        seed: numbers from which noise is drawn, other ones a step.
        total: sums a tensor over all processes.

    `value` is the loss of the first pass for a slope. `forwards` and `backwards` count passes over the step's rows, however these
    are cut; a backward through a backward counts as two.
    """

    parameters: Sequence[Tensor]
    losses: Sequence[Callable[[], Tensor]]
    seed: tuple[int, ...] = (0,)
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor
    value: float | None = None
    forwards: int = 0
    backwards: int = 0
    _draws: dict[str, Tensor] = field(default_factory=dict)

    def slope(self) -> Slope:
        """The loss and its gradient at the weights as they are."""
        self._repeat_draws()
        values, gradient = [], [torch.zeros_like(one) for one in self.parameters]
        for loss_of in self.losses:
            loss = loss_of()
            _add(gradient, torch.autograd.grad(loss, self.parameters, allow_unused=True))
            values.append(loss.detach())
        self.forwards += 1
        self.backwards += 1
        value = float(self.total(torch.stack(values).sum()))
        self.value = value if self.value is None else self.value
        return Slope(value, [self.total(one) for one in gradient])

    def curvature(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian times a direction, by a backward through the backward.

        Raises:
            MethodError: a part of the model has no second derivative.
        """
        self._repeat_draws()
        product = [torch.zeros_like(one) for one in self.parameters]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the others have no second derivative
            for loss_of in self.losses:
                first = torch.autograd.grad(loss_of(), self.parameters, create_graph=True, allow_unused=True)
                along = [(one * way).sum() for one, way in zip(first, direction, strict=True) if one is not None]
                slope = torch.stack(along).sum()
                if slope.requires_grad:  # a linear loss has none
                    _add(product, _second(slope, self.parameters))
        self.forwards += 1
        self.backwards += 3
        return [self.total(one) for one in product]

    def difference(self, direction: Sequence[Tensor], step: float, here: Slope) -> list[Tensor]:
        """The Hessian times a direction, from the slopes at two points `step` apart: one pass, and no second derivative.

        Args:
            direction: of length 1.
            here: the slope at the weights as they are.
        """
        with self.moved(direction, step):
            ahead = self.slope()
        return [(one - other) / step for one, other in zip(ahead.gradient, here.gradient, strict=True)]

    @contextmanager
    def moved(self, direction: Sequence[Tensor], factor: float) -> Iterator[float]:
        """Adds `factor * direction` to the weights inside, and puts the same bits back afterwards.

        Gives how far the weights really moved: in few digits a small step is rounded off.
        """
        before = [one.detach().clone() for one in self.parameters]
        try:
            with torch.no_grad():
                for parameter, way in zip(self.parameters, direction, strict=True):
                    parameter.add_(way, alpha=factor)
                distance = norm([one - old for one, old in zip(self.parameters, before, strict=True)])
            yield distance
        finally:
            with torch.no_grad():
                for parameter, old in zip(self.parameters, before, strict=True):
                    parameter.copy_(old)

    def noise(self, number: int) -> list[Tensor]:
        """Standard normal numbers in the parameters' shapes, a function of (seed, number, parameter) alone."""
        drawn = []
        for position, one in enumerate(self.parameters):
            seed = int(np.random.default_rng([*self.seed, 6, number, position]).integers(2**62))
            generator = torch.Generator(one.device).manual_seed(seed)
            drawn.append(torch.randn(one.shape, generator=generator, device=one.device, dtype=one.dtype))
        return drawn

    def _repeat_draws(self) -> None:
        """Sets the random state to what it was before the first pass, so that dropout is the same function each time."""
        devices = {str(one.device) for one in self.parameters if one.device.type == "cuda"}
        if not self._draws:
            self._draws = {"cpu": torch.get_rng_state()} | {name: torch.cuda.get_rng_state(name) for name in devices}
            return
        torch.set_rng_state(self._draws["cpu"])
        for name in devices:
            torch.cuda.set_rng_state(self._draws[name], name)


Descent = Callable[[Landscape], tuple[list[Tensor], Mapping[str, float]]]
"""What a step follows in place of the forget loss's gradient, and what is logged of it."""


def _add(sums: Sequence[Tensor], parts: Sequence[Tensor | None]) -> None:
    for one, part in zip(sums, parts, strict=True):
        if part is not None:
            one += part.detach()


def _second(slope: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradient of what is made of gradients.

    Raises:
        MethodError: a part has no second derivative. Where its author said so by `once_differentiable`, torch would leave it
            out without a word.
    """
    reason = "an autograd function that is differentiable once"
    try:
        if not _ends_early(slope):
            return torch.autograd.grad(slope, list(parameters), allow_unused=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        if "derivative" not in reason and "double backward" not in reason:
            raise
    raise MethodError(
        f"a part of this model has no second derivative ({reason}). Use {setting('derivative', 'differences')}, or load the "
        "model with eager attention."
    )


def _ends_early(value: Tensor) -> bool:
    """Whether the graph has a node that only raises an error, as `once_differentiable` leaves behind."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "Error":
            return True
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return False
