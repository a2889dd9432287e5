"""Sets of 8-bit pictures as shields see them: in memory here, in a folder of classes in `folders`.

What is published is 8 bits deep, so that is what is protected: floats in 0..1 are brought to 0..255 first, and noise is rounded
within its budget. A set hands out its pictures a batch at a time, so that none needs to be in memory whole.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...data.images.images import Images
from ...errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["ArrayPictures", "PictureBatch", "Pictures", "Reads", "Shape", "rows_at_once"]

Reads = Literal["labels", "captions", "nothing"]
Shape = tuple[int, int, int]  # channels, height, width
Targets = np.ndarray | tuple[str, ...] | None
MOST_ROWS, MOST_VALUES = 64, 2**24  # of a batch
FEWEST = 2  # pictures, and classes


@dataclass(frozen=True)
class PictureBatch:
    """Some pictures of one size.

    Args:
        pixels: `[rows, channels, height, width]`, uint8.
        targets: `[rows]`, labels (int64) or captions, whichever the shield reads; None for neither.
        at: `[rows]`, where they stand in their set.
    """

    pixels: np.ndarray
    targets: Targets
    at: np.ndarray


class Pictures(ABC):
    """A set of pictures with what a shield reads of each.

    Attributes:
        name: of the set, in messages.
        targets: `[rows]`, labels (int64) or captions; None for neither.
        classes: the labels' names; empty without labels.
    """

    name: str
    targets: Targets
    classes: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def shape(self, row: int) -> Shape:
        """(channels, height, width) of one picture."""

    @abstractmethod
    def place(self, row: int) -> str:
        """Where one picture is from, for messages."""

    @abstractmethod
    def pixels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """`[rows, channels, height, width]`, uint8, of pictures that have one size."""

    @property
    def labels(self) -> np.ndarray:
        """`[rows]`, int64, of a set that has labels."""
        assert isinstance(self.targets, np.ndarray)
        return self.targets

    def one_shape(self, why: str) -> Shape:
        """The size that all pictures have.

        Args:
            why: one size is needed, the end of the refusal's first sentence.

        Raises:
            DataError: the first picture of another size, by its place.
        """
        first = self.shape(0)
        for row in range(1, len(self)):
            if (shape := self.shape(row)) != first:
                raise DataError(
                    f"{self.place(row)} has {_size(shape)} and {self.place(0)} {_size(first)}, and {why}. "
                    "Bring all pictures to one size first."
                )
        return first

    def batch(self, rows: Sequence[int] | np.ndarray) -> PictureBatch:
        """The pictures at these places."""
        at = np.asarray(rows, dtype=np.int64)
        targets: Targets = self.targets
        if isinstance(targets, np.ndarray):
            targets = targets[at]
        elif targets is not None:
            targets = tuple(targets[row] for row in at)
        return PictureBatch(self.pixels(at), targets, at)

    def batches(self) -> Iterator[PictureBatch]:
        """All pictures in order, a few of one size at a time."""
        start = 0
        while start < len(self):
            shape, end = self.shape(start), start + 1
            while end < min(len(self), start + rows_at_once(shape)) and self.shape(end) == shape:
                end += 1
            yield self.batch(range(start, end))
            start = end


class ArrayPictures(Pictures):
    """Pictures of one size in an array, a tensor or an `Images`."""

    def __init__(self, images: ArrayLike | Images, targets: Any, reads: Reads) -> None:
        """Checks all of it.

        Args:
            images: uint8, or floats in 0..1, as `[rows, height, width]`, `[rows, height, width, channels]` or
                `[rows, channels, height, width]` of 1 or 3 channels; or a set of images, which has its labels.
            targets: `[rows]`, labels (whole numbers from 0) or captions; ignored where the shield reads neither. An `Images`
                without captions has its classes' names for them.
            reads: what the shield reads of each picture.

        Raises:
            DataError: another shape, type or range; targets of another number or kind.
        """
        self.name, self._given = "images", images
        names: tuple[str, ...] = ()
        if isinstance(images, Images):
            self.name, names = images.name, images.classes
            if targets is None and images.labels is not None:
                targets = [names[label] for label in images.labels] if reads == "captions" else images.labels
        array = _array(images.pixels if isinstance(images, Images) else images)
        self._last = not isinstance(images, Images) and _channels_last(array.shape)
        self._ndim, self._dtype = array.ndim, array.dtype
        self._rows = _bytes(_channels_first(array, self._last))  # [rows, channels, height, width]
        self.targets, self.classes = None, ()
        if reads == "captions":
            self.targets = _captions(targets, len(self))
        elif reads == "labels":
            self.targets = _labels(targets, len(self))
            self.classes = names or tuple(map(str, range(int(self.targets.max()) + 1)))

    def __len__(self) -> int:
        return len(self._rows)

    def shape(self, row: int) -> Shape:
        channels, height, width = self._rows.shape[1:]
        return channels, height, width

    def place(self, row: int) -> str:
        return f"image {row}"

    def pixels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._rows[np.asarray(rows)]

    def given_form(self, protected: np.ndarray) -> Any:
        """Protected pictures as the ones given were: their kind, layout and type. Rows that are as they were are returned untouched.

        Args:
            protected: `[rows, channels, height, width]`, uint8.
        """
        changed = (protected != self._rows).any(axis=(1, 2, 3))
        given = self._given.pixels if isinstance(self._given, Images) else self._given
        array = _array(given).copy()
        pixels = protected[changed] if self._dtype == np.uint8 else (protected[changed] / 255).astype(self._dtype)
        array[changed] = pixels.transpose(0, 2, 3, 1) if self._last else pixels.reshape(-1, *array.shape[1:])
        if isinstance(self._given, Images):
            return dataclasses.replace(self._given, pixels=array)
        if hasattr(given, "detach"):
            import torch

            return torch.from_numpy(array)
        return array


def rows_at_once(shape: Shape) -> int:
    """How many pictures of this shape are in memory at a time."""
    channels, height, width = shape
    return max(1, min(MOST_ROWS, MOST_VALUES // (channels * height * width)))


def check_fitting(pictures: Pictures, reads: Reads) -> None:
    """Refuses a set that there is nothing to learn from.

    Raises:
        DataError: one picture, or one class.
    """
    if len(pictures) < FEWEST:
        raise DataError(
            f"{pictures.name} has one picture. A protection is of a data set: give at least {FEWEST} pictures."
        )
    if reads == "labels" and len(np.unique(pictures.labels)) < FEWEST:
        raise DataError(
            f"all pictures of {pictures.name} are of one class, and what is tied to a class hides nothing there. Give at least "
            f"{FEWEST} classes."
        )


def _array(images: Any) -> np.ndarray:
    if hasattr(images, "detach"):
        images = images.detach().cpu().numpy()
    try:
        array = np.asarray(images)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.dtype == object:
        raise DataError(
            "the images are no one array of numbers, as pictures of several sizes are none. Give those as a folder of classes."
        )
    return array


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is `[rows, height, width, channels]`.

    Raises:
        DataError: it is no set of pictures, or may be both.
    """
    if len(shape) in (3, 4) and 0 in shape:
        raise DataError(f"the images have shape {list(shape)}, which holds none. Give at least one.")
    if len(shape) == 3:
        return False
    first, last = len(shape) == 4 and shape[1] in (1, 3), len(shape) == 4 and shape[3] in (1, 3)
    if not (first or last):
        raise DataError(
            f"the images have shape {list(shape)}. Give [rows, height, width], [rows, height, width, channels] or "
            "[rows, channels, height, width] of 1 or 3 channels; a single picture has a first axis of 1."
        )
    if first and last:
        raise DataError(
            f"of images of shape {list(shape)} it can't be told which axis is the channels. Give pictures of more than 3 pixels' width."
        )
    return last


