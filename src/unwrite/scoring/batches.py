"""Batches of rows of like length, and a progress bar that appears only when it is worth it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches, longest first, so that padding is small and memory peaks at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def progress(items: Sequence[T] | Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields the items; on a terminal a bar with rate and time left shows after two seconds."""
    if not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=label, total=total, delay=2, leave=False, file=sys.stderr)
