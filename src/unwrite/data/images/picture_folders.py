"""A folder of your own pictures as rows: FOLDER/class/picture, with whose picture each is, and every picture as 8 bits.

    FOLDER/train/class/picture, FOLDER/test/class/picture      rows to train on, and rows to measure on
    FOLDER/class/person/picture                                whose it is: the folder inside the class
    FOLDER/class/person_01.jpg                                 or, without one, the name up to its last "_" or "-"

Colours lie over white where a picture has transparency; 16-bit, whole-number and float pictures are divided by the range that all
of them together have (`picture_rows`), so that none is all black or all white unawares. Nothing is written there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import DataError, notice
from ...runs import progress
from .images import Images
from .picture_files import GREY, PictureHeader, class_folders, first_frame, picture_header, pictures_in, relative_name
from .picture_rows import DeepRange, Stored, deep_range, divisor

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["PictureFile", "PictureFolder", "PictureReader", "TrainTestFolders", "picture_images", "train_test_folders"]

TRAIN, TESTS = "train", ("test", "val", "valid", "validation")
_OWNER = re.compile(r"(.+)[_-][^_-]*")
_BYTE_MODES = {"La": "LA", "RGBa": "RGBA"}


@dataclass(frozen=True)
class PictureFile:
    """One picture of a folder.

    Args:
        name: below the folder that was given, with "/" between its parts.
        label: its class.
        identity: whose picture it is.
    """

    name: str
    label: str
    identity: str
    header: PictureHeader

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a folder of classes, in the order of their names.

    Args:
        folder: what was read.
        rows: its pictures; their headers have been read.
        classes: the names of its classes, in order.
    """

    folder: Path
    rows: tuple[PictureFile, ...]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, folder: str | Path, home: Path | None = None) -> PictureFolder:
        """Reads the headers of all pictures.

        Args:
            folder: holds a folder a class. Hidden files, and files that are no pictures by their ending, are passed over.
            home: what rows are named from; the folder itself if None.

        Raises:
            DataError: no such folder, no classes, an empty class, a picture outside a class, or one that can't be read.
        """
        folder = Path(folder)
        classes, rows, passed = class_folders(folder), [], 0
        for label in classes:
            files, others = pictures_in(folder / label)
            passed += len(others)
            for path in progress(files, f"looking at {label}"):
                inside = path.relative_to(folder / label)
                rows.append(
                    PictureFile(
                        relative_name(path, home or folder),
                        relative_name(folder / label, folder),
                        _owner(inside),
                        picture_header(path),
                    )
                )
        if passed:
            notice(f"{passed} files in {folder} are no pictures by their ending and are passed over.")
        return cls(folder, tuple(rows), classes)


@dataclass(frozen=True)
class TrainTestFolders:
    """A folder's pictures to train on and, where it has a folder of them, those to measure on."""

    train: PictureFolder
    test: PictureFolder | None = None