def _channels_first(array: np.ndarray, last: bool) -> np.ndarray:
    if array.ndim == 3:
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if last else array


def _bytes(array: np.ndarray) -> np.ndarray:
    """Pixels as bytes, each float at its nearest level."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"the images are {array.dtype}. Give uint8, or floats in 0..1.")
    within = (array >= 0) & (array <= 1)  # not NaN
    if not within.all():
        row = int((~within).any(axis=(1, 2, 3)).argmax())
        value = float(array[row][~within[row]][0])
        raise DataError(f"image {row} has a pixel of {value:g}. Give uint8, or floats in 0..1.")
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)


def _labels(labels: Any, rows: int) -> np.ndarray:
    if labels is None:
        raise DataError("there are no labels. Give one a picture: whole numbers from 0.")
    array = _array(labels)
    if array.shape != (rows,):
        raise DataError(f"there are {rows} images and labels of shape {list(array.shape)}. Give one each, [{rows}].")
    if array.dtype.kind not in "iu":
        raise DataError(f"the labels are {array.dtype}. Give whole numbers from 0.")
    if array.min() < 0:
        row = int((array < 0).argmax())
        raise DataError(f"the label of image {row} is {int(array[row])}. Give whole numbers from 0.")
    return array.astype(np.int64)


def _captions(captions: Any, rows: int) -> tuple[str, ...]:
    if captions is None or isinstance(captions, str):
        raise DataError("there are no captions. Give a list of texts, one a picture.")
    texts = tuple(captions)
    if len(texts) != rows:
        raise DataError(f"there are {rows} images and {len(texts)} captions. Give one each.")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"the caption of image {row} is {text!r:.40}. Give a text.")
    return texts


def _size(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels of {channels} {'channel' if channels == 1 else 'channels'}"
