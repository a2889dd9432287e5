"""What a compiled step is told: sizes, and the addresses of weights, cache and buffers."""

from __future__ import annotations

import numpy as np

from .tiles import STORED, STRIDES, TALL

__all__ = [
    "BLOCK_BYTES", "COUNTER_BYTES", "EXPANDED_FROM", "EXPANDED_ROWS", "FETCHED_TO", "LAYER", "LINEARS", "MOST_ROWS", "PARTS", "PROMPT_ROWS", "SPINS", "SPLIT", "STEP", "TALL_ROWS", "TASK_BYTES",
]  # fmt: skip

SPLIT = 128  # columns of one attention task, from fixed places, so that sums don't depend on how many rows a step has
TASK_BYTES, PROMPT_ROWS, MOST_ROWS = (
    1 << 14,
    24,
    240,
)  # weights of a task: about so many bytes; of a prompt, so many rows
# Beyond so many states packed weights are expanded once, so many rows at a time, and multiplied as float32.
EXPANDED_FROM, EXPANDED_ROWS = 4, 12
FETCHED_TO = 16  # states up to which a tile asks for the next one's weights
COUNTER_BYTES = 128  # a phase's two counters, a cache line each
PARTS = ("embedding", "query, key, value", "attention", "output", "gate, up", "down", "head")
SPINS = 2000  # looks at a counter before a waiting thread offers its processor to others

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
LAYER = np.dtype(
    [(name, "i8") for name in ("norm", "q_norm", "k_norm", "post_norm", "keys", "values", "tap")]
    + [(f"{name}{part}", "i8") for name in LINEARS for part in ("", "_bias", "_stored")]
)
_SHAPE = ("layers", "width", "heads", "groups", "head_width", "inner", "vocabulary", "batch", "nodes")
_CACHE = ("multiply", "row_bytes", "head_bytes", "column_bytes", "splits")
_WEIGHTS = ("embedding", "final_norm", "head", "head_bias", "head_stored")
_INPUTS = ("tokens", "positions", "lengths", "ancestors", "wanted", "outputs", "cosines", "sines")
_SHARED = ("x", "qkv", "hidden", "partial", "maxima", "logits", "final", "counters", "ticks")
_PRIVATE = ("private", "private_bytes", "normed", "queries", "scores", "products", "expanded")
STEP = np.dtype(
    [(name, "i8") for name in (*_SHAPE, *_CACHE, *_WEIGHTS, *_INPUTS, *_SHARED, *_PRIVATE)]
    + [("epsilon", "f4"), ("scale", "f4")]
)  # addresses and sizes; private ones are offsets into a thread's own part
BLOCK_BYTES = tuple(STRIDES.values())
TALL_ROWS = tuple(rows for name in STORED for rows in (0, *TALL[name]))  # [form * (MOST + 1) + states]
