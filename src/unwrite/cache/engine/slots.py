"""Keys and values of some heads of a layer, each head and row with tokens of its own: where they stood, attention over them, choosing.

A slot holds one token's key and value, and its column in the text, -1 where the slot is empty. Slots are in the order of the text, empty
ones in front, so that the last slots are always the last tokens. `window` holds what the last queries attended to in each slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Pooling", "Slots", "attended", "chosen", "newest", "pooled_scores"]

Pooling = Literal["max", "avg"]
EMPTY = -1


@dataclass(frozen=True)
class Slots:
    """What is kept of a text by heads that keep the same number of tokens.

    Args:
        keys, values: [rows, heads, slots, dim], zero where a slot is empty.
        columns: [rows, heads, slots] int32, the column in the text, or -1.
        window: [rows, heads, window, slots] weights of the last queries, zero where a query or a slot is none; None where nobody
            chooses by them any more.
    """

    keys: Tensor
    values: Tensor
    columns: Tensor
    window: Tensor | None

    @property
    def filled(self) -> Tensor:
        """[rows, heads, slots] bool."""
        return self.columns != EMPTY

    def joined(self, keys: Tensor, values: Tensor, columns: Tensor) -> Slots:
        """With new tokens behind, their weights zero until `newest` has them. columns: [rows, heads, new]."""
        new = keys.shape[2]
        window = None if self.window is None else F.pad(self.window, (0, new))
        both = Slots(
            torch.cat([self.keys, keys], 2),
            torch.cat([self.values, values], 2),
            torch.cat([self.columns, columns.to(self.columns)], 2),
            window,
        )
        gaps = columns == EMPTY  # padding between two turns: empty slots go to the front
        return both.at(both.filled.int().argsort(dim=-1, stable=True)) if gaps.any() else both

    def at(self, order: Tensor) -> Slots:
        """These slots of every row and head, in this order. order: [rows, heads, slots]."""
        wide = order[..., None].expand(*order.shape, self.keys.shape[-1])
        window = self.window
        if window is not None:
            window = window.gather(3, order[:, :, None].expand(*window.shape[:3], order.shape[2]))
        return Slots(self.keys.gather(2, wide), self.values.gather(2, wide), self.columns.gather(2, order), window)

    def limited(self, chosen: Tensor) -> Slots:
        """The chosen slots alone, empty ones in front where a row or head has fewer than another. chosen: [rows, heads, slots] bool."""
        width = max(1, int(chosen.sum(-1).max()))
        order = chosen.int().argsort(dim=-1, stable=True)[..., -width:]  # of the chosen the order stays
        kept = self.at(order)
        lost = ~chosen.gather(2, order)
        if not lost.any():
            return kept
        return Slots(
            kept.keys.masked_fill(lost[..., None], 0),
            kept.values.masked_fill(lost[..., None], 0),
            kept.columns.masked_fill(lost, EMPTY),
            None if kept.window is None else kept.window.masked_fill(lost[:, :, None], 0),
        )

    def without_window(self) -> Slots:
        """The same, for heads that choose no more."""
        return replace(self, window=None)


def attended(slots: Slots, query: Tensor, seen: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of queries over slots, softmax in float32.

    Args:
        query: [rows, heads, group, new, dim], the query heads that each key-value head serves.
        seen: [rows, new, columns of the text] bool, what each query may see.

    Returns:
        [rows, heads, group, new, dim], and the weights [rows, heads, group, new, slots] in float32.
    """
    scores = (query * scaling @ slots.keys[:, :, None].transpose(-1, -2)).float()
    mask = _seen_slots(slots, seen)[:, :, None]
    weights = scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1) * mask
    return weights.to(query.dtype) @ slots.values[:, :, None], weights


def _seen_slots(slots: Slots, seen: Tensor) -> Tensor:
    """[rows, heads, new, slots] bool: the mask at the columns that are kept."""
    rows, heads, width = slots.columns.shape
    at = slots.columns.clamp(min=0).long()[:, :, None].expand(rows, heads, seen.shape[1], width)
    return seen[:, None].expand(rows, heads, *seen.shape[1:]).gather(3, at) & slots.filled[:, :, None]


def newest(slots: Slots, weights: Tensor, size: int) -> Slots:
    """With the weights of the last `size` queries, the given ones the newest.

    Args:
        weights: [rows, heads, group, new, slots] of the newest queries; a key-value head's are the mean of its query heads'.
    """
    fresh = weights[..., -size:, :].mean(2).to(slots.keys.dtype)
    old = slots.window
    if old is None:
        old = fresh.new_zeros(*fresh.shape[:2], size, fresh.shape[-1])
    return replace(slots, window=torch.cat([old, fresh], 2)[:, :, -size:].clone())


def pooled_scores(window: Tensor, kernel: int, pooling: Pooling) -> Tensor:
    """[..., slots] what a window of queries attends to in each slot and, pooled, around it. window: [..., queries, slots]."""
    summed = window.float().sum(-2)
    flat = summed.reshape(-1, 1, summed.shape[-1])
    pool = F.max_pool1d if pooling == "max" else F.avg_pool1d
    return pool(flat, kernel, stride=1, padding=kernel // 2).view(summed.shape)


def chosen(slots: Slots, sizes: Tensor, kernel: int, pooling: Pooling, first: Tensor) -> Tensor:
    """Which slots stay: the window's own tokens, and of those before it the ones that the window attends to most.

    Of equal scores the earlier token stays: of neighbours that a maximum has pooled, many are equal (ours; the published order is that
    of a sort that isn't stable).

    Args:
        sizes: [rows] tokens that may stay, the window among them.
        first: [rows] column before which tokens stay in any case, the sinks.

    Returns:
        [rows, heads, slots] bool.
    """
    assert slots.window is not None
    size, width = slots.window.shape[2], slots.columns.shape[2]
    recent = slots.filled & (torch.arange(width, device=slots.columns.device) >= width - size)
    scores = slots.window.new_full(slots.columns.shape, -torch.inf, dtype=torch.float32)
    if width > size:
        scores[..., :-size] = pooled_scores(slots.window[..., :-size], kernel, pooling)
    scores = scores.masked_fill(slots.columns < first[:, None, None], torch.inf)
    scores = scores.masked_fill(recent, torch.inf).masked_fill(~slots.filled, -torch.inf)
    ranks = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return slots.filled & (ranks < sizes[:, None, None])
