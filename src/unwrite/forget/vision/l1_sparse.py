"""l1-sparse unlearning: fine-tune on the retain set while an l1 penalty, large at first, pulls every weight towards 0.

What the retain set doesn't hold in place goes. The penalty fades to nothing, so that the last epochs can repair.
(Sparse MU, arXiv 2304.04934, eq. 3 and the linearly decreasing schedule of section 4)

    L_t = mean_{D_r} CE + gamma_t * ||theta||_1,   gamma_t = gamma * (1 - t / (E - E_0)) for epoch t < E - E_0, then 0
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages, add_losses
from ..engine.images.whole_step import WholeStep
from ..engine.images.work import ImageWork
from ..engine.loss import Loss, Term
from ..engine.phase import Phase

__all__ = ["L1Sparse", "l1_norm", "penalty_weight", "small_share"]


def penalty_weight(gamma: float, epoch: int, epochs: float, no_l1_epochs: float = 0) -> float:
    """gamma_t of epoch t, counted from 0. Of the last `no_l1_epochs` of `epochs` it is 0.

    >>> [penalty_weight(1.0, epoch, 4, 1) for epoch in range(4)]  # doctest: +ELLIPSIS
    [1.0, 0.666..., 0.333..., 0.0]
    """
    reach = epochs - no_l1_epochs
    return gamma * (1 - epoch / reach) if epoch < reach else 0.0


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of absolute values over all parameters, a scalar in float32 whatever they are stored in."""
    return torch.stack([parameter.float().abs().sum() for parameter in parameters]).sum()


@torch.no_grad()
def small_share(model: nn.Module, below: float = 1e-3) -> float:
    """Share of the parameters smaller than `below` in magnitude, 0 to 1: how sparse the penalty made the model.

    A subgradient step makes weights small, hardly ever exactly 0.
    """
    require("below", below, above=0)
    sizes = [(int((one.abs() < below).sum()), one.numel()) for one in model.parameters()]
    return sum(small for small, _ in sizes) / sum(count for _, count in sizes)


@dataclass(frozen=True, kw_only=True)
class L1Sparse(Objective[ImageWork]):
    """Fine-tuning on the retain set under a fading l1 penalty.

    Args:
        gamma: weight of the penalty in the first epoch, per parameter (the norm is a sum), >= 0; at 0 it is plain
            fine-tuning.
        no_l1_epochs: last epochs without a penalty, E_0 >= 0.
        cut: weights smaller than this are set to 0 after the training; 0 for none.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {"num_train_epochs": 10, "per_device_train_batch_size": 256}
    gamma: float = 5e-4
    no_l1_epochs: int = 0
    cut: float = 0.0

    def __post_init__(self) -> None:
        for name in ("gamma", "no_l1_epochs", "cut"):
            require(name, getattr(self, name), at_least=0)

    def loss(self, batch: PairedImages) -> Loss:
        """The ordinary loss. batch.retain: what the ordinary training minimises; the penalty is added in `phases`, which knows the weights."""
        return add_losses(batch)

    def penalised(self, parameters: list[Tensor], epochs: float, batch: PairedImages) -> Loss:
        """`loss` with the penalty of the batch's epoch on these parameters, of a training of so many epochs."""
        loss = self.loss(batch)
        weight = penalty_weight(self.gamma, batch["retain"].epoch, epochs, self.no_l1_epochs)
        terms: dict[str, Term] = dict(loss.terms)
        if weight > 0:
            terms["penalty"] = WholeStep(weight * l1_norm(parameters))
        return Loss({**loss.logs, "gamma": torch.tensor(weight)}, **terms)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on retain rows, with every trainable parameter in the norm: biases and norms too."""
        parameters: list[Tensor] = [one for one in work.model.parameters() if one.requires_grad]
        epochs = work.args.num_train_epochs
        return [Phase("retain", partial(self.penalised, parameters, epochs))]

    def _apply(self, work: ImageWork) -> nn.Module:
        model = super()._apply(work)
        with torch.no_grad():
            for one in model.parameters():
                if self.cut > 0 and one.requires_grad:
                    one.masked_fill_(one.abs() < self.cut, 0)
        return model
