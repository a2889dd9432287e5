"""Batches of rows of like length."""

from __future__ import annotations

from collections.abc import Sequence


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches, longest first, so that padding is small and memory peaks at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
