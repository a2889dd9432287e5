"""A bitmap and its non-zeros: keys and values with many zeros in fewer bytes, as Mustafar stores them (arXiv 2505.22913).

A tile is 64 numbers in a row. Kept of it are a bitmap (64 bits, the first number's the most significant), where its non-zeros begin,
and the non-zeros themselves, filled up with zeros to a multiple of eight:

    bytes of a tile = 8 + 4 + bytes of a number * 8 * ceil(non-zeros / 8)

Tiles of keys run along 64 tokens of one channel, tiles of values along 64 channels of one token, so that both products of attention read
whole tiles. Each row of the batch and key-value head has a stream of its own; a stream grows at its end, 64 tokens or a multiple at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ...errors import MethodError, setting, unknown

__all__ = ["TILE", "BitmapTensor", "pack_bitmap"]

TILE = 64
STEP = 8  # what the non-zeros of a tile are filled up to
UNIT = 2  # numbers that an offset counts in
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # what the bits of a number are read as, by its bytes
Axis = Literal["tokens", "channels"]


@dataclass(frozen=True)
class BitmapTensor:
    """Numbers [rows, heads, tokens, dim] of which many are zero; T tiles a stream, a stream for each row and head.

    Args:
        bitmaps: int64 [rows, heads, T]; bit 63 - i is set where number i of the tile isn't zero.
        offsets: int32 [rows, heads, T + 1], where each tile's non-zeros begin in its stream, in twos of numbers; the last is the end.
        starts: int32 [rows, heads], where each stream begins in `stream`, in eights of numbers.
        stream: the non-zeros of all streams, one after another, each tile's filled up with zeros to a multiple of eight.
        axis: what tiles run along.
        dim: numbers of a token.
    """

    bitmaps: Tensor
    offsets: Tensor
    starts: Tensor
    stream: Tensor
    axis: Axis
    dim: int

    @property
    def tokens(self) -> int:
        """Tokens that are packed."""
        return self.bitmaps.shape[2] // self.per_block * TILE

    @property
    def per_block(self) -> int:
        """Tiles of 64 tokens."""
        return self.dim if self.axis == "tokens" else -(-self.dim // TILE) * TILE

    def __iter__(self) -> Iterator[Tensor]:
        """The tensors that hold it."""
        return iter((self.bitmaps, self.offsets, self.starts, self.stream))

    def nbytes(self) -> int:
        """Bytes of its storages."""
        return sum(one.untyped_storage().nbytes() for one in self)

    def tiles(self) -> Tensor:
        """Its numbers, tile by tile: [rows, heads, blocks of 64 tokens, dim, 64 tokens] of keys, and [rows, heads, blocks, parts of
        64 channels, 64 tokens, 64 channels] of values, the last part filled up with zeros.
        """
        flat = self._unpacked()
        inner = (self.dim, TILE) if self.axis == "tokens" else (-1, TILE, TILE)
        return flat.view(*flat.shape[:2], self.tokens // TILE, *inner)

    def to_dense(self) -> Tensor:
        """All numbers, zeros too: [rows, heads, tokens, dim]."""
        tiles = self.tiles()
        if self.axis == "tokens":
            return tiles.transpose(-1, -2).flatten(2, 3)
        return tiles.transpose(-2, -3).flatten(-2)[..., : self.dim].flatten(2, 3)

    def append(self, other: BitmapTensor) -> BitmapTensor:
        """This one with another's tokens behind its own, for the same rows and heads; offsets of what is new count on from the old end.

        Raises:
            MethodError: another number of rows, heads or channels, or the other axis.
        """
        if (self.axis, self.dim, self.starts.shape) != (other.axis, other.dim, other.starts.shape):
            raise MethodError(
                f"{tuple(other.starts.shape)} streams of {other.dim} along {other.axis} can't follow {tuple(self.starts.shape)} of "
                f"{self.dim} along {self.axis}. Pack what has the same rows, heads and channels, the same way."
            )
        ends = self.offsets[..., -1:]
        old, new = UNIT * ends.flatten().long(), UNIT * other.offsets[..., -1].flatten().long()
        starts = _before(old + new)
        stream = self.stream.new_empty(self.stream.numel() + other.stream.numel())
        stream[_places(starts, old)] = self.stream
        stream[_places(starts + old, new)] = other.stream
        return replace(
            self,
            bitmaps=torch.cat([self.bitmaps, other.bitmaps], 2),
            offsets=torch.cat([self.offsets[..., :-1], other.offsets + ends], 2),
            starts=(starts // STEP).int().view_as(self.starts),
            stream=stream,
        )

    def rows(self, indices: Tensor) -> BitmapTensor:
        """These rows of the batch, in this order. indices: [rows]."""
        offsets = self.offsets[indices]
        lengths = UNIT * offsets[..., -1].flatten().long()
        return replace(
            self,
            bitmaps=self.bitmaps[indices],
            offsets=offsets,
            starts=(_before(lengths) // STEP).int().view(offsets.shape[:2]),
            stream=self.stream[_places(STEP * self.starts[indices].flatten().long(), lengths)],
        )

    def _unpacked(self) -> Tensor:
        """[rows, heads, T, 64]: every tile. An octet of bits looks up how many set bits stand before each of its own."""
        shape = (*self.bitmaps.shape, TILE)
        if self.stream.numel() == 0:
            return self.stream.new_zeros(shape)
        ranks, masks, sizes = _octets(self.stream.device, BITS[self.stream.element_size()])
        shifts = torch.arange(TILE - STEP, -1, -STEP, device=self.bitmaps.device)
        octets = self.bitmaps[..., None] >> shifts & 255  # [rows, heads, T, 8]
        before = sizes[octets]
        first = STEP * self.starts[..., None].long() + UNIT * self.offsets[..., :-1]
        at = first[..., None] + before.cumsum(-1) - before
        # An octet without bits may stand at the very end, and reads what it then doesn't use.
        flat = octets.flatten()
        places = ranks.index_select(0, flat).add_(at.clamp_(max=self.stream.numel() - 1).view(-1, 1))
        read = self.stream.index_select(0, places.flatten())
        # Bits are blanked rather than numbers multiplied, for a number may be infinite.
        read.view(masks.dtype).bitwise_and_(masks.index_select(0, flat).flatten())
        return read.view(shape)


def pack_bitmap(x: Tensor, axis: Axis) -> BitmapTensor:
    """Packs numbers of which many are zero; NaN counts as a number, and what is exactly zero is lost.

    Args:
        x: [rows, heads, tokens, dim]; tokens a multiple of 64. Where values have channels that are no multiple of 64, their last tiles
            are filled up with zeros (ours: the kernel has multiples only).
        axis: what tiles run along: "tokens" for keys, "channels" for values.

    Raises:
        MethodError: another number of tokens; an unknown axis.
    """
    if axis not in ("tokens", "channels"):
        raise MethodError(unknown(setting("axis"), axis, ("tokens", "channels")))
    rows, heads, tokens, dim = x.shape
    if tokens % TILE:
        raise MethodError(f"{tokens} tokens don't make whole tiles. Pack a multiple of {TILE}.")
    blocks = x.unflatten(2, (tokens // TILE, TILE))  # [rows, heads, blocks, 64, dim]
    if axis == "tokens":
        tiles = blocks.transpose(-1, -2)
    else:
        filled = torch.nn.functional.pad(blocks, (0, -dim % TILE))
        tiles = filled.unflatten(-1, (filled.shape[-1] // TILE, TILE)).transpose(-2, -3)
    tiles = tiles.reshape(rows, heads, -1, TILE)
    bits = tiles != 0
    shifts = torch.arange(TILE - 1, -1, -1, device=x.device)
    counts = (bits.sum(-1) + STEP - 1) // STEP * STEP
    ends = counts.cumsum(-1)
    offsets = torch.cat([ends.new_zeros(rows, heads, 1), ends], -1)
    starts = _before(offsets[..., -1].flatten())
    places = (starts.view(rows, heads, 1) + offsets[..., :-1])[..., None] + bits.cumsum(-1) - 1
    stream = x.new_zeros(int(counts.sum()))
    stream[places[bits]] = tiles[bits]
    return BitmapTensor(
        bitmaps=(bits.long() << shifts).sum(-1),
        offsets=(offsets // UNIT).int(),
        starts=(starts // STEP).int().view(rows, heads),
        stream=stream,
        axis=axis,
        dim=dim,
    )


@lru_cache
def _octets(device: torch.device, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of all 256 octets of bits, first bit most significant: set bits before each bit [256, 8], -1 for a set bit and 0 for another
    [256, 8], and how many are set [256].

    An unset bit is given the place of a set one, so that no place lies outside its octet.
    """
    bits = torch.arange(256)[:, None] >> torch.arange(STEP - 1, -1, -1) & 1
    sizes = bits.sum(-1)
    ranks = (bits.cumsum(-1) - bits).minimum((sizes[:, None] - 1).clamp(min=0))
    return ranks.to(device), (-bits).to(device, kind), sizes.to(device)


def _before(lengths: Tensor) -> Tensor:
    """Where each of several pieces begins, one after another. lengths: [pieces]."""
    return lengths.cumsum(0) - lengths


def _places(starts: Tensor, lengths: Tensor) -> Tensor:
    """The places of all numbers of pieces that begin at `starts`, piece by piece. starts, lengths: int64 [pieces]."""
    within = torch.arange(int(lengths.sum()), device=lengths.device)
    return within + (starts - _before(lengths)).repeat_interleave(lengths)
