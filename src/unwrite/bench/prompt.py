"""How fast a prompt is read, against transformers' own `generate`, for prompts of a few tokens to some thousands.

Both sides read the same tokens of Python's own manual and write one token, in turns; neither always goes first. What only a first call
pays (packed weights, an untried route) comes before: two untimed calls of each side a length.

    ratio = transformers' seconds / ours (above 1 is faster), summed over pairs, with a paired bootstrap interval
"""

from __future__ import annotations

import pydoc_data.topics
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..decode.plain import Plain
from ..errors import DataError, ModelError
from ..models.loading import Loaded
from ..scoring.intervals import ratio_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..decode.base import Strategy

__all__ = ["LENGTHS", "read_pairs", "run_bench"]

LENGTHS = (16, 64, 256, 1024, 4096, 8000)
UNTIMED = 2  # calls of each side first: the second tries what the first did not
RESAMPLES = 2000


def prompt_of(tokenizer: PreTrainedTokenizerBase, tokens: int) -> Tensor:
    """The first tokens of Python's manual, [1, tokens]."""
    text = "\n".join(pydoc_data.topics.topics.values())
    ids: list[int] = tokenizer(text[: 40 * tokens + 1000], add_special_tokens=False)["input_ids"][:tokens]
    if len(ids) < tokens:
        raise DataError(f"Python's manual has {len(ids):,} tokens of this model, fewer than {tokens:,}: ask for less")
    return torch.tensor([ids])


def seconds_of(model: PreTrainedModel, ids: Tensor, strategy: Strategy | None = None) -> float:
    """Seconds of one call that reads a prompt and writes one token; transformers' own without a strategy."""
    options = {"custom_generate": strategy} if strategy is not None else {}
    start = time.perf_counter()
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0, **options
    )
    return time.perf_counter() - start


def read_pairs(loaded: Loaded, tokens: int, pairs: int) -> dict[str, Any]:
    """Paired calls on one prompt. Returns their medians, the ratio and its 95 % interval."""
    ids, strategy = prompt_of(loaded.tokenizer, tokens), Plain()
    for _ in range(UNTIMED):
        seconds_of(loaded.model, ids, strategy)
        seconds_of(loaded.model, ids)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(pairs):
        for side in (strategy, None) if number % 2 == 0 else (None, strategy):
            (theirs if side is None else ours).append(seconds_of(loaded.model, ids, side))
    low, high = ratio_interval(np.array([ours]), np.array([theirs]), tokens, RESAMPLES)
    return {
        "tokens": tokens,
        "pairs": pairs,
        "ours_s": median(ours),
        "peer_s": median(theirs),
        "ratio": sum(theirs) / sum(ours),
        "ratio_low": low,
        "ratio_high": high,
    }


def run_bench(
    loaded: Loaded,
    lengths: Sequence[int] = LENGTHS,
    pairs: int = 9,
    after: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """All lengths that the model can read; one dict each.

    Args:
        loaded: a language model and its tokenizer.
        lengths: tokens of a prompt; those that leave no room for one more are left out.
        pairs: paired repeats.
        after: gets all rows so far after each.
    """
    room = getattr(loaded.model.config, "max_position_embeddings", max(lengths) + 1)
    rows: list[dict[str, Any]] = []
    for tokens in lengths:
        if tokens < room:
            rows.append(read_pairs(loaded, tokens, pairs))
            after(rows)
    if not rows:
        raise ModelError(f"no prompt of {min(lengths):,} tokens fits into a model of {room:,} positions: ask for less")
    return rows
