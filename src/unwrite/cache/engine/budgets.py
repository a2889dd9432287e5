"""How many tokens a head of each group keeps, and from which layer on a prompt is read with fewer.

high = 3/2 of the capacity, low = half of high, groups between them in equal steps; a shorter text in the same proportion
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["capacities", "sizes_of"]


def capacities(capacity: int, labels: Sequence[int], groups: int, normalise: bool) -> tuple[int, ...]:
    """[groups] tokens a head of each group keeps, lowest entropy first.

    Args:
        capacity: what one group alone keeps.
        labels: [heads] the group of each head, for the mean.
        normalise: shares are scaled so that the heads keep `capacity` in the mean, rounded down.
    """
    if groups == 1:
        return (capacity,)
    if not normalise:  # the published rounding: 3/2 and then its half
        high = capacity * 3 // 2
        return tuple(high * (groups - 1 + group) // (2 * (groups - 1)) for group in range(groups))
    weights = [groups - 1 + group for group in range(groups)]  # from 1 to 2, times groups - 1
    total = sum(weights[label] for label in labels)
    return tuple(capacity * len(labels) * weight // total for weight in weights)


def sizes_of(size: int, top: int, text: Tensor) -> Tensor:
    """[rows] tokens of texts of so many that a head keeps; of one within the largest group's size, the same share of it.

    Args:
        size, top: of this group, and of the largest.
        text: [rows] tokens.
    """
    return (text * size // top).clamp(max=size)
