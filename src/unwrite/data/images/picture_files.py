"""Picture files, read in one way wherever a folder of them is read: in two steps, header and pixels, and never written.

Whatever Pillow reads by itself is read. Of a file with several frames it is the first, turned as its EXIF says. Formats whose reader
starts another program, or needs one that isn't there, are left out. What is damaged, too large or no picture is refused by name.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...errors import DataError, MissingExtra
from ...runs.strict import strings_flaw

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = [
    "GREY",
    "MOST_PIXELS",
    "PictureHeader",
    "class_folders",
    "first_frame",
    "is_picture",
    "picture_header",
    "pictures_in",
    "relative_name",
]

MOST_PIXELS = 2**26  # of one picture: 8192 x 8192
GREY = ("1", "L", "LA", "La")
_ELSEWHERE = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC")  # read by other programs, or by none
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # by EXIF: width and height change places


@dataclass(frozen=True)
class PictureHeader:
    """What is known of a picture before it is decoded.

    Args:
        width, height: as it is seen, turned by its EXIF.
        mode: Pillow's name for how a pixel is stored.
        frames: more than one of an animation or a file of several pages.
        clear: whether it has transparency.
    """

    path: Path
    width: int
    height: int
    mode: str
    frames: int
    clear: bool


def picture_header(path: Path) -> PictureHeader:
    """The header of a picture; its pixels are not decoded.

    Raises:
        DataError: it is no picture, or too large.
    """
    with _opened(path) as file:
        width, height = file.size
        if width * height > MOST_PIXELS:
            raise DataError(
                f"{path} has {width}x{height} pixels, of {MOST_PIXELS:,} at most. Scale it down or remove it."
            )
        try:
            frames = int(getattr(file, "n_frames", 1))
        except Exception as error:  # a file that ends within its frames
            raise _damaged(path, error) from None
        turned = _orientation(file) in _TURNED
        clear = file.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in file.info
        return PictureHeader(
            path, height if turned else width, width if turned else height, file.mode, frames, bool(clear)
        )


def first_frame(path: Path) -> Picture:
    """The decoded picture in the mode it is stored in, upright.

    Raises:
        DataError: it is no picture, too large, or damaged.
    """
    from PIL import ImageOps

    with _opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to be told of transparency stands in a notice
        if file.width * file.height > MOST_PIXELS:
            raise DataError(
                f"{path} has {file.width}x{file.height} pixels, of {MOST_PIXELS:,} at most. Scale it down or remove it."
            )
        try:
            file.load()
            return ImageOps.exif_transpose(file)
        except Exception as error:  # each format's decoder has its own
            raise _damaged(path, error) from None


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of a folder's classes, in order: the folders in it that aren't hidden.

    Raises:
        DataError: there is no such folder, it has no classes, or a picture lies in none.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}. Give one that holds a folder of pictures a class.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry.name))
    if stray := sorted(entry.name for entry in folder.iterdir() if entry.is_file() and is_picture(entry.name)):
        raise DataError(f"{folder / stray[0]} lies in no class. Put every picture into the folder of its class.")
    if not names:
        raise DataError(
            f"{folder} holds no folders of classes. Put the pictures of each class into a folder of its own."
        )
    return tuple(names)


def pictures_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures below a folder, in order, and the other files.

    Raises:
        DataError: there are none, or one has a name that no record can hold.
    """
    files = sorted(_files(folder))
    pictures = [path for path in files if is_picture(path.name)]
    if not pictures:
        raise DataError(f"{folder} holds no pictures (.png, .jpg and other endings). Fill or remove it.")
    return pictures, [path for path in files if not is_picture(path.name)]


def relative_name(path: Path, folder: Path) -> str:
    """The name of a file below a folder, with "/" between its parts.

    Raises:
        DataError: it is a name that no record can hold.
    """
    relative = PurePosixPath(path.relative_to(folder)).as_posix()
    if flaw := strings_flaw(relative):
        raise DataError(f"{str(path)!a} has a name with {flaw}. Rename it.")
    return relative


def is_picture(name: str) -> bool:
    """Whether a file is one by its ending."""
    return Path(name).suffix.lower() in _formats()[1]


def ending_of(content: bytes) -> str:
    """The ending by which a file with these bytes is known as a picture; its first bytes are read and nothing is decoded.

    Raises:
        DataError: it is no picture that is read here; the end of a sentence that begins with what it is.
    """
    formats = _formats()[0]
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=formats) as picture:
            form = picture.format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"can't be read ({str(error).splitlines()[0][:80]}). Leave it out.") from None
    usual = {"JPEG": ".jpg", "TIFF": ".tif"}
    return usual.get(str(form)) or next(
        ending for ending, name in Image.registered_extensions().items() if name == form
    )


@cache
def _formats() -> tuple[tuple[str, ...], frozenset[str]]:
    """The formats that are read, and the endings of their files."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", "vision") from None
    Image.init()
    formats = tuple(sorted(set(Image.OPEN) - set(_ELSEWHERE)))
    return formats, frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def _opened(path: Path) -> Picture:
    """The picture with its header read.

    Raises:
        DataError: it is no picture.
    """
    formats, _ = _formats()
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a picture that is too large there is one line, ours
        try:
            return Image.open(path, formats=formats)
        except Image.DecompressionBombError:
            raise DataError(f"{path} has more than {MOST_PIXELS:,} pixels. Scale it down or remove it.") from None
        except Exception as error:  # each format's reader has its own
            raise DataError(f"{path} is no picture that can be read ({_said(error)}). Mend or remove it.") from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged ({_said(error)}). Mend or remove it.")


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


def _said(error: Exception) -> str:
    if "cannot identify" in str(error):
        return "its content is of no known format"
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
