"""Approximate key-value caches for block decoding (Fast-dLLM, arXiv 2505.22618, section 3.2).

Revealed text barely changes what other positions are worth to attention, so within a block keys and values from the block's
first forward are used again:

    prefix: those before the block; block and all that follows are computed anew
    dual:   those before and after it; only the block is computed anew

Everything is refreshed when a block is opened. transformers rotates keys before it caches them, so what is stored is final:
positions never move.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ..errors import ModelError
from .adapter import MaskPredictor

__all__ = ["BlockCache", "CacheKind"]

CacheKind = Literal["none", "prefix", "dual"]


class _Layer(CacheLayerMixin):
    """One attention layer: keys and values of every column of every row, [batch, kv heads, columns, width]."""

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, owner: _Store) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        size = (self.owner.batch, key_states.shape[1], self.owner.columns)
        self.keys = key_states.new_zeros(*size, key_states.shape[-1])
        self.values = value_states.new_zeros(*size, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keeps the new rows; returns what they attend to."""
        owner = self.owner
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, places = owner.rows, owner.places
        if places is None:  # a refresh: what is new is all there is
            self.keys[rows, :, : key_states.shape[2]] = key_states
            self.values[rows, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        self.keys[rows[:, None], :, places] = key_states.transpose(1, 2)
        self.values[rows[:, None], :, places] = value_states.transpose(1, 2)
        if len(rows) == owner.batch:
            return self.keys[:, :, : owner.span], self.values[:, :, : owner.span]
        return self.keys[rows, :, : owner.span], self.values[rows, :, : owner.span]

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return self.owner.columns


class _Store(Cache):
    """What the model sees. rows: [rows] of the batch now in the forward; places: [rows, n] their columns, None at a refresh."""

    def __init__(self, layers: int, batch: int, columns: int) -> None:
        self.batch, self.columns = batch, columns
        self.rows: Tensor = torch.arange(batch)
        self.places: Tensor | None = None
        self.span = columns
        super().__init__(layers=[_Layer(self) for _ in range(layers)])


class BlockCache:
    """Forwards with kept keys and values.

    Args:
        predictor: a decoder with `config.is_causal = False`.
        kind: "prefix" or "dual".
        batch, columns: of the canvas.

    Raises:
        ModelError: a model without a key-value cache, or with sliding attention.
    """

    def __init__(self, predictor: MaskPredictor, kind: CacheKind, batch: int, columns: int) -> None:
        check_cacheable(predictor)
        self.predictor, self.kind = predictor, kind
        config = predictor.model.config.get_text_config(decoder=True)
        self._store = _Store(config.num_hidden_layers, batch, columns)

    def refresh(self, rows: Tensor, canvas: Tensor, lengths: Tensor, where: Tensor) -> Tensor:
        """A full forward of the given rows that keeps everything. As `MaskPredictor.logits`; canvas [rows, columns]."""
        self._store.rows, self._store.places = rows, None
        return self.predictor.logits(canvas, lengths, where, past_key_values=self._store, use_cache=True)

    def within(
        self, rows: Tensor, canvas: Tensor, lengths: Tensor, first: Tensor, count: Tensor, where: Tensor
    ) -> Tensor:
        """A forward of some columns of each row, against what is kept for the others.

        Args:
            rows: [rows] of the batch.
            canvas, lengths: [rows, columns], [rows].
            first, count: [rows] the columns computed anew: count from first on.
            where: [rows, n] columns whose logits are wanted, all among them.

        Returns:
            [rows, n, vocab]
        """
        predictor = self.predictor
        extra = int(predictor.shift)  # the column before, at which the first one is predicted
        ahead = torch.arange(int(count.max()) + extra, device=canvas.device)
        first, count = first - extra, count + extra
        # A row with fewer columns computes its last one again: the same keys land in the same place.
        places = first[:, None] + torch.minimum(ahead, count[:, None] - 1)  # [rows, n]
        store = self._store
        store.rows, store.places, store.span = rows, places, canvas.shape[1]
        visible = torch.arange(canvas.shape[1], device=canvas.device) < lengths[:, None]  # [rows, columns]
        dtype = next(predictor.model.parameters()).dtype
        mask = torch.zeros(len(rows), 1, places.shape[1], canvas.shape[1], dtype=dtype, device=canvas.device)
        mask.masked_fill_(~visible[:, None, None, :], torch.finfo(dtype).min)
        return predictor.logits(
            canvas.gather(1, places),
            torch.full_like(lengths, places.shape[1]),
            where - first[:, None],
            attention_mask=mask,
            position_ids=places,
            past_key_values=store,
            use_cache=True,
        )

    def nbytes(self) -> int:
        """Bytes of the kept keys and values."""
        tensors = [t for layer in self._store.layers if layer.is_initialized for t in (layer.keys, layer.values)]
        return sum(t.untyped_storage().nbytes() for t in tensors)


def check_cacheable(predictor: MaskPredictor) -> None:
    """Refuses models whose keys and values cannot be kept."""
    config, name = getattr(predictor.model, "config", None), type(predictor.model).__name__
    if config is None or getattr(config, "is_causal", True) is not False or not hasattr(config, "get_text_config"):
        raise ModelError(
            f"{name} is no decoder with config.is_causal = False, so it has no key-value cache to keep blocks in. Use cache='none'."
        )
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or []
    if any("full" not in kind for kind in kinds):
        raise ModelError(f"{name} has {next(k for k in kinds if 'full' not in k)} layers. Use cache='none'.")
