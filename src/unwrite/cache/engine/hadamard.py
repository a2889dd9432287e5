"""The Walsh-Hadamard transform: spreads what stands at one place evenly over all, and undoes itself.

H_1 = (1), H_2m = [[H_m, H_m], [H_m, -H_m]], entries divided by the root of the size: orthonormal, symmetric, in natural (Sylvester)
order. H_ab is the Kronecker product of H_a and H_b, so a long transform is short ones along each digit of the place. Here a digit has
up to 64 values: one matrix product, which moves memory once where six butterflies move it six times.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...errors import MethodError

__all__ = ["is_power_of_two", "walsh_hadamard"]

RADIX = 64


def walsh_hadamard(numbers: Tensor, size: int) -> Tensor:
    """Transforms every `size` consecutive numbers of the last dimension. Twice gives what there was before.

    Args:
        numbers: [..., n], n a multiple of `size`; computed in float32.
        size: a power of two; 1 changes nothing.

    Returns:
        float32 of the same shape.

    Raises:
        MethodError: another size, or one that doesn't divide n.
    """
    if not is_power_of_two(size) or numbers.shape[-1] % size:
        raise MethodError(
            f"a Hadamard transform of {numbers.shape[-1]} numbers can't go by {size}: that must be a power of two that divides them."
        )
    out, left = numbers.float(), size
    while left > 1:
        radix = min(RADIX, left)
        out = out.reshape(-1, size // radix, radix) @ _matrix(radix, numbers.device)
        out = out.transpose(1, 2)  # this digit becomes the first, so that the next one is the last
        left //= radix
    return out.reshape(numbers.shape)


def is_power_of_two(size: int) -> bool:
    """Whether there is a transform of this size: 1, 2, 4, 8, ..."""
    return size > 0 and not size & (size - 1)


@lru_cache(maxsize=16)
def _matrix(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it outlives the block it is first asked for in
        matrix = torch.ones(1, 1, device=device)
        while len(matrix) < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return matrix * size**-0.5
