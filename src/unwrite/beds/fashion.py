"""Beds of real pictures: 28x28 clothes of Fashion-MNIST, once `unwrite data add fashion-mnist` has fetched them.

    fashion/class      one garment is forgotten
    fashion/random     a tenth of all rows

A bed takes the first rows of every class, so that a retrained model takes less than a minute on one core.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

from ..data.images.fetched import fashion_mnist
from .images import SHARE, Bed, _at_random, _by_class

if TYPE_CHECKING:
    from ..data.images.sets import TrainTest

__all__ = ["BEDS", "FASHION"]

ROWS, TEST_ROWS, EPOCHS = 6000, 2000, 8
GARMENT = "sneaker"
FASHION: dict[str, int] = {"num_classes": 10, "channels": 1, "image_size": 28}


@cache
def _rows() -> TrainTest:
    return fashion_mnist(limit=ROWS, test_limit=TEST_ROWS)


def _fashion(seed: int) -> TrainTest:
    """The same rows for every seed: what is drawn is the split, the holdout and the weights."""
    return _rows()


BEDS: dict[str, Bed] = {
    "fashion/class": Bed("fashion/class", _fashion, partial(_by_class, GARMENT), FASHION, EPOCHS),
    "fashion/random": Bed("fashion/random", _fashion, partial(_at_random, SHARE), FASHION, EPOCHS),
}
