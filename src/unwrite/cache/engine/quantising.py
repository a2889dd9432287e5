"""Numbers in 2, 3 or 4 bits: by groups, each with a scale and a zero of 16 bits, the codes packed without gaps.

    scale = clip (max - min) / (2^bits - 1),   zero = round(-clip min / scale)
    code = clamp(round(x / scale) + zero, 0, 2^bits - 1),   x' = scale (code - zero)

The scale is rounded to 16 bits before anything is divided by it, so codes are of the scale that is kept. Zeros are whole numbers of 16
bits, for those of a group far from 0 have no exact half-precision number. A group without width has scale 0, and its constant in place
of the zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["WIDTHS", "Quantiser", "packed", "unpacked"]

WIDTHS = {2: (4, 1), 3: (8, 3), 4: (2, 1)}
"""{bits: (codes of a word, bytes of a word)}."""
LARGEST_SCALE = torch.finfo(torch.float16).max
LARGEST_ZERO = torch.iinfo(torch.int16).max


@dataclass(frozen=True)
class Quantiser:
    """How numbers are rounded, and put back.

    Args:
        bits: of a code: 2, 3 or 4.
        group: numbers with a scale of their own; consecutive ones of the last dimension.
        clip: share of the range that is covered, in (0, 1]: below 1 the ends are moved inwards and the steps are finer.
        official_levels: bits^2 - 1 steps to the range in place of 2^bits - 1, as the official code of RotateKV has it: 8 for 7 at 3
            bits, and the same at 2 and 4.
    """

    bits: int
    group: int
    clip: float = 1.0
    official_levels: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def quantise(self, numbers: Tensor) -> list[Tensor]:
        """Packed codes uint8 [..., bytes], scales float16 [..., groups] and zeros int16 [..., groups].

        Args:
            numbers: [..., n], n a multiple of `group`.
        """
        codes, scale, zero = self.codes(numbers)
        return [packed(codes, self.bits), scale, zero]

    def codes(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with codes uint8 [..., n], one a byte."""
        groups = numbers.float().unflatten(-1, (-1, self.group))
        high, low = groups.amax(-1), groups.amin(-1)
        levels = self.bits**2 - 1 if self.official_levels else self.top
        scale = (self.clip * (high - low) / levels).clamp(max=LARGEST_SCALE).half()
        wide = torch.where(scale == 0, 1.0, scale.float())
        zero = torch.round(-self.clip * low / wide)
        flat = (scale == 0) | (zero.abs() > LARGEST_ZERO)
        zero = torch.where(flat, 0.0, zero)
        codes = torch.round(groups / wide[..., None]).add_(zero[..., None]).clamp_(0, self.top)
        constant = ((high + low) / 2).clamp(-LARGEST_SCALE, LARGEST_SCALE).half().view(torch.int16)
        return (
            codes.to(torch.uint8).flatten(-2),
            torch.where(flat, torch.zeros_like(scale), scale),
            torch.where(flat, constant, zero.to(torch.int16)),
        )

    def restore(self, parts: Sequence[Tensor]) -> Tensor:
        """What `quantise` kept, as numbers again: float32 [..., n]."""
        words, scale, zero = parts
        codes = unpacked(words, self.bits, scale.shape[-1] * self.group)
        wide = scale.float()
        constant = zero.view(torch.float16).float()
        offset = torch.where(scale == 0, constant, -wide * zero.float())
        return codes.unflatten(-1, (-1, self.group)).float().mul_(wide[..., None]).add_(offset[..., None]).flatten(-2)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes without gaps: uint8 [..., n] to uint8 [..., bytes], the first code in the lowest bits. The last word is filled with 0."""
    count, width = WIDTHS[bits]
    words = F.pad(codes, (0, -codes.shape[-1] % count)).unflatten(-1, (-1, count)).int()
    words = (words << _steps(bits, count, codes.device)).sum(-1, dtype=torch.int32)
    return (words[..., None] >> _steps(8, width, codes.device)).bitwise_and_(255).to(torch.uint8).flatten(-2)


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of what `packed` made: uint8 [..., count]."""
    codes_a_word, width = WIDTHS[bits]
    if width > 1:
        parts = words.unflatten(-1, (-1, width)).int()
        words = (parts << _steps(8, width, words.device)).sum(-1, dtype=torch.int32)
    shifted = words[..., None] >> _steps(bits, codes_a_word, words.device).to(words.dtype)
    return shifted.bitwise_and_(2**bits - 1).to(torch.uint8).flatten(-2)[..., :count]


def _steps(step: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(0, step * count, step, dtype=torch.int32, device=device)
