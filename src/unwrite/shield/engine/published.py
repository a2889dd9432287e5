"""Pictures as whoever trains on them reads them: of one size, with labels, a batch at a time.

What fits is decoded once and held as bytes; a set of more than `MOST_HELD` bytes is decoded anew whenever a batch is asked for, so
that a folder may be larger than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...data.images.images import ImageBatch, Images
from ...errors import DataError, MethodError, setting
from ...runs import progress
from .folders import FolderPictures
from .pictures import ArrayPictures, Pictures, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PublishedPictures", "as_published"]

MOST_HELD = 2**30  # bytes
MOST_SIDE = 2**12
BATCH = 256


class PublishedPictures:
    """A set of pictures and labels that a training reads.

    Attributes:
        name: of the set, in messages.
        classes: the labels' names.
        labels: `[rows]`, int64, as places among the classes.
        shape: (channels, height, width) of every picture.
    """

    def __init__(
        self,
        pictures: Pictures,
        *,
        size: int | None = None,
        classes: Sequence[str] | None = None,
        channels: int | None = None,
        order: np.ndarray | None = None,
        noise: np.ndarray | None = None,
    ) -> None:
        """Checks sizes and classes; decodes nothing.

        Args:
            pictures: with labels.
            size: to which all are scaled, height and width; none where they have one size.
            classes: whose places are the labels, by name; the set's own where None.
            channels: 3 for grey pictures that stand beside coloured ones; the set's own where None.
            order: the places of the pictures to read, in this order; all in theirs where None.
            noise: `[classes, channels, height, width]`, levels of 255 that are added to each picture of a class.

        Raises:
            DataError: pictures of several sizes without `size`; a class that is not among the classes.
            MethodError: a size that is no whole number of 1 to 4096.
        """
        whole = isinstance(size, int) and not isinstance(size, bool)
        if size is not None and not (whole and 1 <= size <= MOST_SIDE):
            raise MethodError(f"{setting('size')} is {size!r}; it must be a whole number from 1 to {MOST_SIDE}.")
        self.name, self._pictures, self._size, self._noise = pictures.name, pictures, size, noise
        self.classes = tuple(pictures.classes if classes is None else classes)
        self._order = np.arange(len(pictures)) if order is None else order
        own = pictures.shape(0)[0]
        self._repeats = 1 if channels is None else channels // own
        if size is None:
            shape = pictures.one_shape(f"a network reads one size: {setting('size', 32)} scales them")
        else:
            shape = (own, size, size)
        self.shape: Shape = (shape[0] * self._repeats, *shape[1:])
        self.labels = pictures.labels[self._order]
        if classes is not None:
            known = {name: label for label, name in enumerate(self.classes)}
            if new := [name for name in pictures.classes if name not in known]:
                raise DataError(
                    f"{pictures.name} has the class {new[0]!r}, and those trained on are {', '.join(self.classes[:20])}. Name them alike."
                )
            self.labels = np.array([known[pictures.classes[label]] for label in self.labels], dtype=np.int64)
        self._held: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: Sequence[int] | Tensor) -> ImageBatch:
        """Pixels in 0..1, labels and places of these pictures."""
        at = np.asarray(rows, dtype=np.int64)
        pixels = torch.from_numpy(self.pixels(at)).float() / 255
        return ImageBatch(pixels, torch.from_numpy(self.labels[at]), torch.from_numpy(at))

    @property
    def bytes(self) -> int:
        """Of all pixels at this size."""
        return len(self) * int(np.prod(self.shape))

    @cached_property
    def hash(self) -> str:
        """Of the pixels as they are read, the labels and the classes' names."""
        digest = hashlib.blake2b(repr((self.shape, self.classes)).encode(), digest_size=32)
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        for at in progress(list(self.batches()), f"reading {self.name}"):
            digest.update(self.pixels(at).tobytes())
        return digest.hexdigest()

    def batches(self) -> Iterator[np.ndarray]:
        """The places of all pictures in order, a batch at a time."""
        for start in range(0, len(self), BATCH):
            yield np.arange(start, min(len(self), start + BATCH))

    def pixels(self, at: np.ndarray) -> np.ndarray:
        """`[rows, channels, height, width]`, uint8."""
        if self.bytes > MOST_HELD:
            return self._read(at)
        if self._held is None:
            self._held = np.concatenate([self._read(rows) for rows in self.batches()])
        return self._held[at]

    def with_noise(self, noise: np.ndarray) -> PublishedPictures:
        """The same pictures with noise of each class on them, `[classes, channels, height, width]`, in levels of 255."""
        noisy = PublishedPictures(
            self._pictures,
            size=self._size,
            classes=self.classes,
            channels=self.shape[0],
            order=self._order,
            noise=noise,
        )
        noisy.name = f"{self.name} with noise"
        return noisy

    def _read(self, at: np.ndarray) -> np.ndarray:
        places = self._order[at]
        if self._size is None:
            pixels = self._pictures.pixels(places)
        else:
            pixels = np.concatenate([_scaled(self._pictures.pixels([place]), self._size) for place in places])
        pixels = np.repeat(pixels, self._repeats, axis=1)
        if self._noise is None:
            return pixels
        return np.clip(pixels.astype(np.int16) + self._noise[self.labels[at]], 0, 255).astype(np.uint8)


def as_published(
    pictures: PublishedPictures | Pictures | Images | str | Path, *, size: int | None = None
) -> PublishedPictures:
    """A set in any form: a folder of classes by its path, an `Images`, or what was read already."""
    if isinstance(pictures, PublishedPictures):
        return pictures
    if isinstance(pictures, str | Path):
        pictures = FolderPictures(pictures)
    return PublishedPictures(
        pictures if isinstance(pictures, Pictures) else ArrayPictures(pictures, None, "labels"), size=size
    )


def _scaled(pixels: np.ndarray, side: int) -> np.ndarray:
    """One picture, `[1, channels, height, width]`, at another size, bicubic."""
    from PIL import Image

    if pixels.shape[2:] == (side, side):
        return pixels
    planes = [Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC) for plane in pixels[0]]
    return np.stack([np.asarray(plane, dtype=np.uint8) for plane in planes])[None]
