"""RMU: steer what the model thinks on forget text to a fixed random direction, and hold the rest in place.

(The WMDP benchmark, arXiv 2403.03218.) The random vector has non-negative entries (uniform draw), and is the same
in every step. Only the MLP output weights of three layers are trained, and the forward pass ends at `layer`.

    c = steering * u / |u|,  u ~ U[0, 1)^d;   h = output of block `layer`
    L = mean_i mean_t mean_d (h_forget - c)^2  +  retain_weight * mean_i mean_t mean_d (h_retain - h_before)^2
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ..data import Examples
from ..data.text.encoding import IGNORE
from ..errors import DataError, MethodError, setting
from ..models import Anatomy, anatomy
from .base import Paired
from .engine.batch import BatchPart, PairedBatch
from .engine.checks import require
from .engine.loss import Loss, PerRow, Term

if TYPE_CHECKING:
    from .engine.text.work import TextWork


@dataclass(frozen=True, kw_only=True)
class RMU(Paired["TextWork"]):
    """Representation misdirection for unlearning.

    Args:
        layer: block whose output is steered, counted from 0; it and the two before it are trained. None takes the block
            that ends the first quarter of the model, and at least the third: 7 of 32 blocks, as the paper does.
        steering: length of the control vector, > 0 (the paper tunes it per model: 6.5 for Zephyr-7B).
        hold_weight: factor of the retain representation term (1,200 for Zephyr-7B with steering 6.5); 0 needs no
            retain set.
        mask: which positions count: "labels" for questions and answers, "attention" for raw text.
        control_seed: seed of the control vector.
    """

    layer: int | None = None
    steering: float = 2.0
    hold_weight: float = 1.0
    mask: Literal["labels", "attention"] = "labels"
    control_seed: int = 0
    reads: ClassVar[frozenset[str]] = frozenset()  # what its layer gives, see `needed`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            require("layer", self.layer, at_least=0)
        require("steering", self.steering, above=0)
        require("hold_weight", self.hold_weight, at_least=0)
        if self.mask not in ("labels", "attention"):
            raise MethodError(f"{setting('mask')} is {self.mask!r}; use 'labels' or 'attention'.")

    def fitted(self, model: nn.Module) -> Self:
        """With the layer chosen by the model's depth."""
        depth = len(anatomy(model).blocks)
        if self.layer is not None and self.layer >= depth:
            raise MethodError(
                f"{setting('layer')} is {self.layer} but the model has {depth} blocks, 0 to {depth - 1}. Leave it out for "
                f"{default_layer(depth)}."
            )
        return self if self.layer is not None else replace(self, layer=default_layer(depth))

    @property
    def block(self) -> int:
        """The layer, once it is chosen.

        Raises:
            MethodError: it is left to the model, which is not known here.
        """
        if self.layer is None:
            raise MethodError(
                f"{setting('layer')} depends on the model's depth. Give it, or ask the method that `fitted(model)` returns."
            )
        return self.layer

    def needed(self) -> frozenset[str]:
        here = f"hidden:{self.block}"
        return super().needed() | ({here, f"reference {here}"} if self.hold_weight else {here})

    @property
    def needs_retain(self) -> bool:
        return self.retain_loss != "none" or self.hold_weight > 0

    def check(self, forget: Examples, retain: Examples | None) -> None:
        if retain is None and self.retain_loss == "none" and self.hold_weight:
            raise DataError(
                f"RMU holds the retain rows' activations in place ({setting('hold_weight', self.hold_weight)}) but there is no "
                f"retain set. Give {setting('retain')}, or {setting('hold_weight', 0)}."
            )
        super().check(forget, retain)

    def check_model(self, model: nn.Module, *, adapters: bool = False) -> None:
        super().check_model(model, adapters=adapters)
        self.fitted(model).steered(anatomy(model))

    def trainable(self, work: TextWork) -> Sequence[Tensor]:
        """The MLP output weights of blocks layer - 2 to layer."""
        return self.steered(work.anatomy)

    def steered(self, parts: Anatomy) -> list[Tensor]:
        """Those weights, of the model with these parts.

        Raises:
            ModelError: a block without one MLP output.
        """
        return [parts.blocks[i].down.module.weight for i in range(max(0, self.block - 2), self.block + 1)]

    def control(self, size: int) -> Tensor:
        """The control vector, [size]; the same for the same seed."""
        u = torch.rand(size, generator=torch.Generator().manual_seed(self.control_seed))
        return self.steering * u / u.norm()

    def loss(self, batch: PairedBatch[BatchPart]) -> Loss:
        """Distances between hidden states, of the rows there are. part.hidden[layer]: [rows, length, d]."""
        terms: dict[str, Term] = {}
        logs: dict[str, Tensor] = {}
        if batch.forget is not None:
            hidden = batch.forget.hidden[self.block]
            control = self.control(hidden.shape[-1]).to(hidden)
            terms["forget"] = PerRow(self._distance(batch.forget, control), "forget")
            logs["activation"] = hidden.detach().norm(dim=-1).mean()
        if batch.retain is not None and self.block in batch.retain.reference_hidden:
            distance = self._distance(batch.retain, batch.retain.reference_hidden[self.block])
            terms["hold"] = PerRow(self.hold_weight * distance, "retain")
        return Loss(logs, **terms)

    def _loss_of_present(self, batch: PairedBatch[BatchPart]) -> Loss:
        return self.loss(batch)

    def _distance(self, part: BatchPart, target: Tensor) -> Tensor:
        """Mean squared distance of each row over its masked positions, [rows]."""
        mask = part.attention_mask.bool() if self.mask == "attention" else part.labels != IGNORE
        squared = (part.hidden[self.block].float() - target.float()).square().mean(-1)  # [rows, length]
        return (squared * mask).sum(1) / mask.sum(1).clamp(min=1)


def default_layer(depth: int) -> int:
    """The block RMU steers by default in a model of so many.

    The end of the first quarter, as in the paper (7 of 32). A shallow model takes the third block, so that three are
    trained as there, but never the last.

    >>> [default_layer(depth) for depth in (32, 30, 12, 4, 2, 1)]
    [7, 7, 2, 2, 0, 0]
    """
    return max(math.ceil(depth / 4) - 1, min(2, depth - 2), 0)
