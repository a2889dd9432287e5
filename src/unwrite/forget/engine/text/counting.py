"""What a computation on a language model costs, read off its blocks: a forward or backward of one block is its share of a whole one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ....models import anatomy
from ..cost import Cost

__all__ = ["counting"]


@contextmanager
def counting(model: nn.Module, cost: Cost) -> Iterator[None]:
    """Adds to `cost` what is computed with the model's blocks inside, those of copies and of shortened models too.

    A row's forward through one block of L counts 1 / L, with a backward, where gradients are recorded, 3 / L. The vocabulary
    head isn't counted, and a second derivative is counted as a first one.
    """
    blocks = [block.module for block in anatomy(model).blocks]
    share, counts = 1 / len(blocks), [True]

    def add(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # [rows, positions, width]
        after: Tensor = output if isinstance(output, Tensor) else output[0]
        if counts:
            cost.add(len(hidden), share, share if torch.is_grad_enabled() and after.requires_grad else 0)

    handles = [block.register_forward_hook(add, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        counts.clear()  # copies made inside keep their hooks, which count no more
        for handle in handles:
            handle.remove()
