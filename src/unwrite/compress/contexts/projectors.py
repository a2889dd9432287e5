"""What carries an encoder's vectors into the space of a decoder's token embeddings; one a decoder.

    f(v) = W2 W1 v,   W1 [inner, in], W2 [out, inner]       (ARC-Encoder, arXiv 2510.20535)

There is no bias and nothing between the two matrices: the map is linear, of rank `inner` at most.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import MethodError, unknown

__all__ = ["ContextProjector", "ProjectorKind"]

ProjectorKind = Literal["mlp", "rms", "linear"]


class ContextProjector(nn.Module):
    """A linear map of vectors, from an encoder's width to a decoder's.

    Args:
        in_dim, out_dim: widths of the encoder and of the decoder.
        inner: width between the two matrices; None for the decoder's, as in the published code. Without meaning for "linear".
        kind: "mlp" for two matrices, "rms" for a root-mean-square norm before them, "linear" for one matrix.
    """

    def __init__(self, in_dim: int, out_dim: int, inner: int | None = None, kind: ProjectorKind = "mlp") -> None:
        super().__init__()
        if kind not in get_args(ProjectorKind):
            raise MethodError(unknown("kind of projector", kind, get_args(ProjectorKind)))
        inner = out_dim if inner is None else inner
        self.scale = nn.Parameter(torch.ones(in_dim)) if kind == "rms" else None
        self.first = nn.Linear(in_dim, out_dim if kind == "linear" else inner, bias=False)
        self.second = None if kind == "linear" else nn.Linear(inner, out_dim, bias=False)

    @property
    def out_dim(self) -> int:
        """The decoder's width."""
        return (self.first if self.second is None else self.second).out_features

    def forward(self, vectors: Tensor) -> Tensor:
        """The vectors [..., in_dim] in the decoder's width, [..., out_dim]."""
        if self.scale is not None:
            exact = F.rms_norm(
                vectors.to(torch.promote_types(vectors.dtype, torch.float32)), self.scale.shape, eps=1e-5
            )
            vectors = exact.to(vectors.dtype) * self.scale
        vectors = self.first(vectors)
        return vectors if self.second is None else self.second(vectors)
