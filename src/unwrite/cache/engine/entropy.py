"""How many directions a head's states spread over: truncated matrix entropy, 0 to 1.

    A = sum of unit vectors of the states about their mean, as Z^T Z / trace;   H_k = - sum_{i <= k} s_i ln s_i / ln d

s are A's eigenvalues, largest first, d is the head's dimension. H_d is the entropy of all of them; with k below d the small ones are left
out, which all heads share and which are noise (arXiv 2410.03090).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import MethodError, setting

__all__ = ["check_truncation", "matrix_entropy"]

FLOOR = 1e-10  # added to the diagonal, so that the logarithm of a missing direction is finite


def check_truncation(k: int, dim: int) -> None:
    """Refuses what is no count of eigenvalues.

    Raises:
        MethodError: k outside 1 to dim, or a dimension of 1, whose entropy has no scale.
    """
    if dim < 2:
        raise MethodError(f"states have {dim} dimension, and an entropy needs at least 2. Use another model.")
    if not 1 <= k <= dim:
        raise MethodError(f"{setting('k')} is {k}; it must be 1 to {dim}, the dimension of a head.")


def matrix_entropy(states: Tensor, k: int | None = None) -> Tensor:
    """The truncated matrix entropy of sets of states: 0 where all lie on a line, near 1 where they point everywhere.

    Args:
        states: [..., tokens, dim]; a token at the mean has no direction and is left out.
        k: eigenvalues that are summed, the largest; all without, which is the ordinary matrix entropy.

    Returns:
        [...], float64.

    Raises:
        MethodError: see `check_truncation`.
    """
    dim = states.shape[-1]
    k = dim if k is None else k
    check_truncation(k, dim)
    centred = states.double() - states.double().mean(-2, keepdim=True)
    lengths = centred.norm(dim=-1, keepdim=True)
    smallest = 1e-12 * states.double().norm(dim=-1, keepdim=True)  # what rounding leaves of a token at the mean
    units = torch.where(lengths > smallest, centred / lengths.clamp(min=1e-300), 0.0)
    covariance = units.transpose(-1, -2) @ units  # [..., dim, dim]
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    eye = torch.eye(dim, dtype=torch.float64, device=states.device)
    values = torch.linalg.eigvalsh(covariance / trace.clamp(min=1e-300) + FLOOR * eye)
    largest = values.clamp(min=FLOOR).flip(-1)[..., :k]
    return -(largest * largest.log()).sum(-1) / math.log(dim)
