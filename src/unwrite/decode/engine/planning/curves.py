"""Forward-cost curves on disk: the shape of one run is the prior of the next."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from ....runs import hash_json, store_json, stored_json
from ..tree import DraftTree
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


def calibrate(runtime: Any, length: int = 128, repeats: int = 5, path: str | None = None) -> dict[int, float]:
    """Times forwards of every size on purpose and keeps the shape. Returns {rows: median seconds}.

    Args:
        length: cached tokens behind which they run.
        path: the way they run, one of the runtime's; None for the fastest known, whose shape alone is kept on disk.
    """
    from statistics import median

    from .planner import knowledge_of

    paths = knowledge_of(runtime.fingerprint, runtime.paths).paths
    limit = runtime.max_nodes or SIZES[-1]
    runtime.prefill([np.arange(length) % min(runtime.vocab, 1000)], SIZES[-1])
    way = paths.current if path is None else path
    runtime.use(way)
    found = {}
    for rows in (size for size in SIZES if size <= limit):
        tree = DraftTree.of(np.arange(rows) % runtime.vocab, (np.arange(rows) - 1) // 2)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            runtime.forward(tree)
            times.append(time.perf_counter() - start)
            runtime.commit([[]])
            paths.costs[way].observe(rows, length, times[-1])
        found[rows] = median(times)
    shape = paths.costs[way].measured()
    if shape is not None and path is None:
        write_shape(runtime.fingerprint, shape)
    return found
