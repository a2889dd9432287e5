"""Which numbers of keys and values are zeroed: the smallest of each token, and the ways that Mustafar is compared with.

    token       the smallest of each token's numbers (arXiv 2505.22913)
    channel     the smallest of each channel's numbers, in groups of tokens
    output      keys: the smallest of |key| times recent |queries|, of each token; values: the smallest of |value| times recent attention,
                of each channel in groups of tokens (of each token it would be the order of "token", for attention is one factor a token)
    structured  whole channels: of keys by the squares of keys and recent queries (ThinK, arXiv 2407.21018), of values by their squares
    random      any numbers of each token

All zero the same part of each token's, channel's or group's numbers, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["KeyRule", "Recent", "ValueRule", "prune_keys", "prune_per_token", "prune_values", "recent_attention"]

KeyRule = Literal["token", "output", "structured", "random"]
ValueRule = Literal["token", "channel", "output", "structured", "random"]


def zeros_of(numbers: int, sparsity: float) -> int:
    """How many of so many numbers are zeroed: floor(sparsity * numbers), where 0.29 of 100 are 29."""
    return math.floor(sparsity * numbers + 1e-9)


def prune_per_token(x: Tensor, sparsity: float, *, official: bool = False) -> Tensor:
    """Zeroes the smallest numbers of each vector, by magnitude.

    Args:
        x: [..., dim].
        sparsity: part that is zeroed, from 0 to below 1.
        official: as the published code, which zeroes what is smaller than the int(sparsity * dim)-th smallest number: one less, and fewer
            still where numbers tie.

    Returns:
        [..., dim], with exactly floor(sparsity * dim) zeros a vector that weren't there, unless official.
    """
    return _smallest_zeroed(x, x.abs(), sparsity, -1, official)


@dataclass(frozen=True)
class Recent:
    """What the last queries say of keys and values that are to be pruned.

    Args:
        queries: [rows, heads, recent, dim].
        attention: [rows, kv_heads, tokens], the attention of those queries that each of the tokens got, summed over them; None where no
            rule asks for it.
    """

    queries: Tensor
    attention: Tensor | None


def prune_keys(
    keys: Tensor, rule: KeyRule, sparsity: float, official: bool, recent: Recent | None, seed: int
) -> Tensor:
    """Keys with their share of zeros.

    Args:
        keys: [rows, kv_heads, tokens, dim].
        rule: see above.
        sparsity: part that is zeroed.
        official: of `prune_per_token`; only where the rule is "token".
        recent: what the rules "output" and "structured" read.
        seed: of the rule "random".
    """
    if rule == "token":
        return prune_per_token(keys, sparsity, official=official)
    if rule == "random":
        return _smallest_zeroed(keys, _random(keys, seed), sparsity, -1)
    assert recent is not None
    queries = recent.queries.unflatten(1, (keys.shape[1], -1)).float()  # [rows, kv_heads, group, recent, dim]
    if rule == "output":
        return _smallest_zeroed(keys, queries.abs().mean((2, 3))[:, :, None] * keys.abs(), sparsity, -1)
    return _channels_zeroed(keys, queries.square().mean((2, 3)), sparsity)


def prune_values(
    values: Tensor, rule: ValueRule, sparsity: float, official: bool, recent: Recent | None, group: int, seed: int
) -> Tensor:
    """Values with their share of zeros.

    Args:
        values: [rows, kv_heads, tokens, dim].
        rule: see above.
        sparsity: part that is zeroed.
        official: of `prune_per_token`; only where the rule is "token" or "channel".
        recent: what the rule "output" reads.
        group: tokens among which a channel's numbers are compared; `tokens` is a multiple.
        seed: of the rule "random".
    """
    if rule == "token":
        return prune_per_token(values, sparsity, official=official)
    if rule == "random":
        return _smallest_zeroed(values, _random(values, seed), sparsity, -1)
    if rule == "structured":
        return _channels_zeroed(values, None, sparsity)
    scores = values.abs()
    if rule == "output":
        assert recent is not None
        assert recent.attention is not None
        scores = scores * recent.attention[..., None]
    groups = values.unflatten(2, (-1, group)), scores.unflatten(2, (-1, group))
    return _smallest_zeroed(*groups, sparsity, -2, official).flatten(2, 3)


def recent_attention(queries: Tensor, keys: Tensor, real: Tensor, scaling: float) -> Tensor:
    """How much attention each token got from the last queries: [rows, kv_heads, tokens], summed over queries and their heads.

    Args:
        queries: [rows, heads, recent, dim] of the last tokens.
        keys: [rows, kv_heads, tokens, dim].
        real: bool [rows or 1, tokens], False where there is only padding.
        scaling: factor of the scores.
    """
    count, tokens = queries.shape[2], keys.shape[2]
    grouped = queries.unflatten(1, (keys.shape[1], -1)).float()
    scores = grouped @ keys.float().transpose(-1, -2)[:, :, None] * scaling  # [rows, kv_heads, group, recent, tokens]
    causal = torch.ones(count, tokens, dtype=torch.bool, device=keys.device).tril(tokens - count)
    seen = causal & real[:, None]  # [rows or 1, recent, tokens]
    weights = scores.masked_fill(~seen[:, None, None], torch.finfo(scores.dtype).min).softmax(-1)
    asking = real[:, -count:, None].float()  # padding asks nothing
    return (weights * asking[:, None, None]).sum((2, 3))


def _smallest_zeroed(x: Tensor, scores: Tensor, sparsity: float, dim: int, official: bool = False) -> Tensor:
    """Zeroes what has the smallest scores along a dimension."""
    if official:
        rank = max(1, int(sparsity * x.shape[dim]))
        # kthvalue knows no 16-bit numbers on every device; those it compares stay what they are.
        bar = scores.float().kthvalue(rank, dim, keepdim=True).values
        return torch.where(scores.float() >= bar, x, 0)
    smallest = scores.topk(zeros_of(x.shape[dim], sparsity), dim, largest=False, sorted=False).indices
    return x.scatter(dim, smallest, 0)


def _channels_zeroed(x: Tensor, weights: Tensor | None, sparsity: float) -> Tensor:
    """Zeroes the channels with the smallest mean square, the same of all tokens. weights: [rows, kv_heads, dim]."""
    scores = x.float().square().mean(2)
    scores = scores if weights is None else scores * weights
    smallest = scores.topk(zeros_of(x.shape[-1], sparsity), -1, largest=False).indices
    return x.scatter(-1, smallest[:, :, None].expand(-1, -1, x.shape[2], -1), 0)


def _random(x: Tensor, seed: int) -> Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
