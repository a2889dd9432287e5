"""Forward-cost curves on disk: the shape of one run is the prior of the next."""

from __future__ import annotations

import math
from typing import Any

from ....runs import hash_json, store_json, stored_json
from .costs import SIZES

_PLACE = ("forward-costs",)


def read_shape(fingerprint: str) -> tuple[float, ...] | None:
    """The stored shape, or None; one that is damaged counts as none, and is dropped."""
    return stored_json(_PLACE, hash_json(fingerprint), _shape)


def write_shape(fingerprint: str, shape: tuple[float, ...]) -> None:
    """Keeps a shape; a full or read-only disk is no reason to fail."""
    value = {"fingerprint": fingerprint, "sizes": SIZES, "shape": shape}
    store_json(_PLACE, hash_json(fingerprint), value, _shape)


def _shape(stored: Any) -> tuple[float, ...]:
    shape = tuple(float(ratio) for ratio in stored["shape"])
    if list(stored["sizes"]) != list(SIZES) or len(shape) != len(SIZES):
        raise ValueError("its sizes are others")
    if not all(0 < ratio < math.inf for ratio in shape):
        raise ValueError("a forward takes no time, or endless time")
    return shape
