"""Pictures of a table, decoded row by row and brought to 0..1 by the range that their kind of storage has.

    bytes            1 bit, palette, grey, RGB, CMYK and the like, with or without transparency (which is left out)   / 255
    16 bits          0..65535                                                                                  / 65535
    whole numbers    32 bits that hold 0..255 or 0..65535                                               / 255 or / 65535
    floats           that hold 0..1 or 0..255                                                               / 1 or / 255

Which range whole numbers and floats have is read off all pictures together: a dark picture says nothing. Where they
don't tell, the set is refused rather than shown all black or all white.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import DataError, notice
from ...runs import progress
from ..stored import stored_rows
from .images import SHOWN, first_few
from .picture_metadata import missing

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image as Picture

__all__ = ["DeepRange", "Stored", "StoredPicture", "complete", "decoded", "deep_range", "divisor", "scaled"]

Stored = Literal["bytes", "16-bit", "whole", "float"]
_BYTES = ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_SURELY_BYTES = 16  # floats of a set in 0..255 reach at least this; below, they may be 0..1 with a few larger ones
_TWELVE_BITS = 4095


class _Unusable(Exception):
    """What is wrong with one picture."""


@dataclass(frozen=True)
class DeepRange:
    """What numbers a picture holds.

    Args:
        stored: its kind of storage.
        low, high: the smallest and the largest number of the whole picture.
        place: where it is from, for messages.
    """

    stored: Stored
    low: float
    high: float
    place: str


@dataclass(frozen=True)
class StoredPicture(DeepRange):
    """The middle square of a picture, not yet scaled.

    Args:
        pixels: `[3, size, size]` for bytes, otherwise `[1, size, size]`; float32 as stored.
    """

    pixels: np.ndarray


def decoded(table: Dataset, column: str, place: str, size: int) -> list[StoredPicture]:
    """Every picture of a `datasets` table's column, as its middle square of that size.

    Raises:
        DataError: the column holds no pictures; or pictures that can't be decoded, of which the first few rows are
            named with their files and faults.
    """
    pictures: list[StoredPicture] = []
    faults: list[str] = []
    for row, value in enumerate(progress(_encoded(table, column), f"reading {place}", total=len(table))):
        where = f"row {row}" + (f" ({Path(path).name})" if (path := _path(value)) else "")
        try:
            pictures.append(_square(_opened(value), size, f"{place} {where}"))
        except _Unusable as fault:
            faults.append(f"{where} {fault}")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError(
            f"{len(faults)} of {len(table)} pictures in {place} can't be used: {'; '.join(faults[:SHOWN])}{more}. "
            "Mend or remove them."
        )
    return pictures


def complete(table: Dataset, column: str, place: str) -> list[Any]:
    """The column's values, all of them there.

    Raises:
        DataError: rows that have none.
    """
    values = [row[column] for row in stored_rows(table.select_columns([column]))]
    absent = [row for row, value in enumerate(values) if missing(value)]
    if absent:
        raise DataError(
            f"{place}: {len(absent)} of {len(values)} rows have no {column} (first: row {first_few(absent)}). "
            "Fill in or remove them."
        )
    return values


def scaled(pictures: Sequence[StoredPicture]) -> np.ndarray:
    """`[rows, 3, size, size]` in 0..1, each kind of storage by its range over all these pictures.

    Raises:
        DataError: a range that no kind has, or one that may be two; the picture that shows it is named.
    """
    divisors: dict[Stored, float] = {"bytes": 255}
    for stored in sorted({picture.stored for picture in pictures} - {"bytes"}):
        divisors[stored] = divisor(stored, [picture for picture in pictures if picture.stored == stored])
    arrays = [picture.pixels / np.float32(divisors[picture.stored]) for picture in pictures]
    return np.stack([np.broadcast_to(pixels, (3, *pixels.shape[1:])) for pixels in arrays])


def divisor(stored: Stored, pictures: Sequence[DeepRange]) -> float:
    """What all pictures of one kind of storage are divided by.

    Raises:
        DataError: a range that the kind doesn't have, or that may be two; the picture that shows it is named.
    """
    lowest, highest = min(pictures, key=lambda one: one.low), max(pictures, key=lambda one: one.high)
    high = highest.high
    if lowest.low < 0:
        raise DataError(_refusal(lowest, lowest.low, "pixels are 0 or more. Shift and scale them to 0..1 first"))
    if stored == "float":
        if high <= 1:
            return 1
        if high > 255:
            raise DataError(_refusal(highest, high, "floats are read as 0..1 or 0..255. Scale them to 0..1 first"))
        if high <= _SURELY_BYTES:
            raise DataError(
                _refusal(highest, high, "the largest of all; that may be 0..1 or 0..255. Scale them to 0..1 first")
            )
        return 255
    if high > 65535:
        raise DataError(_refusal(highest, high, "whole numbers are read as 0..255 or 0..65535. Save them as 16 bits"))
    if stored == "whole" and 1 < high <= 255:
        return 255
    if high <= 255:
        raise DataError(
            _refusal(highest, high, "the largest of all, so all would be black. Save them as 8 bits if that is meant")
        )
    if high <= _TWELVE_BITS:
        notice(
            f"{len(pictures)} pictures of up to 65535 reach {high:g} only (first: {pictures[0].place}), so all are dark. "
            "If they have 12 bits or fewer, scale them first."
        )
    return 65535


def deep_range(picture: Picture, place: str) -> DeepRange | None:
    """What numbers a picture of more than 8 bits holds; None for one of bytes.

    Raises:
        DataError: a mode without a range that is known, or a number that is not finite.
    """
    try:
        return _range(picture, place)
    except _Unusable as fault:
        raise DataError(f"{place} {fault}. Mend or remove it.") from None


def _range(picture: Picture, place: str) -> DeepRange | None:
    if picture.mode in _BYTES:
        return None
    if picture.mode != "I" and picture.mode != "F" and not picture.mode.startswith("I;16"):
        raise _Unusable(f"has the mode {picture.mode}, which has no range that is known: save it as RGB")
    numbers = np.asarray(picture)
    low, high = float(numbers.min()), float(numbers.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _Unusable("has a pixel that is not finite")
    return DeepRange("float" if picture.mode == "F" else "whole" if picture.mode == "I" else "16-bit", low, high, place)


def _refusal(picture: DeepRange, value: float, why: str) -> str:
    kinds = {"16-bit": "16-bit picture", "whole": "picture of whole numbers", "float": "picture of floats"}
    return f"{picture.place}, a {kinds[picture.stored]}, has a pixel of {value:g}: {why}."


def _encoded(table: Dataset, column: str) -> Iterator[Any]:
    """The column's values, pictures still as bytes or path, so that one that is damaged can be named."""
    for row in stored_rows(table.select_columns([column])):
        yield row[column]


