"""A folder of classes, folder/class/picture, read a few pictures at a time.

Headers are read once, to know every size and to refuse by name what can't be protected; pixels are decoded when a batch is asked
for, so ten thousand pictures take the memory of a few. Nothing is ever written there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DataError, notice
from ...runs import progress
from ...runs.strict import strings_flaw
from .captions import captions_of
from .pictures import Pictures, Reads, Shape

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["MOST_PIXELS", "FolderPictures"]

MOST_PIXELS = 2**26  # of one picture: 8192 x 8192
FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "GIF",
    "WEBP",
    "TIFF",
    "PPM",
)  # whose readers are part of Pillow: none starts another program
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # by EXIF: width and height change places


@dataclass(frozen=True)
class _Header:
    """What is known of a file before it is decoded: its class, size, and whether it has colours and transparency."""

    path: Path
    relative: str
    label: int
    height: int
    width: int
    grey: bool
    clear: bool


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
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {self.folder}. Give one that holds a folder of pictures a class.")
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
        files = sorted(_files(self.folder))
        rows = [
            _header(path, self.folder, 0)
            for path in progress(files, f"looking at {self.folder.name}")
            if _is_picture(path.name)
        ]
        if not rows:
            raise DataError(f"{self.folder} holds no pictures ({', '.join(SUFFIXES)}). Fill it.")
        self._looked_at(rows, sum(path.suffix.lower() not in (".txt", ".csv", *SUFFIXES) for path in files))
        captions = captions_of(self.folder, [row.relative for row in rows], table)
        for row, own in zip(rows, captions, strict=True):
            if len(own) > 1 and not several:
                raise DataError(f"{row.path} has {len(own)} captions, and its noise is made from one. Leave one.")
        return captions

    def _of_classes(self) -> np.ndarray:
        """Reads the pictures of each class; `[rows]`, their labels."""
        self.classes = tuple(
            sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir() and not _hidden(entry.name))
        )
        if stray := sorted(
            entry.name for entry in self.folder.iterdir() if entry.is_file() and _is_picture(entry.name)
        ):
            raise DataError(
                f"{self.folder / stray[0]} lies in no class. Put every picture into the folder of its class."
            )
        if not self.classes:
            raise DataError(
                f"{self.folder} holds no folders of classes. Put the pictures of each class into a folder of its own."
            )
        rows: list[_Header] = []
        passed = 0
        for label, name in enumerate(self.classes):
            before = len(rows)
            files = sorted(_files(self.folder / name))
            rows += [
                _header(path, self.folder, label)
                for path in progress(files, f"looking at {name}")
                if _is_picture(path.name)
            ]
            passed += before + len(files) - len(rows)
            if len(rows) == before:
                raise DataError(f"{self.folder / name} holds no pictures ({', '.join(SUFFIXES)}). Fill or remove it.")
        self._looked_at(rows, passed)
        return np.array([row.label for row in rows], dtype=np.int64)

    def _looked_at(self, rows: list[_Header], passed: int) -> None:
        """Keeps the headers, and says what is passed over or left out."""
        self._headers = rows
        if passed:
            notice(f"{passed} files in {self.folder} are no pictures by their ending and are passed over.")
        if clear := [header.relative for header in rows if header.clear]:
            notice(f"{len(clear)} pictures have transparency, which is left out (first: {clear[0]}).")
        self._channels = 1 if all(header.grey for header in rows) else 3

    def __len__(self) -> int:
        return len(self._headers)

    def shape(self, row: int) -> Shape:
        return self._channels, self._headers[row].height, self._headers[row].width

    def place(self, row: int) -> str:
        return str(self._headers[row].path)

    def relative(self, row: int) -> str:
        """Class, folders and file of one picture, with "/" between them."""
        return self._headers[row].relative

    def pixels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.stack([self._decoded(self._headers[row]) for row in np.asarray(rows)])

    def _decoded(self, header: _Header) -> np.ndarray:
        with _opened(header.path) as file:
            picture = _upright(file, header.path, "L" if self._channels == 1 else "RGB")
        array = np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, self._channels)
        if array.shape[:2] != (header.height, header.width):
            raise DataError(
                f"{header.path} has changed since it was looked at. Leave the folder alone while it is read."
            )
        return array.transpose(2, 0, 1)


def _header(path: Path, folder: Path, label: int) -> _Header:
    relative = PurePosixPath(path.relative_to(folder)).as_posix()
    if flaw := strings_flaw(relative):
        raise DataError(f"{str(path)!a} has a name with {flaw}. Rename it.")
    with _opened(path) as file:
        width, height = file.size
        if width * height > MOST_PIXELS:
            raise DataError(
                f"{path} has {width}x{height} pixels, of {MOST_PIXELS:,} at most. Scale it down or remove it."
            )
        if getattr(file, "n_frames", 1) > 1:
            raise DataError(f"{path} is animated ({getattr(file, 'n_frames', 0)} frames). Give single pictures.")
        if file.mode not in (*GREY, *COLOUR):
            raise DataError(
                f"{path} has the mode {file.mode}, and what is protected has 8 bits. Save it as grey or RGB of 8 bits."
            )
        turned = _orientation(file) in _TURNED
        clear = file.mode in ("LA", "PA", "RGBA") or "transparency" in file.info
        return _Header(
            path, relative, label, width if turned else height, height if turned else width, file.mode in GREY, clear
        )


def _opened(path: Path) -> Picture:
    """The picture with its header read.

    Raises:
        DataError: it is no picture.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a picture that is too large there is one line, ours
        try:
            return Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError:
            raise DataError(f"{path} has more than {MOST_PIXELS:,} pixels. Scale it down or remove it.") from None
        except Exception as error:  # each format's reader has its own
            raise DataError(f"{path} is no picture that can be read ({_said(error)}). Mend or remove it.") from None


def _upright(file: Picture, path: Path, mode: str) -> Picture:
    """The decoded picture, turned as its EXIF says.

    Raises:
        DataError: it is damaged.
    """
    from PIL import ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to be told of transparency stands in a notice
        try:
            file.load()
            return ImageOps.exif_transpose(file).convert(mode)
        except Exception as error:
            raise DataError(f"{path} is damaged ({_said(error)}). Mend or remove it.") from None


def _orientation(file: Picture) -> Any:
    try:
        return file.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF says nothing
        return None


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder that aren't hidden; links to folders aren't followed."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (Path(root, name) for name in names if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _said(error: Exception) -> str:
    if "cannot identify" in str(error):
        return "its content is of no known format"
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