def train_test_folders(folder: str | Path) -> TrainTestFolders:
    """A folder of classes, or one of `train` and `test` (or `val`), each a folder of classes.

    Raises:
        DataError: as `PictureFolder.read`.
    """
    folder = Path(folder)
    inside = {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
    shown = {name for name in inside if not name.startswith(".")}
    tests = [name for name in TESTS if name in shown]
    if TRAIN not in shown or shown - {TRAIN, *TESTS} or not _holds_folders(folder / TRAIN):
        return TrainTestFolders(PictureFolder.read(folder))
    if len(tests) > 1:
        notice(f"{folder} has {' and '.join(tests)}; what is measured is {tests[0]}, and the others are not read.")
    train = PictureFolder.read(folder / TRAIN, folder)
    return TrainTestFolders(train, PictureFolder.read(folder / tests[0], folder) if tests else None)


class PictureReader:
    """Decodes the pictures of one data set, each as 8 bits; deep ones are scaled by the range of all of them together."""

    def __init__(self, rows: Sequence[PictureFile]) -> None:
        """Decodes the pictures of more than 8 bits once, to know their range, and says what is not as it is stored.

        Raises:
            DataError: a range that is not known; a picture that is damaged.
        """
        self.grey = all(row.header.mode in GREY or _is_deep(row) for row in rows)
        deep = [row for row in rows if _is_deep(row)]
        ranges = [one for row in progress(deep, "measuring deep pictures") if (one := _measured(row)) is not None]
        self._divisors: dict[Stored, float] = {
            stored: divisor(stored, [one for one in ranges if one.stored == stored])
            for stored in sorted({one.stored for one in ranges})
        }
        for stored, by in self._divisors.items():
            said = {"16-bit": "16 bits", "whole": "whole numbers", "float": "floats"}[stored]
            first = next(one.place for one in ranges if one.stored == stored)
            notice(f"pictures of {said} are divided by {by:g}, the range of all of them (first: {first}).")
        _say_first(
            "animated or of several pages, of which the first is taken", [r for r in rows if r.header.frames > 1]
        )
        _say_first(
            "partly transparent, and are laid over white", [r for r in rows if r.header.clear and not _is_deep(r)]
        )

    def picture(self, row: PictureFile) -> Picture:
        """The picture in 8 bits: "L" where all of the set are grey, otherwise "RGB".

        Raises:
            DataError: it is damaged, or has changed since it was looked at.
        """
        picture = first_frame(row.path)
        if (picture.width, picture.height) != (row.header.width, row.header.height):
            raise DataError(f"{row.path} has changed since it was looked at. Leave the folder alone while it is read.")
        flat = _eight_bits(picture, str(row.path), self._divisors)
        try:
            return flat.convert("L" if self.grey else "RGB")
        except ValueError as error:  # of a mode that Pillow can't convert
            raise DataError(f"{row.path} can't be read as RGB: {error}. Save it as RGB.") from None


def picture_images(
    rows: Sequence[PictureFile],
    reader: PictureReader,
    prepare: Callable[[Picture], np.ndarray],
    *,
    classes: Sequence[str],
    identities: Sequence[str],
    first: int = 0,
    name: str = "pictures",
) -> Images:
    """The rows as `Images`, indices from `first` on.

    Args:
        prepare: makes what the model takes of a picture, `[channels, height, width]`, float32 in 0..1.
        classes: the labels' names, in the model's order.
        identities: the identities' names.

    Raises:
        DataError: a picture that can't be read, or that comes out in another size than the first.
    """
    place = {label: number for number, label in enumerate(classes)}
    owner = {who: number for number, who in enumerate(identities)}
    pixels: np.ndarray | None = None
    for at, row in enumerate(progress(rows, f"reading {name}")):
        array = prepare(reader.picture(row))
        if pixels is None:
            pixels = np.empty((len(rows), *array.shape), dtype=np.float32)
        if array.shape != pixels.shape[1:]:
            raise DataError(
                f"{row.path} comes out as {_size(array)} and {rows[0].path} as {_size(pixels[0])}. Bring all to one size."
            )
        pixels[at] = array
    assert pixels is not None
    return Images(
        pixels,
        labels=[place[row.label] for row in rows],
        index=torch.arange(first, first + len(rows)),
        identity=[owner[row.identity] for row in rows],
        classes=tuple(classes),
        identities=tuple(identities),
        name=name,
    )


def _owner(inside: Path) -> str:
    """Whose picture it is, by its name below the folder of its class."""
    if len(inside.parts) > 1:
        return inside.parts[0]
    match = _OWNER.fullmatch(inside.stem)
    return match[1] if match else inside.stem


def _holds_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())


def _is_deep(row: PictureFile) -> bool:
    return row.header.mode in ("I", "F") or row.header.mode.startswith("I;16")


def _measured(row: PictureFile) -> DeepRange | None:
    return deep_range(first_frame(row.path), str(row.path))


def _eight_bits(picture: Picture, place: str, divisors: dict[Stored, float]) -> Picture:
    from PIL import Image

    measured = deep_range(picture, place)
    if measured is not None:
        if measured.stored not in divisors or not 0 <= measured.low <= measured.high <= divisors[measured.stored]:
            raise DataError(f"{place} has changed since it was looked at. Leave the folder alone while it is read.")
        levels = np.asarray(picture).astype(np.float64) / divisors[measured.stored] * 255
        return Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))
    plain = picture.convert(_BYTE_MODES[picture.mode]) if picture.mode in _BYTE_MODES else picture
    if plain.mode in ("LA", "PA", "RGBA") or "transparency" in plain.info:
        colours = plain.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        flat = Image.alpha_composite(white, colours)
        return flat.convert("L" if plain.mode in GREY else "RGB")
    return plain


def _say_first(what: str, rows: Sequence[PictureFile]) -> None:
    if rows:
        notice(f"{len(rows)} pictures are {what} (first: {rows[0].name}).")


def _size(array: np.ndarray) -> str:
    channels, height, width = array.shape
    return f"{width}x{height} of {channels} channels"
