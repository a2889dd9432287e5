"""Weights as a few whole numbers and a step: symmetric and uniform, rounded to the nearest.

    step = max |W| / (2^(bits - 1) - 1),   code = round(W / step),   Q(W) = code * step

of a whole layer, or of each output channel. The codes, 2^bits - 1 of them, are what a file holds: packed, `bits` bits each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import MethodError, setting

__all__ = ["QuantisedWeight", "check_bits", "pack", "quantise", "unpack"]

LOWEST, HIGHEST = 2, 16
_GROUP = 1 << 20  # codes packed at once, a multiple of 8


@dataclass(frozen=True)
class QuantisedWeight:
    """A layer's weights as codes.

    Args:
        codes: int32, shaped as the weights, from -(2^(bits-1) - 1) to 2^(bits-1) - 1.
        step: what one code is worth, `[]` for the layer or `[channels, 1, ...]`, of the weights' own type.
        bits: of a code.
    """

    codes: Tensor
    step: Tensor
    bits: int

    @property
    def values(self) -> Tensor:
        """The weights that the codes stand for."""
        return self.codes.to(self.step.dtype) * self.step

    @property
    def nbits(self) -> int:
        """Bits of storage: the codes and their steps."""
        return self.codes.numel() * self.bits + self.step.numel() * 8 * self.step.element_size()


def check_bits(bits: int | None) -> None:
    """Refuses a number of bits outside 2 to 16; None stands for no quantisation.

    Raises:
        MethodError: such a number.
    """
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not LOWEST <= bits <= HIGHEST):
        raise MethodError(
            f"{setting('bits')} is {bits}. Give a whole number from {LOWEST} to {HIGHEST}, or none for weights as they are."
        )


def quantise(weight: Tensor, bits: int, per_channel: bool = False) -> QuantisedWeight:
    """The nearest codes of a weight `[channels, ...]`; one that is all zeros stays so.

    Args:
        bits: of a code, 2 to 16.
        per_channel: a step for each output channel in the place of one for the layer.

    Raises:
        MethodError: bits outside their range.
    """
    check_bits(bits)
    top = 2 ** (bits - 1) - 1
    peaks = weight.detach().abs()
    peak = peaks.amax(tuple(range(1, weight.ndim)), keepdim=True) if per_channel else peaks.amax()
    step = torch.where(peak > 0, peak / top, torch.ones_like(peak))
    codes = torch.round(weight.detach() / step).clamp(-top, top).to(torch.int32)
    return QuantisedWeight(codes, step, bits)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as bytes, uint8 `[ceil(codes * bits / 8)]`: each shifted to begin at 0, its highest bit first."""
    flat = (codes.reshape(-1).cpu() + 2 ** (bits - 1) - 1).numpy().astype(np.uint16)
    places = np.arange(bits - 1, -1, -1, dtype=np.uint16)
    packed = [
        np.packbits(((flat[at : at + _GROUP, None] >> places) & 1).astype(np.uint8))
        for at in range(0, len(flat), _GROUP)
    ]
    return torch.from_numpy(np.concatenate(packed) if packed else np.zeros(0, np.uint8))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The codes that `pack` made bytes of, int32 `[count]`.

    Raises:
        MethodError: too few or too many bytes for so many codes.
    """
    check_bits(bits)
    if packed.numel() != (count * bits + 7) // 8:
        raise MethodError(
            f"{packed.numel()} bytes don't hold {count} codes of {bits} bits. The file is of another net."
        )
    data, places = packed.cpu().numpy(), 2 ** np.arange(bits - 1, -1, -1, dtype=np.int32)
    pieces = []
    for at in range(0, count, _GROUP):
        some = min(_GROUP, count - at)
        ones = np.unpackbits(data[at * bits // 8 : (at + some) * bits // 8 + 1], count=some * bits)
        pieces.append(ones.reshape(some, bits).astype(np.int32) @ places)
    codes = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    return torch.from_numpy(codes.astype(np.int32) - (2 ** (bits - 1) - 1))
