"""A key-value cache that never concatenates: rows land in storage made once, and only their count moves.

The rows of a step lie behind each row's own length until the accepted ones are moved down and the others forgotten.
Layers of one shape share a block, so that rolling back is one gather for the whole model.

    columns of text b:  [0, lengths[b]) kept | [lengths[b], lengths[b] + nodes) the step in flight | free
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from ....errors import ModelError
from ..tree import Ints

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["GROWING", "Arena", "ArenaLayer"]

GROWING = (DynamicLayer, DynamicSlidingWindowLayer)  # what an arena's layer can stand for while nothing slides out
ROUND = 64  # storage grows in multiples of this many columns


class ArenaLayer(CacheLayerMixin):
    """One attention layer's part of an `Arena`, as transformers' models see it.

    Attributes:
        keys, values: the layer's whole storage, [batch, kv heads, capacity, width], kept columns first; None until
            the first prompt has shown the shapes.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Keeps the first prompt as it came; `Arena.settle` moves it into storage."""
        self.keys, self.values, self.is_initialized = key_states, value_states, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes [batch, kv heads, nodes, width] behind what is kept; returns views up to the last column written."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        arena = self.arena
        return arena.write(self.keys, key_states), arena.write(self.values, value_states)

    def get_seq_length(self) -> int:
        """The longest row, without the step in flight."""
        return self.arena.longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns attention sees, 0)."""
        return self.arena.longest + query_length, 0

    def get_max_length(self) -> int:
        """-1: it grows when asked."""
        return -1


