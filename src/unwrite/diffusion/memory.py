"""What the loop keeps for the parts of one call, by row of the batch: their memories, the random generators, the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import Part, Step

__all__ = ["Desk", "Memory", "PartMemory"]


class Memory:
    """What one part remembers of the rows of one call, kept by the loop."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.tensors: dict[str, Tensor] = {}

    def get(self, name: str, rows: Tensor, shape: tuple[int, ...], fill: float, dtype: torch.dtype) -> Tensor:
        """[rows, *shape], filled where nothing was kept yet; a longer shape than before grows it."""
        tensor = self.tensors.get(name)
        if tensor is None:
            tensor = torch.full((self.batch, *shape), fill, dtype=dtype, device=rows.device)
        elif any(new > old for new, old in zip(shape, tensor.shape[1:], strict=True)):
            grown = [max(new, old) for new, old in zip(shape, tensor.shape[1:], strict=True)]
            larger = torch.full((self.batch, *grown), fill, dtype=dtype, device=rows.device)
            larger[tuple(slice(size) for size in tensor.shape)] = tensor
            tensor = larger
        self.tensors[name] = tensor
        return tensor[rows][(slice(None), *(slice(size) for size in shape))]

    def put(self, name: str, rows: Tensor, value: Tensor) -> None:
        """Keeps [rows, *shape] for the next step."""
        tensor = self.tensors[name]
        if len(rows) == self.batch and value.shape == tensor.shape:
            self.tensors[name] = value.clone()  # a later put of some rows writes into it
        else:
            tensor[(rows, *(slice(size) for size in value.shape[1:]))] = value


class PartMemory:
    """`Memory` as one step sees it."""

    def __init__(self, step: Step, memory: Memory) -> None:
        self.step, self.inner = step, memory

    def get(
        self, name: str, *shape: int, fill: float = 0.0, dtype: torch.dtype = torch.float32, per_block: bool = False
    ) -> Tensor:
        """[rows, *shape]. per_block: begins again from `fill` when a block is opened."""
        value = self.inner.get(name, self.step.rows, shape, fill, dtype)
        if per_block:
            opening = self.step.opening.view(-1, *[1] * len(shape))
            value = torch.where(opening, torch.full((), fill, dtype=dtype, device=value.device), value)
        return value

    def put(self, name: str, value: Tensor) -> None:
        """Keeps [rows, *shape]; `get` it first."""
        self.inner.put(name, self.step.rows, value)


class Desk:
    """What the loop holds for the parts of one call: their memories, the random generators, the counts."""

    def __init__(self, batch: int, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.batch, self.device = batch, device
        self._memories: dict[int, Memory] = {}
        self._generators = [torch.Generator(device=device).manual_seed(seed * 1_000_003 + row) for row in range(batch)]
        self.counts: dict[str, Tensor] = {}

    def memory(self, part: Part) -> Memory:
        return self._memories.setdefault(id(part), Memory(self.batch))

    def random(self, rows: Tensor, shape: tuple[int, ...], own: Tensor | None = None) -> Tensor:
        """[rows, *shape]. own: [rows] how many of the first dimension each row draws, the rest is .5; None for all."""
        drawn = torch.full((len(rows), *shape), 0.5, dtype=torch.float64, device=self.device)
        counts = [None] * len(rows) if own is None else own.tolist()
        for at, (row, count) in enumerate(zip(rows.tolist(), counts, strict=True)):
            mine = drawn[at] if count is None else drawn[at, :count]
            mine.uniform_(generator=self._generators[row])
        return drawn

    def add(self, name: str, rows: Tensor, value: Tensor) -> None:
        total = self.counts.setdefault(name, torch.zeros(self.batch, dtype=torch.long, device=rows.device))
        total[rows] += value.to(total.dtype)
