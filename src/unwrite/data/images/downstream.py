"""Downstream sets made of digits: other tasks on the same strokes, on which the features of a model for digits are judged.

rotated           all digits a quarter turn to the left       10 labels, the digit
mosaics           two digits squeezed side by side            10 labels, the last digit of their sum
loop, parity      the digits as they are                      2 labels, of the digit
alike             the digits of some classes alone            a label a class
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError
from .images import Images, first_few

__all__ = ["alike", "digit_downstream", "has_loop", "mosaics", "parity", "rotated"]

LOOPS = (0, 6, 8, 9)
_MOSAICS = 17  # keeps these draws apart from others of the same seed


def rotated(rows: Images) -> Images:
    """Every image a quarter turn to the left, with its label.

    Raises:
        DataError: images that aren't square, or have targets.
    """
    _labels(rows)
    _, height, width = rows.shape
    if height != width:
        raise DataError(f"{rows.name} has images of {height}x{width}; only square ones can be turned by a quarter.")
    return _made(rows.pixels.rot90(1, (2, 3)), _labels(rows), rows.classes, f"{rows.name}, rotated")


def mosaics(rows: Images, copies: int = 16, seed: int = 0) -> Images:
    """Two digits of different classes side by side, each at half its width; the label is the last digit of their sum.

    Args:
        rows: of ten classes in the order of the digits, an even number of pixels wide.
        copies: images of every pair of classes; which digits they show is drawn by the seed.

    Raises:
        DataError: other classes, a class without a row, less than one copy, an odd width.
    """
    labels = _labels(rows)
    if rows.classes != tuple("0123456789") or len(labels.unique()) < 10:
        raise DataError(f"mosaics need rows of all ten digits; {rows.name} has {first_few(labels.unique().tolist())}.")
    if copies < 1 or rows.shape[2] % 2:
        raise DataError(f"{copies} copies of images {rows.shape[2]} wide can't be made. Give 1 or more, an even width.")
    rng = np.random.default_rng([seed, _MOSAICS])
    halves = rows.pixels.unflatten(3, (-1, 2)).mean(4)  # [rows, channels, height, width / 2]
    members = [np.flatnonzero(labels.numpy() == digit) for digit in range(10)]
    pairs = [pair for pair in combinations(range(10), 2) for _ in range(copies)]
    drawn = torch.tensor([[rng.choice(members[one]) for one in pair] for pair in pairs])  # [images, 2]
    pixels = torch.cat([halves[drawn[:, 0]], halves[drawn[:, 1]]], 3)
    return _made(pixels, torch.tensor([sum(pair) % 10 for pair in pairs]), rows.classes, f"{rows.name}, mosaics")


def has_loop(rows: Images) -> Images:
    """The images, labelled by whether their digit has a closed loop: 0, 6, 8 and 9 have one."""
    labels = torch.isin(_labels(rows), torch.tensor(LOOPS)).long()
    return _made(rows.pixels, labels, ("open", "loop"), f"{rows.name}, loop")


def parity(rows: Images) -> Images:
    """The images, labelled by whether their digit is odd."""
    return _made(rows.pixels, _labels(rows) % 2, ("even", "odd"), f"{rows.name}, parity")


def alike(rows: Images, classes: Sequence[int]) -> Images:
    """The rows of these classes alone, labelled by their place among them.

    Raises:
        DataError: fewer than two classes, or none of their rows.
    """
    chosen = list(dict.fromkeys(classes))
    if len(chosen) < 2:
        raise DataError(f"classes {list(classes)} are no task to tell apart. Give two or more.")
    own = rows.where(torch.isin(_labels(rows), torch.tensor(chosen)))
    places = torch.tensor([chosen.index(label) for label in _labels(own).tolist()])
    return _made(own.pixels, places, tuple(rows.classes[one] for one in chosen), f"{rows.name}, alike")


def digit_downstream(rows: Images, like: Sequence[int] = (3, 8), seed: int = 0) -> dict[str, Images]:
    """All five by name, made of rows that nothing was trained on.

    Args:
        rows: digits.
        like: the classes of "alike".
        seed: of the mosaics.
    """
    return {
        "rotated": rotated(rows),
        "mosaics": mosaics(rows, seed=seed),
        "loop": has_loop(rows),
        "parity": parity(rows),
        "alike": alike(rows, like),
    }


def _labels(rows: Images) -> Tensor:
    if rows.labels is None:
        raise DataError(f"{rows.name} has targets; a downstream task is made of labels.")
    return rows.labels


def _made(pixels: Tensor, labels: Tensor, classes: tuple[str, ...], name: str) -> Images:
    return Images(pixels.clamp(0, 1), labels, classes=classes, name=name)
