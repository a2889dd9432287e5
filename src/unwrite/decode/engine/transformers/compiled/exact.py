"""Float32 weights in the fewest bytes that give them back to the last bit.

Most checkpoints are bfloat16, and GGUF files are blocks of 32 codes of 4 or 8 bits with a scale; run in float32, their weights are
still numbers of that form. Here the form is found from the weights themselves, and every block is expanded again and compared bit
by bit: what doesn't fit exactly, as after training, isn't packed. A zero's sign alone is not kept: it changes no sum that begins
with 0.

    affine4:  w = step * code + lowest,  code in 0..15;   scaled8:  w = step * code,  code in -127..127;   steps in half precision
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .tiles import BLOCK, STRIDES
from .words import float_of, half_of

__all__ = ["FORMATS", "packed"]

FORMATS = ("affine4", "scaled8", "bfloat16")  # by bytes
_exact = {"cache": True, "nogil": True, "error_model": "numpy"}


def packed(weight: NDArray[np.float32]) -> tuple[str, NDArray[np.uint8]] | None:
    """The smallest exact form of a matrix, and its bytes [out, bytes of a row]; None where no form is exact.

    Args:
        weight: [out, in], contiguous; `in` a multiple of 32.
    """
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // BLOCK, BLOCK)
    for stored in FORMATS:
        out = np.empty((rows, blocks.shape[1], STRIDES[stored]), dtype=np.uint8)
        if _PACKERS[stored](blocks, out):
            return stored, out.reshape(rows, -1)
    return None


@njit(**_exact)
def _bfloat16(blocks, out):
    """The upper halves, where the lower ones are zeros."""
    bits = blocks.view(np.uint32)
    for row in range(bits.shape[0]):
        rest = np.uint32(0)
        for block in range(bits.shape[1]):
            for i in range(BLOCK):
                value = bits[row, block, i]
                rest |= value & np.uint32(0xFFFF)
                out[row, block, 2 * i] = (value >> np.uint32(16)) & np.uint32(0xFF)
                out[row, block, 2 * i + 1] = value >> np.uint32(24)
        if rest:
            return False
    return True


@njit(**_exact)
def _scaled8(blocks, out):
    """Steps are the largest magnitude over 127."""
    for row in range(blocks.shape[0]):
        for block in range(blocks.shape[1]):
            weights = blocks[row, block]
            largest = np.float32(0)
            for i in range(BLOCK):
                largest = max(largest, abs(weights[i]))
            half = half_of(largest / np.float32(127))
            step = float_of(half)
            inverse = np.float32(1) / step if step > 0 else np.float32(0)
            wrong = 0
            for i in range(BLOCK):
                code = np.rint(weights[i] * inverse)
                wrong += weights[i] != step * code or abs(code) > np.float32(127)
                out[row, block, 2 + i] = np.int32(code) & 0xFF
            if wrong:
                return False
            out[row, block, 0], out[row, block, 1] = half & 0xFF, (half >> 8) & 0xFF
    return True


@njit(**_exact)
def _fits4(weights, lowest, step, codes):
    """Whether step * code + lowest gives a block back; the codes are left in `codes`."""
    inverse = np.float32(1) / step if step != 0 else np.float32(0)
    wrong = 0
    for i in range(BLOCK):
        code = np.rint((weights[i] - lowest) * inverse)
        wrong += weights[i] != step * code + lowest or code < 0 or code > 15
        codes[i] = code
    return wrong == 0


@njit(**_exact)
def _affine4(blocks, out):
    """The lowest weight has code 0; the highest has 15, or fewer where a block was rounded so. Or, as in q4_0, the weight of
    the largest magnitude has code 0 and the step is an eighth of it, with the other sign."""
    codes = np.zeros(BLOCK, dtype=np.float32)
    for row in range(blocks.shape[0]):
        for block in range(blocks.shape[1]):
            weights = blocks[row, block]
            low, high = weights[0], weights[0]
            for i in range(BLOCK):
                low, high = min(low, weights[i]), max(high, weights[i])
            half = half_of(low)
            unit, fits = half_of(np.float32(0)), False
            if float_of(half) == low:
                for most in range(15, 0, -1):
                    unit = half_of((high - low) / np.float32(most))
                    fits = _fits4(weights, low, float_of(unit), codes)
                    if fits:
                        break
            if not fits:
                extreme = low if -low >= high else high
                half, unit = half_of(extreme), half_of(-extreme / np.float32(8))
                fits = _fits4(weights, float_of(half), float_of(unit), codes)
            if not fits:
                return False
            out[row, block, 0], out[row, block, 1] = unit & 0xFF, (unit >> 8) & 0xFF
            out[row, block, 2], out[row, block, 3] = half & 0xFF, (half >> 8) & 0xFF
            for i in range(BLOCK // 2):
                out[row, block, 4 + i] = np.uint8(codes[i]) | (np.uint8(codes[i + 16]) << np.uint8(4))
    return True


_PACKERS = {"affine4": _affine4, "scaled8": _scaled8, "bfloat16": _bfloat16}
