"""Influence of training rows through the last layer: the cheap attributor, which needs the target model alone.

One Newton step of the last linear layer to where its training without the forget rows would end; exact where the loss is squared and
nothing lies below the layer, a prediction otherwise. What the rows did to the layers below is not in it.
(Influence functions, arXiv 1703.04730; as an attributor in arXiv 2410.23232)

    W' - W = (sum_{i in D_r} d2 loss_i + ridge I)^-1 sum_{i in F} d loss_i,   change(x) = (W' - W) h(x)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....data.images.images import Images
from ....models.curvature import evaluating
from ....models.vision_layout import logits_of
from ..checks import require

if TYPE_CHECKING:
    from .work import ImageWork

__all__ = ["HeadInfluence", "newton_change"]


@dataclass(frozen=True, kw_only=True)
class HeadInfluence:
    """Predicts by the last layer alone, in float64: cross-entropy for labels, half the squared error for targets.

    Args:
        ridge: the penalty, ridge / 2 times the squared weights beside the sum of losses, > 0; of a layer that was trained without one,
            what makes the curvature invertible.
    """

    ridge: float = 1.0

    def __post_init__(self) -> None:
        require("ridge", self.ridge, above=0)

    def change(self, work: ImageWork, rows: Images) -> Tensor:
        """As `Attributor.change`: a forward of the forget, the retain and the asked rows."""
        linear = _last_linear(work)
        sets: Mapping[str, Images] = {"forget": work.forget, "retain": work.retained, "rows": rows}
        into, logits = {}, {}
        for name, one in sets.items():
            into[name], logits[name] = _into(work, linear, one, linear.bias is not None)
        moved = newton_change(
            into["forget"], _slope(logits["forget"], work.forget.target.to(work.device)),
            into["retain"], _curvature(logits["retain"], work.retained.labels is None),
            self.ridge,
        )  # fmt: skip
        return into["rows"] @ moved.T


def newton_change(forget: Tensor, slope: Tensor, retain: Tensor, curvature: Tensor, ridge: float) -> Tensor:
    """What one Newton step adds to the weights `[outputs, dim]` of a linear layer at its optimum once rows are left out.

    Args:
        forget, retain: what goes into the layer, `[rows, dim]`; a last column of ones where it has a bias.
        slope: d loss / d outputs of the forget rows, `[rows, outputs]`.
        curvature: d2 loss / d outputs2 of the retain rows, `[rows, outputs, outputs]`.
        ridge: > 0.
    """
    outputs, dim = slope.shape[1], forget.shape[1]
    hessian = forget.new_zeros(outputs, dim, outputs, dim)
    for one in range(outputs):
        for other in range(one, outputs):
            block = retain.T @ (curvature[:, one, other, None] * retain)
            hessian[one, :, other], hessian[other, :, one] = block, block.T
    whole = hessian.reshape(outputs * dim, outputs * dim)
    whole.diagonal().add_(ridge)
    gradient = (slope.T @ forget).reshape(-1)
    return torch.linalg.solve(whole, gradient).reshape(outputs, dim)


def _slope(logits: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return logits - target.to(logits.dtype)[:, None]
    return logits.softmax(1) - F.one_hot(target, logits.shape[1])


def _curvature(logits: Tensor, squared: bool) -> Tensor:
    if squared:
        return torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device).expand(len(logits), -1, -1)
    chances = logits.softmax(1)
    return torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]


def _last_linear(work: ImageWork) -> nn.Linear:
    linear = work.layout.model.get_submodule(work.layout.head_linears[-1])
    linear = getattr(linear, "base_layer", linear)
    assert isinstance(linear, nn.Linear)
    return linear


def _into(work: ImageWork, linear: nn.Linear, rows: Images, ones: bool) -> tuple[Tensor, Tensor]:
    """What goes into a layer, `[rows, dim]`, with a column of ones for its bias, and the logits; both float64."""
    inputs: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    try:
        with evaluating(work.model), torch.no_grad():
            logits = [logits_of(work.model, pixels) for pixels, _, _ in work.batches(rows, 256)]
    finally:
        hook.remove()
    work.cost.add(len(rows))
    into = torch.cat(inputs).double()
    return (F.pad(into, (0, 1), value=1.0) if ones else into), torch.cat(logits).double()
