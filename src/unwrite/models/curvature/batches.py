"""Some rows of a batch, whatever it is made of: tensors, tuples, lists, mappings and dataclasses of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ...errors import DataError

__all__ = ["rows_of", "take"]


def rows_of(batch: Any) -> int | None:
    """How many rows a batch has: the leading dimension of all its tensors; None if they differ or there are none."""
    sizes = {len(tensor) for tensor in _leaves(batch) if tensor.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def take(batch: Any, rows: int, first: int, count: int) -> Any:
    """Rows `first` to `first + count` of a batch of `rows`, as a batch of the same kind.

    Raises:
        DataError: a tensor in it that has another leading dimension.
    """
    if isinstance(batch, Tensor):
        if batch.dim() and len(batch) != rows:
            raise DataError(
                f"single rows cannot be taken from this batch: one of its tensors is {list(batch.shape)}, and the loss "
                f"gave {rows} rows. Give batches whose tensors all have the row as first dimension."
            )
        return batch[first : first + count] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return type(batch)({key: take(value, rows, first, count) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple | list):
        if len(batch) == rows and not any(True for _ in _leaves(batch)):
            return batch[first : first + count]
        parts = [take(value, rows, first, count) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{name: take(getattr(batch, name), rows, first, count) for name in fields})
    return batch


def _leaves(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _leaves(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _leaves(getattr(batch, field.name))
