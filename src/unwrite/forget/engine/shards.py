"""Weights of which every process holds a share, as fully sharded data parallelism (FSDP) has them: a share, and the whole.

Tensors that are not sharded come through as they are, so callers need not know which they have.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["share", "share_of", "whole"]


def whole(tensor: Any) -> Tensor:
    """All of a tensor, gathered from all processes; each of them has to call this."""
    gathered: Tensor = tensor
    if hasattr(tensor, "full_tensor"):
        # A share that rests in main memory goes to where the processes exchange tensors.
        gathered = tensor.to(tensor.device_mesh.device_type).full_tensor()
    return gathered


def share(tensor: Any) -> Tensor:
    """What this process holds of a tensor; changes to it are changes to the tensor."""
    held: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held


def share_of(tensor: Tensor, like: Any) -> Tensor:
    """The piece of a whole tensor that belongs to this process's share of another, of the same shape."""
    if not hasattr(like, "to_local"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Without a source every process cuts its piece from its own whole tensor.
    return share(distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None))