def _path(value: object) -> str | None:
    return str(value["path"]) if isinstance(value, dict) and value.get("path") else None


def _opened(value: Any) -> Picture:
    """The decoded picture of bytes, of `{"bytes", "path"}`, or as it is."""
    from PIL import Image, ImageOps

    if isinstance(value, Image.Image):
        return value
    content = value.get("bytes") if isinstance(value, dict) else value
    path = _path(value)
    if content is None and path is not None:
        if not Path(path).is_file():
            raise _Unusable("is not there")
        content = Path(path).read_bytes()
    if content is None:
        raise _Unusable("has no picture")  # and no path to one
    if not isinstance(content, bytes | bytearray):
        raise DataError(f"an image is a {type(value).__name__}, not a picture. Name the column that holds pictures.")
    if not content:
        raise _Unusable("is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a damaged picture there is one line, below
        try:
            file = Image.open(io.BytesIO(content))
            file.load()
            picture = ImageOps.exif_transpose(file)
        except Exception as error:  # each format's decoder has its own
            reason = "is no picture" if "cannot identify" in str(error) else f"is damaged ({_short(error)})"
            raise _Unusable(reason) from error
    return picture


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _square(picture: Picture, size: int, place: str) -> StoredPicture:
    from PIL import Image

    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = left, top, left + side, top + side
    measured = _range(picture, place)
    if measured is None:
        plain = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
        squared = (picture.convert(plain) if plain else picture).convert("RGB").crop(box)
        if side != size:
            squared = squared.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=None)
        return StoredPicture("bytes", 0, 255, place, np.asarray(squared, dtype=np.float32).transpose(2, 0, 1))
    squared = Image.fromarray(np.asarray(picture).astype(np.float32)).crop(box)
    if side != size:
        squared = squared.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=None)
    return StoredPicture(
        measured.stored, measured.low, measured.high, place, np.asarray(squared, dtype=np.float32)[None]
    )
