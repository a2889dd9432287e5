"""What an ARC encoder is, beside its weights and the model it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import MethodError, setting, unknown
from .pooling import check_factor
from .projectors import ProjectorKind

__all__ = ["ArcSettings", "Pooled", "Purpose"]

Pooled = Literal["queries", "all"]
Purpose = Literal["continuation", "reconstruction"]


@dataclass(frozen=True)
class ArcSettings:
    """The shape of an ARC encoder, with the paper's defaults.

    Args:
        out_dims: the width of each decoder's token embeddings, in order; there is one projector for each.
        decoders: a name of each decoder, for messages and for who loads the encoder later; empty for none.
        pooling_factor: the most tokens that one vector stands for, >= 1; 8 or 4 in the paper.
        slots: exactly so many vectors a text, whatever its length; None for `pooling_factor`.
        projector: kind of projector, see `ContextProjector`.
        projector_dim: width inside the projectors, 2048 in the paper; None for that of each decoder.
        causal: tokens attend to those before them only, and a vector to tokens up to its group's last (ours; the published
            mask lets vector j see the first j + 1 tokens alone). An ablation; the paper's encoder looks both ways.
        pooled: "queries": the last layer's vectors attend to all tokens; "all": to each other only, an ablation.
    """

    out_dims: tuple[int, ...]
    decoders: tuple[str, ...] = ()
    pooling_factor: int = 8
    slots: int | None = None
    projector: ProjectorKind = "mlp"
    projector_dim: int | None = None
    causal: bool = False
    pooled: Pooled = "queries"

    def __post_init__(self) -> None:
        check_factor(self.pooling_factor, self.slots)
        if not self.out_dims or min(self.out_dims) < 1:
            raise MethodError(
                f"{setting('out_dims', list(self.out_dims))} names no decoder. Give the width of each decoder's embeddings."
            )
        if self.decoders and len(self.decoders) != len(self.out_dims):
            raise MethodError(
                f"{len(self.decoders)} names and {len(self.out_dims)} widths of decoders. Give each decoder one of either."
            )
        if self.projector_dim is not None and self.projector_dim < 1:
            raise MethodError(
                f"{setting('projector_dim', self.projector_dim)} has no meaning. Take 1 or more, or None."
            )
        for name, value, known in (
            ("kind of projector", self.projector, get_args(ProjectorKind)),
            ("way to pool", self.pooled, get_args(Pooled)),
        ):
            if value not in known:
                raise MethodError(unknown(name, value, known))
