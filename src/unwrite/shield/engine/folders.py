"""A folder of classes, folder/class/picture, read a few pictures at a time.

Headers are read once, to know every size and to refuse by name what can't be protected; pixels are decoded when a batch is asked
for, so ten thousand pictures take the memory of a few. Nothing is ever written there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.images.picture_files import (
    MOST_PIXELS,
    PictureHeader,
    class_folders,
    first_frame,
    picture_header,
    pictures_in,
    relative_name,
)
from ...errors import DataError, notice
from ...runs import progress
from .pictures import Pictures, Reads, Shape

__all__ = ["MOST_PIXELS", "FolderPictures"]

GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class _Row:
    """One picture of the folder: its header, its name below the folder, and its class."""

    header: PictureHeader
    relative: str
    label: int


class FolderPictures(Pictures):
    """The pictures of a folder of classes, in the order of their names.

    All have one channel where all are grey, otherwise three. A class is a folder at the top; folders in it are of the same class.
    """

    def __init__(self, folder: str | Path, reads: Reads = "labels") -> None:
        """Reads the headers.

        Args:
            folder: holds a folder a class. Hidden files, and files that are no pictures by their ending, are passed over.
            reads: what a shield reads of each: a label, the class's name as caption, or nothing.

        Raises:
            DataError: no such folder, no classes or an empty one, pictures outside a class, or a picture that is damaged, too
                large, animated or of more than 8 bits; the file is named.
        """
        self.folder = Path(folder)
        self.name = str(folder)
        self.classes = class_folders(self.folder)
        self._rows: list[_Row] = []
        passed = 0
        for label, name in enumerate(self.classes):
            files, others = pictures_in(self.folder / name)
            self._rows += [_row(path, self.folder, label) for path in progress(files, f"looking at {name}")]
            passed += others
        if passed:
            notice(f"{passed} files in {self.folder} are no pictures by their ending and are passed over.")
        if clear := [row.relative for row in self._rows if row.header.clear]:
            notice(f"{len(clear)} pictures have transparency, which is left out (first: {clear[0]}).")
        self._channels = 1 if all(row.header.mode in GREY for row in self._rows) else 3
        labels = np.array([row.label for row in self._rows], dtype=np.int64)
        self.targets = labels if reads == "labels" else None
        if reads == "captions":
            self.targets = tuple(self.classes[label] for label in labels)

    def __len__(self) -> int:
        return len(self._rows)

    def shape(self, row: int) -> Shape:
        header = self._rows[row].header
        return self._channels, header.height, header.width

    def place(self, row: int) -> str:
        return str(self._rows[row].header.path)

    def relative(self, row: int) -> str:
        """Class, folders and file of one picture, with "/" between them."""
        return self._rows[row].relative

    def pixels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.stack([self._decoded(self._rows[row].header) for row in np.asarray(rows)])

    def _decoded(self, header: PictureHeader) -> np.ndarray:
        picture = first_frame(header.path).convert("L" if self._channels == 1 else "RGB")
        array = np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, self._channels)
        if array.shape[:2] != (header.height, header.width):
            raise DataError(
                f"{header.path} has changed since it was looked at. Leave the folder alone while it is read."
            )
        return array.transpose(2, 0, 1)


def _row(path: Path, folder: Path, label: int) -> _Row:
    """One picture that can be protected.

    Raises:
        DataError: it can't.
    """
    relative, header = relative_name(path, folder), picture_header(path)
    if header.frames > 1:
        raise DataError(f"{path} is animated ({header.frames} frames). Give single pictures.")
    if header.mode not in (*GREY, *COLOUR):
        raise DataError(
            f"{path} has the mode {header.mode}, and what is protected has 8 bits. Save it as grey or RGB of 8 bits."
        )
    return _Row(header, relative, label)
