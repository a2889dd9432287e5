"""Numbers that sum up a sweep (ParallelBench, arXiv 2510.04767, sections 5 and appendix G).

parallelizability = sum_k k score_k / sum_k score_k
order preference  = slope of the score over -log2(block length), with two tokens a step
oracle            = each sample at its best score, with the fewest steps that reach it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import MethodError


def parallelizability(scores: Mapping[int, float]) -> float:
    """Tokens a step, weighted by the score they reach; higher is easier. scores: {tokens a step: score}.

    Raises:
        MethodError: no score above 0.
    """
    total = sum(scores.values())
    if not total > 0:
        raise MethodError(
            "no score is above 0, and parallelizability is a mean weighted by them. Add a setting that works."
        )
    return sum(k * score for k, score in scores.items()) / total


def order_preference(scores: Mapping[int, float], log: bool = True) -> float:
    """What the score gains when blocks get shorter; above 0 a task prefers left to right.

    Args:
        scores: {block length: score} at two tokens a step.
        log: a halving of the block counts as one; else a position does. The paper doesn't say which.

    Raises:
        MethodError: fewer than two block lengths.
    """
    if len(scores) < 2:
        raise MethodError(f"a slope needs two block lengths, and there are {len(scores)}. Add some.")
    lengths = np.array(list(scores), dtype=float)
    return float(np.polyfit(-(np.log2(lengths) if log else lengths), np.array(list(scores.values())), 1)[0])


def oracle(scores: Tensor, steps: Tensor) -> tuple[float, float]:
    """Mean score and mean steps where every sample had its own best setting.

    Args:
        scores, steps: [settings, samples].
    """
    if scores.shape != steps.shape or scores.dim() != 2 or not scores.numel():
        raise MethodError(
            f"scores are {tuple(scores.shape)}, steps {tuple(steps.shape)}. Give [settings, samples] of both."
        )
    best = scores.max(0).values
    least = steps.double().masked_fill(scores < best, torch.inf).min(0).values
    return float(best.double().mean()), float(least.mean())


def decode_order(
    steps: Tensor, written: Tensor | None = None, against: Literal["position", "sorted"] = "position"
) -> dict[str, Tensor]:
    """How much texts were written from left to right: 1 is strictly so, -1 the reverse; NaN where all came at once.

    Args:
        steps: [rows, n] the step that revealed each position; -1 where none did, which is left out.
        written: [rows, n] whether a position counts, such as all but end tokens; None for all.
        against: compare with positions; or with the same steps in order, as the benchmark's code does: there whatever is
            revealed together is in order too.

    Returns:
        {"kendall": [rows] tau-b, "spearman": [rows] rho}
    """
    counts = steps >= 0 if written is None else written & (steps >= 0)
    pairs = (counts[:, :, None] & counts[:, None]).double()  # [rows, n, n]
    places = torch.arange(steps.shape[1]).expand_as(steps)
    if against == "sorted":
        ordered = steps.masked_fill(~counts, torch.iinfo(steps.dtype).max).sort(1).values
        places = ordered.gather(1, (counts.long().cumsum(1) - 1).clamp(min=0))
    one, two = _signs(places) * pairs, _signs(steps) * pairs
    kendall = _cosine(one, two, (1, 2))
    # Half the sum of a row's signs is its rank, ties shared, less the mean rank.
    spearman = _cosine(one.sum(2), two.sum(2), (1,))
    return {"kendall": kendall, "spearman": spearman}


def _signs(values: Tensor) -> Tensor:
    """[rows, n, n] whether the first of each pair is larger, as 1, 0 or -1."""
    return (values[:, :, None] - values[:, None]).sign().double()


def _cosine(one: Tensor, two: Tensor, over: tuple[int, ...]) -> Tensor:
    """[rows]; 0 / 0 is NaN."""
    return (one * two).sum(over) / ((one**2).sum(over) * (two**2).sum(over)).sqrt()
