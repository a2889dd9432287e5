"""Both products of attention on packed keys and values, and the one softmax over what is packed and what isn't.

    scores = [q . sparse keys, q . dense keys] * scaling      weights = softmax(scores), in float32
    output = weights of sparse ones @ sparse values + weights of dense ones @ dense values

Packed tiles are read one layer at a time into a buffer in the order of tiles, which both products take as it is: a GPU kernel does the
same in shared memory. Nothing loops over tokens, tiles or heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bitmap import TILE, BitmapTensor

__all__ = ["attend_both", "sparse_pv", "sparse_qk"]


def sparse_qk(query: Tensor, keys: BitmapTensor) -> Tensor:
    """Scores of queries and packed keys.

    Args:
        query: [rows, heads, new, dim]; query head h looks at key-value head h // (heads / kv_heads).
        keys: packed along tokens, of kv_heads heads.

    Returns:
        [rows, heads, new, tokens], not scaled.
    """
    tiles = keys.tiles()  # [rows, kv_heads, blocks, dim, 64]
    grouped = _grouped(query, tiles.shape[1])[:, :, None]
    return (grouped @ tiles).transpose(2, 3).reshape(*query.shape[:3], keys.tokens)


def sparse_pv(weights: Tensor, values: BitmapTensor) -> Tensor:
    """Packed values, weighted.

    Args:
        weights: [rows, heads, new, tokens].
        values: packed along channels, of kv_heads heads.

    Returns:
        [rows, heads, new, dim].
    """
    tiles = values.tiles()  # [rows, kv_heads, blocks, parts, 64 tokens, 64 channels]
    grouped = _grouped(weights, tiles.shape[1]).unflatten(-1, (values.tokens // TILE, TILE))
    summed = (grouped.transpose(2, 3)[:, :, :, None] @ tiles).sum(2)  # [rows, kv_heads, parts, group * new, 64]
    return summed.transpose(2, 3).flatten(3)[..., : values.dim].reshape(*weights.shape[:3], values.dim)


def attend_both(
    query: Tensor,
    sparse: tuple[BitmapTensor, BitmapTensor],
    dense: tuple[Tensor, Tensor],
    visible: Tensor,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Attention to packed keys and values and to dense ones behind them, as if they were one.

    Args:
        query: [rows, heads, new, dim].
        sparse: packed keys and values of the older tokens.
        dense: keys and values [rows, kv_heads, tokens, dim] of the later ones.
        visible: bool [rows or 1, heads or 1, new, all tokens].
        scaling: factor of the scores.

    Returns:
        [rows, new, heads, dim], and the weights [rows, heads, new, all tokens].
    """
    keys, values = dense
    late = (_grouped(query, keys.shape[1]) @ keys.transpose(-1, -2)).view(*query.shape[:3], -1)
    scores = torch.cat([sparse_qk(query, sparse[0]), late], -1) * scaling
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    older = sparse[0].tokens
    out = sparse_pv(weights[..., :older], sparse[1])
    out = out + (_grouped(weights[..., older:], keys.shape[1]) @ values).view_as(out)
    return out.transpose(1, 2).contiguous(), weights


def _grouped(one: Tensor, kv_heads: int) -> Tensor:
    """[rows, heads, new, n] as [rows, kv_heads, heads / kv_heads * new, n]."""
    return one.reshape(one.shape[0], kv_heads, -1, one.shape[-1])
