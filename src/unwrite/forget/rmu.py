"""RMU: steer what the model thinks on forget text to a fixed random direction, and hold the rest in place.

(The WMDP benchmark, arXiv 2403.03218.) The random vector has non-negative entries (uniform draw), and is the same
in every step. Only the MLP output weights of three layers are trained, and the forward pass ends at `layer`.

    c = steering * u / |u|,  u ~ U[0, 1)^d;   h = output of block `layer`
    L = mean_i mean_t mean_d (h_forget - c)^2  +  retain_weight * mean_i mean_t mean_d (h_retain - h_before)^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..data import Examples
from ..data.encoding import IGNORE
from ..errors import DataError, MethodError
from .base import Objective, require
from .batch import PairedBatch, Part
from .loss import Loss, PerRow, Term


@dataclass(frozen=True, kw_only=True)
class RMU(Objective):
    """Representation misdirection for unlearning.

    Args:
        layer: block whose output is steered, counted from 0; 7 for a 32-block model.
        steering: length of the control vector, > 0 (the paper tunes it per model: 6.5 for Zephyr-7B).
        hold_weight: factor of the retain representation term (1,200 for Zephyr-7B with steering 6.5); 0 needs no
            retain set.
        mask: which positions count: "labels" for questions and answers, "attention" for raw text.
        control_seed: seed of the control vector.
    """

    layer: int = 7
    steering: float = 2.0
    hold_weight: float = 1.0
    mask: Literal["labels", "attention"] = "labels"
    control_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("layer", self.layer, at_least=0)
        require("steering", self.steering, above=0)
        require("hold_weight", self.hold_weight, at_least=0)
        if self.mask not in ("labels", "attention"):
            raise MethodError(f"mask is {self.mask!r}; use 'labels' or 'attention'.")

    def needed(self) -> frozenset[str]:
        here = f"hidden:{self.layer}"
        return frozenset({here, f"reference {here}"} if self.hold_weight else {here})

    def check(self, forget: Examples, retain: Examples | None) -> None:
        super().check(forget, retain)
        if retain is None and self.hold_weight:
            raise DataError(
                f"RMU holds the retain rows' activations in place (hold_weight={self.hold_weight:g}) but there is no "
                "retain set. Give one, or use hold_weight=0."
            )

    def trainable(self, anatomy: Any) -> Sequence[Tensor]:
        """The MLP output weights of blocks layer - 2 to layer."""
        if self.layer >= len(anatomy.blocks):
            raise MethodError(
                f"layer is {self.layer} but the model has {len(anatomy.blocks)} blocks, 0 to {len(anatomy.blocks) - 1}."
            )
        first = max(0, self.layer - 2)
        return [anatomy.blocks[i].down.module.weight for i in range(first, self.layer + 1)]

    def control(self, size: int) -> Tensor:
        """The control vector, [size]; the same for the same seed."""
        u = torch.rand(size, generator=torch.Generator().manual_seed(self.control_seed))
        return self.steering * u / u.norm()

    def loss(self, batch: PairedBatch) -> Loss:
        """part.hidden[layer]: [rows, length, d]."""
        forget = batch["forget"]
        hidden = forget.hidden[self.layer]
        control = self.control(hidden.shape[-1]).to(hidden)
        terms: dict[str, Term] = {"forget": PerRow(self._distance(forget, control), "forget")}
        if batch.retain is not None and self.layer in batch.retain.reference_hidden:
            held = self._distance(batch.retain, batch.retain.reference_hidden[self.layer])
            terms["hold"] = PerRow(self.hold_weight * held, "retain")
        return Loss({"activation": hidden.detach().norm(dim=-1).mean()}, **terms)

    def _distance(self, part: Part, target: Tensor) -> Tensor:
        """Mean squared distance of each row over its masked positions, [rows]."""
        mask = part.attention_mask.bool() if self.mask == "attention" else part.labels != IGNORE
        squared = (part.hidden[self.layer].float() - target.float()).square().mean(-1)  # [rows, length]
        return (squared * mask).sum(1) / mask.sum(1).clamp(min=1)
