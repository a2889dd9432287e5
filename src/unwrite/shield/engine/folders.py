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
from .captions import captions_of
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
    """The pictures of a folder of classes, in the order of their names; where they have captions, of any folder.

    All have one channel where all are grey, otherwise three. A class is a folder at the top; folders in it are of the same class.
    """

    def __init__(
        self,
        folder: str | Path,
        reads: Reads = "labels",
        captions: str | Path | None = None,
        *,
        names: bool = True,
        several: bool = False,
    ) -> None:
        """Reads the headers, and the captions.

        Args:
            folder: holds a folder a class; pictures with captions may lie anywhere in it. Hidden files, and files that are no
                pictures by their ending, are passed over.
            reads: what a shield reads of each: a label, a caption, or nothing.
            captions: a table of captions (see `captions`); where that is None, classes' names stand for them.
            names: whether they do; otherwise captions are looked for in the folder.
            several: a picture may have several captions, all of which are `captions`.

        Raises:
            DataError: no such folder, no classes or an empty one, pictures outside a class, or a picture that is damaged, too
                large, animated, of more than 8 bits, or without a caption or with several; the file is named.
        """
        self.folder = Path(folder)
        self.name = str(folder)
        self.classes: tuple[str, ...] = ()
        self.captions: tuple[tuple[str, ...], ...] = ()
        if reads == "captions" and (captions is not None or not names):
            self.captions = self._with_captions(None if captions is None else Path(captions), several)
            self.targets = tuple(one[0] for one in self.captions)
            return
        labels = self._of_classes()
        self.targets = labels if reads == "labels" else None
        if reads == "captions":
            self.targets = tuple(self.classes[label] for label in labels)

    def _with_captions(self, table: Path | None, several: bool) -> tuple[tuple[str, ...], ...]:
        """Reads all pictures below the folder; the captions of each."""
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {self.folder}. Give one that holds pictures.")
        files, others = pictures_in(self.folder, beside=(".txt", ".csv"))
        rows = [_row(path, self.folder, 0) for path in progress(files, f"looking at {self.folder.name}")]
        self._looked_at(rows, others)
        captions = captions_of(self.folder, [row.relative for row in rows], table)
        for row, own in zip(rows, captions, strict=True):
            if len(own) > 1 and not several:
                raise DataError(
                    f"{row.header.path} has {len(own)} captions, and its noise is made from one. Leave one."
                )
        return captions

    def _of_classes(self) -> np.ndarray:
        """Reads the pictures of each class; `[rows]`, their labels."""
        self.classes = class_folders(self.folder)
        rows: list[_Row] = []
        passed = 0
        for label, name in enumerate(self.classes):
            files, others = pictures_in(self.folder / name)
            rows += [_row(path, self.folder, label) for path in progress(files, f"looking at {name}")]
            passed += others
        self._looked_at(rows, passed)
        return np.array([row.label for row in rows], dtype=np.int64)

    def _looked_at(self, rows: list[_Row], passed: int) -> None:
        """Keeps the headers, and says what is passed over or left out."""
        self._rows = rows
        if passed:
            notice(f"{passed} files in {self.folder} are no pictures by their ending and are passed over.")
        if clear := [row.relative for row in rows if row.header.clear]:
            notice(f"{len(clear)} pictures have transparency, which is left out (first: {clear[0]}).")
        self._channels = 1 if all(row.header.mode in GREY for row in rows) else 3

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
