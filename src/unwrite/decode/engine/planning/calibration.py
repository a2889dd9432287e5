"""Forward costs measured on purpose, for a benchmark or a first call that must not learn by trying."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from ..runtime import Runtime
from ..tree import DraftTree
from .costs import SIZES
from .curves import write_shape
from .knowledge import knowledge_of


def calibrate(runtime: Runtime, length: int = 128, repeats: int = 5, route: str | None = None) -> dict[int, float]:
    """Times forwards of every size on purpose and keeps the shape. Returns {rows: median seconds}.

    Args:
        length: cached tokens behind which they run.
        route: the route they take, one of the runtime's; None for the fastest known, whose shape alone is kept on disk.
    """
    routes = knowledge_of(runtime.fingerprint, runtime.routes).routes
    limit = runtime.max_nodes or SIZES[-1]
    runtime.prefill([np.arange(length) % min(runtime.vocab, 1000)], SIZES[-1])
    chosen = routes.current if route is None else route
    runtime.use(chosen)
    medians = {}
    for rows in (size for size in SIZES if size <= limit):
        tree = DraftTree.of(np.arange(rows) % runtime.vocab, (np.arange(rows) - 1) // 2)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            runtime.forward(tree)
            times.append(time.perf_counter() - start)
            runtime.commit([[]])
            routes.costs[chosen].observe(rows, length, times[-1])
        medians[rows] = median(times)
    shape = routes.costs[chosen].measured()
    if shape is not None and route is None:
        write_shape(runtime.fingerprint, shape)
    return medians
