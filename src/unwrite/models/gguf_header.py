"""The header of a GGUF file, walked through before a library believes it.

Counts and lengths in it have 64 bits, and a reader that follows them past the end of the file builds lists until memory is gone. Here each
is held against the bytes that are left.

    magic, version, number of tensors, number of entries
    entries: key, type, value       tensors: name, dimensions, type, offset
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path

from ..errors import ModelError

__all__ = ["MOST_BLOCKS", "check_header"]

MOST_BLOCKS = 1000  # of a model; the largest published have some 130
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each plain type
_STRING, _ARRAY = 8, 9
_DEEPEST = 4  # arrays within arrays; published files have one
_DIMENSIONS = 8  # of a tensor; ggml has four
_BLOCK = re.compile(rb"(?:^|\.)blk\.(\d{1,6})\.")  # of a tensor's name
_FINEST = 8  # numbers in a byte, in the smallest types


def check_header(path: Path) -> None:
    """Refuses a file whose header promises more than the file has bytes for; one that is no GGUF file at all is its reader's to refuse.

    Raises:
        ModelError: the first such count or length with its place; more than a thousand blocks, or more than there are tensors of.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _Walk(data).whole()
            except (_Damaged, struct.error) as error:
                raise ModelError(f"{path} has a damaged header: {error}. Download or copy it again.") from None


class _Damaged(Exception):
    """What is wrong, and at which byte."""


class _Walk:
    """A place in the header, moved on by what stands there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.order = data, 4, "<"
        self.blocks: tuple[str, int] | None = None  # the key and the number of blocks
        self.in_parts = False
        if self.number(4) & 0xFFFF == 0:  # written with the other byte order
            self.order = ">"

    def whole(self) -> None:
        """From the counts to the last tensor."""
        tensors, entries = self.number(8), self.number(8)
        self.need(entries, 8 + 4 + 1, "entries")
        for _ in range(entries):
            key, kind = self.text(), self.number(4)
            if key.endswith(b".block_count") and kind in (4, 5, 10, 11):
                blocks = self.number(_SIZES[kind])
                self.blocks = key.decode("utf-8", "replace"), blocks
                if blocks > MOST_BLOCKS:
                    raise _Damaged(f"{self.blocks[0]} is {blocks:,}, and {MOST_BLOCKS:,} blocks are read at most")
            else:
                self.in_parts |= key == b"split.count"
                self.skip(kind)
        self.need(tensors, 8 + 4 + 4 + 8, "tensors")
        there = 0
        for _ in range(tensors):
            if (of := _BLOCK.search(self.text())) is not None:
                there = max(there, int(of[1]) + 1)
            dimensions, numbers = self.number(4), 1
            if dimensions > _DIMENSIONS:
                raise _Damaged(f"a tensor of {dimensions:,} dimensions at byte {self.at:,}, of {_DIMENSIONS} at most")
            for _ in range(dimensions):
                numbers *= self.number(8)
            if numbers > _FINEST * len(self.data):
                raise _Damaged(
                    f"a tensor of {numbers:,} numbers at byte {self.at:,}, in a file of {len(self.data):,} bytes"
                )
            self.at += 4 + 8
        if self.in_parts:
            return
        if self.blocks is None and there:  # a library would take its default, of a much larger model
            raise _Damaged(f"there are tensors of {there:,} blocks, and no block_count")
        if self.blocks is not None and self.blocks[1] > there:
            raise _Damaged(f"{self.blocks[0]} is {self.blocks[1]:,}, and there are tensors of {there:,}")

    def number(self, size: int) -> int:
        """The next whole number."""
        self.need(1, size, "numbers")
        (value,) = struct.unpack_from(f"{self.order}{'I' if size == 4 else 'Q'}", self.data, self.at)
        self.at += size
        return int(value)

    def text(self) -> bytes:
        """The next text, its end where it is long."""
        length = self.number(8)
        self.need(length, 1, "characters of a text")
        self.at += length
        return self.data[self.at - min(length, 100) : self.at]

    def need(self, count: int, size: int, what: str) -> None:
        """Refuses what can't be in the bytes that are left."""
        left = max(0, len(self.data) - self.at)
        if count * size > left:
            raise _Damaged(f"{count:,} {what} at byte {self.at:,} can't be in the {left:,} bytes that are left")

    def skip(self, kind: int, depth: int = 0) -> None:
        """Moves past a value."""
        if kind in _SIZES:
            self.need(1, _SIZES[kind], "values")
            self.at += _SIZES[kind]
        elif kind == _STRING:
            self.text()
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self.number(4), self.number(8)
            self.need(count, _SIZES.get(inner, 8), "values of an array")
            if inner in _SIZES:
                self.at += count * _SIZES[inner]
                return
            for _ in range(count):
                self.skip(inner, depth + 1)
        else:
            raise _Damaged(f"a value of the unknown type {kind} at byte {self.at:,}")