class Arena:
    """Storage for every layer of a model, and of every model inside it.

    Attributes:
        lengths: [batch] kept columns.
        layers: in the order they were made.
        capacity: columns of the storage.
    """

    def __init__(self) -> None:
        self.lengths: Ints = np.zeros(1, dtype=np.int64)
        self.longest = 0
        self.layers: list[ArenaLayer] = []
        self.capacity = 0
        self._blocks: list[Tensor] = []  # [layers x 2, batch, kv heads, capacity, width]
        self._slots: tuple[Tensor, Tensor] | None = None  # where uneven rows go: (rows, columns), each [batch, nodes]
        self._end = 0

    def cache(self, like: Cache, layers: int) -> Cache:
        """A copy of a cache, of its own class, whose layers are this arena's; caches held by its attributes too.

        Layers that keep nothing, because they read another layer's keys, stay what they are.

        Args:
            like: never changed.
            layers: how many there are where `like` makes its layers as they are needed.

        Raises:
            ModelError: a layer that is not a plain growing one.
        """
        twin = copy.copy(like)
        count = len(like.layers) or layers
        for layer in like.layers:
            if type(layer) not in (*GROWING, DummyLayer, ArenaLayer):
                raise ModelError(
                    f"the cache of this model has a {type(layer).__name__}; drafts are rolled back in layers of full "
                    "attention only. Pass an empty DynamicCache, or decode without a strategy."
                )
        twin.layers = [
            like.layers[place]
            if place < len(like.layers) and type(like.layers[place]) is DummyLayer
            else ArenaLayer(self)
            for place in range(count)
        ]
        twin.layer_class_to_replicate = None
        self.layers += [layer for layer in twin.layers if isinstance(layer, ArenaLayer)]
        for name, inner in vars(like).items():
            if isinstance(inner, Cache):
                setattr(twin, name, self.cache(inner, layers))
        return twin

    def begin(self, batch: int, columns: int) -> None:
        """Forgets everything; storage for `batch` rows of `columns` is kept, or made anew where it is too small."""
        self._set(np.zeros(batch, dtype=np.int64))
        if not self._blocks:
            for layer in self.layers:
                layer.keys = layer.values = None
                layer.is_initialized = False
        elif self._blocks[0].shape[1] != batch or self.capacity < columns:
            self._allocate(batch, columns)
        elif batch > 1:
            for block in self._blocks:
                block.zero_()  # an old row that held NaN would reach shorter rows through a weight of 0

    def drop(self) -> None:
        """Gives all storage back; the next prompt shows the shapes anew."""
        self._blocks, self.capacity = [], 0

    def lay_out(self, shapes: Sequence[tuple[int, int]], like: Tensor, columns: int) -> None:
        """Before the first prompt of a model whose layers' (kv heads, width) are known: storage of at least `columns`.

        Layers beyond these belong to caches that the given one holds; who fills them shows their shapes.

        Args:
            like: any tensor of the keys' precision and device.
        """
        if not self._blocks:
            for layer, (heads, width) in zip(self.layers, shapes, strict=False):
                empty = like.new_empty(len(self.lengths), heads, 0, width)
                layer.lazy_initialization(empty, empty)
            self._allocate(len(self.lengths), columns)

    def settle(self, columns: int) -> None:
        """After the first prompt: moves what the layers hold into storage of at least `columns`."""
        layers = [layer for layer in self.layers if layer.is_initialized]
        if self._blocks or not layers:
            return
        states = [(layer.keys, layer.values) for layer in layers]
        self._allocate(len(states[0][0]), columns)
        for layer, (keys, values) in zip(layers, states, strict=True):
            layer.keys[:, :, : keys.shape[2]] = keys
            layer.values[:, :, : values.shape[2]] = values

    def adopt(self, cache: Cache, columns: int) -> None:
        """Before a prompt: takes over what another cache of the same structure holds, for every row alike.

        Args:
            columns: storage to make where there is none yet.

        Raises:
            ModelError: it has another number of layers.
        """
        layers = _layers_of(cache)
        if len(layers) != len(self.layers):
            raise ModelError(
                f"the cache has {len(layers)} layers, the model {len(self.layers)}. Pass the cache that this model "
                "filled, or none."
            )
        length = layers[0].get_seq_length()
        if not self._blocks:
            for own, layer in zip(self.layers, layers, strict=True):
                own.lazy_initialization(layer.keys, layer.values)
            self.settle(columns)
        else:
            for own, layer in zip(self.layers, layers, strict=True):
                own.keys[:, :, :length] = layer.keys
                own.values[:, :, :length] = layer.values
        self.set_lengths([length] * len(self.lengths))

    def reserve(self, columns: int) -> None:
        """Makes room for `columns` and keeps what is there."""
        if not self._blocks or columns <= self.capacity:
            return
        old = [(layer, layer.keys, layer.values) for layer in self.layers if layer.is_initialized]
        self._allocate(len(self.lengths), max(columns, self.capacity * 3 // 2))
        for layer, keys, values in old:
            layer.keys[:, :, : self.longest] = keys[:, :, : self.longest]
            layer.values[:, :, : self.longest] = values[:, :, : self.longest]

    def expect(self, nodes: int) -> None:
        """Before a forward: says where its rows go, [lengths[b], lengths[b] + nodes) of every row."""
        self._end = self.longest + nodes
        self.reserve(self._end)
        self._slots = None
        if self._blocks and (self.lengths != self.longest).any():
            rows = torch.arange(len(self.lengths))[:, None].expand(-1, nodes)
            columns = torch.from_numpy(self.lengths)[:, None] + torch.arange(nodes)
            device = self._blocks[0].device
            self._slots = rows.to(device), columns.to(device)

    def write(self, storage: Tensor, states: Tensor) -> Tensor:
        """Puts [batch, heads, nodes, width] where `expect` said; returns the storage up to the last column used."""
        if self._slots is None:
            storage[:, :, self._end - states.shape[2] : self._end] = states
        else:
            storage.transpose(1, 2)[self._slots] = states.transpose(1, 2)
        return storage[:, :, : self._end]

    def set_lengths(self, lengths: Sequence[int] | Ints) -> None:
        """After a prompt: every row is this long."""
        self._set(np.asarray(lengths, dtype=np.int64))

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """Rolls back: of every row's step stay the named nodes, in that order, right behind what was kept before."""
        for row, (path, length) in enumerate(zip(paths, self.lengths.tolist(), strict=True)):
            stay = next((i for i, node in enumerate(path) if node != i), len(path))
            if stay < len(path):
                moved = torch.tensor(path[stay:]) + length
                for block in self._blocks:
                    texts = block[:, row]
                    # index_select copies first, so that the ranges may overlap
                    texts[:, :, length + stay : length + len(path)] = texts.index_select(2, moved.to(block.device))
        self._set(self.lengths + np.array([len(path) for path in paths], dtype=np.int64))

    def nbytes(self) -> int:
        """Bytes of all storage; before the first prompt is settled, of what the layers hold."""
        if self._blocks:
            return sum(block.untyped_storage().nbytes() for block in self._blocks)
        layers = [layer for layer in self.layers if layer.is_initialized]
        return sum(x.untyped_storage().nbytes() for layer in layers for x in (layer.keys, layer.values))

    def _set(self, lengths: Ints) -> None:
        self.lengths, self.longest = lengths, int(lengths.max())

    def _allocate(self, batch: int, columns: int) -> None:
        """One block for every shape of layer; the layers get views of it."""
        self.capacity = -(-columns // ROUND) * ROUND
        self._blocks = []
        groups: dict[tuple[Any, ...], list[tuple[ArenaLayer, str]]] = {}
        for layer in self.layers:
            if layer.is_initialized:
                for name in ("keys", "values"):
                    states = getattr(layer, name)
                    key = states.shape[1], states.shape[3], states.dtype, states.device
                    groups.setdefault(key, []).append((layer, name))
        for (heads, width, dtype, device), parts in groups.items():
            # A short row of a batch reads zeros where a longer one holds keys; a lone row reads only what it wrote.
            make = torch.zeros if batch > 1 else torch.empty
            block = make(len(parts), batch, heads, self.capacity, width, dtype=dtype, device=device)
            self._blocks.append(block)
            for (layer, name), part in zip(parts, block.unbind(0), strict=True):
                setattr(layer, name, part)


def _layers_of(cache: Cache) -> list[DynamicLayer]:
    """Its layers, then those of every cache it holds, in the order `Arena.cache` makes them."""
    layers = [layer for layer in cache.layers if type(layer) is not DummyLayer]
    for inner in vars(cache).values():
        if isinstance(inner, Cache):
            layers += _layers_of(inner)
    return layers


def filled_length(cache: Cache | None) -> int:
    """Columns a cache holds; 0 for none and for an empty one."""
    if cache is None:
        return 0
    return max((layer.get_seq_length() for layer in _layers_of(cache) if isinstance(layer, CacheLayerMixin)), default=0)


def fill(cache: Cache, twin: Cache, length: int, starts: Sequence[int] = ()) -> None:
    """Copies the kept columns of an arena's cache into the plain one it was made like, and so for caches inside.

    Args:
        length: columns of the plain one.
        starts: [batch] the column at which each row begins there, behind its padding; 0 where it is left out.
    """
    while len(cache.layers) < len(twin.layers):
        cache.layers.append(DynamicLayer())
    for layer, own in zip(cache.layers, twin.layers, strict=True):
        if isinstance(own, DummyLayer):
            continue
        if own.is_initialized:
            layer.lazy_initialization(own.keys, own.values)
            layer.keys, layer.values = (_shifted(states, length, starts) for states in (own.keys, own.values))
        if isinstance(layer, DynamicSlidingWindowLayer) and own.is_initialized:
            layer.cumulative_length = length
            if length >= layer.sliding_window:
                layer.keys, layer.values = (
                    states[:, :, 1 - layer.sliding_window :] for states in (layer.keys, layer.values)
                )
    for name, inner in vars(twin).items():
        if isinstance(inner, Cache):
            fill(getattr(cache, name), inner, length, starts)


def _shifted(states: Tensor, length: int, starts: Sequence[int]) -> Tensor:
    """[batch, heads, length, width]: every row from its own column on, zeros before it."""
    if not any(starts):
        return states[:, :, :length].clone()
    moved = states.new_zeros(*states.shape[:2], length, states.shape[3])
    for row, start in enumerate(starts):
        moved[row, :, start:] = states[row, :, : length - start]
    return moved


def empty_cache(model: PreTrainedModel) -> Cache:
    """What a model's forward wants: its own `empty_cache()` where it has one, else a DynamicCache."""
    own = getattr(model, "empty_cache", None)
    return own() if callable(own) else DynamicCache(config=model.config)
