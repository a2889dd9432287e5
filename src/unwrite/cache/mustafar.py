"""Mustafar: zero the smallest numbers of every key and value, keep the others in a bitmap format, and attend to that as it is.

Which numbers of a key matter differs from token to token, so that dropping whole channels costs far more than dropping, of each token, the
numbers of smallest magnitude; half to 70 % of them can go. The last tokens stay dense, and what leaves their window is pruned and packed
in blocks. A prompt attends to itself unpruned.  (arXiv 2505.22913; `engine.bitmap` has the format, `engine.pruning` the rules)

    kept of x: the d - floor(s d) numbers of largest |x|      attention = softmax([q K_sparse, q K_dense] / sqrt(d)) [V_sparse; V_dense]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ..errors import MethodError, setting, unknown
from .base import CompressedCache, CompressedLayer, Compression
from .engine.attention import AttentionCall, visible
from .engine.bitmap import TILE, BitmapTensor, pack_bitmap
from .engine.pruning import KeyRule, Recent, ValueRule, prune_keys, prune_values, recent_attention
from .engine.sparse_attention import attend_both
from .engine.support import KVShape

__all__ = ["Mustafar", "MustafarCache", "SparseKVLayer"]


@dataclass(frozen=True)
class Mustafar(Compression):
    """Keys and values without their smallest numbers.

    Args:
        k_sparsity, v_sparsity: part of a key's, of a value's numbers that is zeroed, from 0 to below 1: 0.5 is safe, 0.7 the paper's.
        window: the last tokens, which stay as they are.
        block: tokens that are pruned at once when they have left the window; 256 is the kernel's, 1 that of the paper's scores.
        packed: whether zeros are really left out, and attention reads the packed form; otherwise dense tensors with zeros are kept, which
            save nothing and serve any attention.
        keys: how a key's numbers are chosen: "token" is Mustafar; "output" and "structured" (ThinK) look at recent queries; "random".
        values: the same of values; "channel" and "output" compare a channel's numbers within a group of tokens.
        group: tokens of such a group, and how many queries are recent.
        official_threshold: zero one number less, and fewer where magnitudes tie, as the published code does.
        seed: of "random".

    Raises:
        MethodError: a sparsity outside [0, 1), no block, blocks that make no whole tiles or groups, a rule that there isn't.
    """

    k_sparsity: float = 0.7
    v_sparsity: float = 0.7
    window: int = 32
    block: int = 256
    packed: bool = True
    keys: KeyRule = "token"
    values: ValueRule = "token"
    group: int = 32
    official_threshold: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("k_sparsity", "v_sparsity"):
            if not 0 <= (part := getattr(self, name)) < 1:
                raise MethodError(f"{setting(name, part)} is no part of the numbers. Choose 0 to below 1, such as 0.5.")
        for name, least in (("window", 0), ("block", 1), ("group", 1)):
            if (tokens := getattr(self, name)) < least:
                raise MethodError(f"{setting(name, tokens)} is no number of tokens. Choose {least} or more.")
        for name, rules in (("keys", get_args(KeyRule)), ("values", get_args(ValueRule))):
            if getattr(self, name) not in rules:
                raise MethodError(unknown(f"rule of {setting(name)}", getattr(self, name), rules))
        if self.packed and self.block % TILE:
            raise MethodError(
                f"{setting('block', self.block)} makes no whole tiles. Choose a multiple of {TILE}, or {setting('packed', False)}."
            )
        if self.values in ("channel", "output") and self.block % self.group:
            raise MethodError(
                f"{setting('block', self.block)} makes no whole groups of {self.group} tokens, which {setting('values', self.values)} "
                f"compares. Choose a multiple, or another {setting('group')}."
            )
        if self.official_threshold and not (self.keys == "token" and self.values in ("token", "channel")):
            raise MethodError(
                f"{setting('official_threshold', True)} is of magnitudes alone. Choose {setting('keys', 'token')} and "
                f"{setting('values', 'token')}, or leave it out."
            )

    @property
    def asks_queries(self) -> bool:
        """Whether a rule looks at recent queries."""
        return self.keys in ("output", "structured") or self.values == "output"

    @property
    def attends(self) -> bool:
        """Packed keys are read by attention of its own; queries are seen there too."""
        return self.packed or self.asks_queries

    def pruned_until(self, length: int) -> int:
        """How many leading tokens are pruned once a text has so many: whole blocks in front of the window."""
        return max(0, (length - self.window) // self.block) * self.block

    def layer(self, index: int, shape: KVShape, prepared: Any) -> SparseKVLayer:
        """See the base."""
        return SparseKVLayer(self, index)


class SparseKVLayer(CompressedLayer):
    """Pruned keys and values of the older tokens, and dense ones of the last.

    What several tokens on a begun text make due, such as drafts that are being tried, is pruned when the next call begins: until then they
    can be taken back. Where a text is begun by its prompt or goes on token by token, it is pruned at once.

    Attributes:
        sparse_keys, sparse_values: BitmapTensor, or [rows, kv_heads, pruned, dim] with zeros; None before the first block.
        dense_keys, dense_values: [rows, kv_heads, window, dim].
        queries: [rows, heads, recent, dim], the last ones; None where no rule looks at them.
    """

    stored = ("sparse_keys", "sparse_values", "dense_keys", "dense_values", "queries")

    def __init__(self, settings: Mustafar, index: int) -> None:
        super().__init__()
        self.settings, self.index = settings, index
        self.is_croppable = not settings.asks_queries
        self.sparse_keys: BitmapTensor | Tensor | None = None
        self.sparse_values: BitmapTensor | Tensor | None = None
        self.dense_keys: Tensor | None = None
        self.dense_values: Tensor | None = None
        self.queries: Tensor | None = None
        self.scaling = 1.0

    @property
    def pruned(self) -> int:
        """Leading tokens that are pruned."""
        if self.sparse_keys is None:
            return 0
        return self.sparse_keys.tokens if isinstance(self.sparse_keys, BitmapTensor) else self.sparse_keys.shape[2]

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See the base. Where it attends to packed keys, what it returns is the dense part."""
        if self.dense_keys is None or self.dense_values is None:
            self.dense_keys, self.dense_values = keys, values  # the model's own, until `_prune` copies what stays
        else:
            self._prune(self.length)
            self.dense_keys = torch.cat([self.dense_keys, keys], 2)
            self.dense_values = torch.cat([self.dense_values, values], 2)
        seen = self.dense_keys, self.dense_values
        if isinstance(self.sparse_keys, Tensor) and isinstance(self.sparse_values, Tensor):
            seen = torch.cat([self.sparse_keys, seen[0]], 2), torch.cat([self.sparse_values, seen[1]], 2)
        if not self.attends:
            self._settle(keys.shape[2], self.length + keys.shape[2])
        return seen

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """See the base: the model's own attention while nothing is packed, then both parts in one softmax."""
        new, known = call.query.shape[2], self.length
        keys, values = self.sparse_keys, self.sparse_values
        if isinstance(keys, BitmapTensor) and isinstance(values, BitmapTensor):
            seen = visible(call.attention_mask, new, known, call.query.device)
            attended: tuple[Tensor, Tensor | None] = attend_both(
                call.query, (keys, values), (call.keys, call.values), seen, call.scaling
            )
        else:
            attended = call.stock(call.keys, call.values, call.attention_mask)
        if self.settings.asks_queries:
            before = call.query if self.queries is None else torch.cat([self.queries, call.query], 2)
            self.queries, self.scaling = before[:, :, -self.settings.group :].clone(), call.scaling
        self._settle(new, known)
        return attended

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last tokens back, as long as the shorter text would have the same tokens pruned.

        Args:
            tokens_to_remove: how many, below 0.

        Raises:
            MethodError: more than are dense and would be dense in the shorter text; a rule that looks at recent queries.
        """
        count = abs(tokens_to_remove)
        if count == 0 or self.settings.asks_queries:
            super().crop(tokens_to_remove)
            return
        length = self.length - count
        if (
            self.dense_keys is None
            or self.dense_values is None
            or length < 0
            or self.pruned > self.settings.pruned_until(length)
        ):
            raise MethodError(
                f"{count} of {self.length} tokens can't be taken back: {self.pruned} are pruned, and of a text of {max(0, length)} "
                f"only {self.settings.pruned_until(max(0, length))} would be. Decode without drafts, or with a full cache."
            )
        self.dense_keys, self.dense_values = (
            self.dense_keys[:, :, :-count].clone(),
            self.dense_values[:, :, :-count].clone(),
        )
        self.length = length

    def _settle(self, new: int, known: int) -> None:
        """Prunes what is due, unless what is new may still be taken back."""
        if new == known or new == 1 or new > self.settings.block:
            self._prune(known)

    def _prune(self, length: int) -> None:
        """Prunes what is due in a text of so many tokens, and keeps the rest dense in storage of its own."""
        keys, values = self.dense_keys, self.dense_values
        assert keys is not None
        assert values is not None
        due = self.settings.pruned_until(length) - self.pruned
        if due > 0:
            recent = self._recent(due, length) if self.settings.asks_queries else None
            self._add(*self._zeroed(keys[:, :, :due], values[:, :, :due], recent))
            keys, values = keys[:, :, due:], values[:, :, due:]
        self.dense_keys, self.dense_values = _own(keys), _own(values)

    def _zeroed(self, keys: Tensor, values: Tensor, recent: Recent | None) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, kv_heads, due, dim] with their zeros."""
        s, seed = self.settings, hash((self.settings.seed, self.index, self.pruned))
        return (
            prune_keys(keys, s.keys, s.k_sparsity, s.official_threshold, recent, seed),
            prune_values(values, s.values, s.v_sparsity, s.official_threshold, recent, s.group, seed + 1),
        )

    def _add(self, keys: Tensor, values: Tensor) -> None:
        """Puts pruned keys and values behind those that are there."""
        if not self.settings.packed:
            old, olds = self.sparse_keys, self.sparse_values
            self.sparse_keys = keys if not isinstance(old, Tensor) else torch.cat([old, keys], 2)
            self.sparse_values = values if not isinstance(olds, Tensor) else torch.cat([olds, values], 2)
            return
        packed, packeds = pack_bitmap(keys, "tokens"), pack_bitmap(values, "channels")
        old, olds = self.sparse_keys, self.sparse_values
        self.sparse_keys = old.append(packed) if isinstance(old, BitmapTensor) else packed
        self.sparse_values = olds.append(packeds) if isinstance(olds, BitmapTensor) else packeds

    def _recent(self, due: int, length: int) -> Recent:
        """What the last queries say of the tokens that are due."""
        queries, dense = self.queries, self.dense_keys
        assert queries is not None
        assert dense is not None
        assert self.moment is not None
        if self.settings.values != "output":
            return Recent(queries, None)
        older = self.sparse_keys.to_dense() if isinstance(self.sparse_keys, BitmapTensor) else self.sparse_keys
        keys = dense if older is None else torch.cat([older, dense], 2)
        real = visible(self.moment.attention_mask, 1, length, keys.device)[:, 0, -1]
        attention = recent_attention(queries, keys, real, self.scaling)
        return Recent(queries, attention[:, :, self.pruned : self.pruned + due])

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        packed = {name: one for name in self.stored if isinstance(one := getattr(self, name), BitmapTensor)}
        for name in packed:
            setattr(self, name, None)
        super()._rows(change)
        for name, one in packed.items():
            setattr(self, name, one.rows(change(torch.arange(one.starts.shape[0], device=one.starts.device))))


class MustafarCache(CompressedCache):
    """Keys and values of one batch of texts without their smallest numbers: `MustafarCache(model, k_sparsity=0.5)`."""

    settings = Mustafar


def _own(one: Tensor) -> Tensor:
    """The numbers in a storage that holds nothing else: a slice of a prompt would keep all of it."""
    whole = one.untyped_storage().nbytes() == one.numel() * one.element_size()
    return one if whole else one.clone(memory_format=torch.contiguous_format)
