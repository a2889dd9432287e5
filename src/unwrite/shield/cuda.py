"""One small secret blur for each class: a network learns which blur it sees, and not what the picture shows.

Every class gets a random k x k filter from the key, one entry of which is 1 at a random place, so that it blurs and shifts. Each
picture is correlated with its class's filter and divided by its own largest value. No surrogate and no gradients. (CUDA,
convolution-based unlearnable datasets, arXiv 2303.04278)

    x' = (f_y * x) / max(f_y * x),   f_y[p] = 1 at one random p, U(0, blur) elsewhere

The change is no small one in any norm: look at the pictures, and name no budget. Filters are drawn as the official code draws them
from the same seed, and applied by float64 sums in a fixed order, so that a key gives the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import MethodError, notice, setting
from .base import Fitted, Protection, Shield, need_number
from .engine.keys import legacy_generator
from .engine.pictures import PictureBatch, Pictures

__all__ = ["CUDA", "correlated"]


@dataclass(frozen=True, kw_only=True)
class CUDA(Shield):
    """Blurs the pictures of each class by a secret filter of its own (arXiv 2303.04278, CVPR 2023).

    Fitted state: `filters_`, `[classes, kernel_size, kernel_size]`, float32. Pictures may differ in size.

    Args:
        kernel_size: pixels of a filter's side, odd; 3 in the paper for 32 x 32 pixels.
        blur: the other entries are drawn from 0 to this, at most 1; 0 only shifts.
        centre: the entry at the random place, above 0.
        mix: the share of pictures that is protected, drawn one by one in their order, 0 to 1.
    """

    kernel_size: int = 3
    blur: float = 0.3
    centre: float = 1.0
    mix: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_number("kernel_size", self.kernel_size, at_least=1, whole=True)
        if self.kernel_size % 2 == 0:
            raise MethodError(f"{setting('kernel_size')} is {self.kernel_size!r}; it must be odd, such as 3.")
        need_number("blur", self.blur, at_least=0, at_most=1)
        need_number("centre", self.centre, above=0)
        need_number("mix", self.mix, at_least=0, at_most=1)

    def layout(self) -> Mapping[str, tuple[str, int]]:
        return {"filters": ("float32", 3)}

    def _fit(self, pictures: Pictures) -> Fitted:
        return Fitted({"filters": self._drawn(len(pictures.classes), 0)[0].copy()})

    def _protect(self, protection: Protection, batch: PictureBatch) -> np.ndarray:
        assert isinstance(batch.targets, np.ndarray)
        protected, black = batch.pixels.copy(), list[int]()
        for row in self._chosen(batch.at, len(protection.facts["classes"])).nonzero()[0]:
            blurred = correlated(batch.pixels[row], protection.state["filters"][batch.targets[row]])
            if (peak := blurred.max()) > 0:
                protected[row] = np.clip(blurred / peak * 255, 0, 255).astype(np.uint8)  # cut off, not rounded
            else:
                black.append(int(batch.at[row]))
        if black:
            notice(f"{len(black)} pictures are black all over and stay as they are (first: image {black[0]}).")
        return protected

    def _chosen(self, at: np.ndarray, classes: int) -> np.ndarray:
        """`[rows]`, booleans: which of the pictures at these places are protected."""
        if self.mix == 1:
            return np.ones(len(at), dtype=bool)
        # Draws come in one stream; a power of two, so that a folder's batches ask for few streams.
        draws = self._drawn(classes, 1 << int(at.max()).bit_length())[1]
        return draws[at] < self.mix

    def _drawn(self, classes: int, pictures: int) -> tuple[np.ndarray, np.ndarray]:
        """The filters, and a number from 0 to 1 for each picture, from one generator."""
        return _drawn(self.key, classes, self.kernel_size, self.blur, self.centre, pictures)


def correlated(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A picture correlated with a kernel, channel by channel, zeros beyond its edges; float64.

    Args:
        picture: `[channels, height, width]`
        kernel: `[k, k]`, k odd.
    """
    _, height, width = picture.shape
    reach = len(kernel) // 2
    padded = np.pad(picture.astype(np.float64), ((0, 0), (reach, reach), (reach, reach)))
    total = np.zeros(picture.shape)
    for row, entries in enumerate(kernel.astype(np.float64)):
        for column, entry in enumerate(entries):
            total += entry * padded[:, row : row + height, column : column + width]
    return total


@lru_cache(maxsize=2)
def _drawn(
    key: int, classes: int, size: int, blur: float, centre: float, pictures: int
) -> tuple[np.ndarray, np.ndarray]:
    """In the order of the official code, which draws three filters a class and keeps the first."""
    random = legacy_generator(key)
    filters = np.empty((classes, size, size), dtype=np.float32)
    for number in range(classes):
        filters[number] = random.uniform(0, blur, (3, 1, size, size))[0, 0]
        row, column = random.randint(size), random.randint(size)
        filters[number, row, column] = centre
    draws = random.random_sample(pictures)
    for array in (filters, draws):
        array.flags.writeable = False
    return filters, draws
