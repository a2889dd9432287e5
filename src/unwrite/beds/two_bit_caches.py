"""What a rotated cache of two bits is held against: keys by channel with a whole window, and tokens kept whole at random.

KIVI (arXiv 2402.02750)   keys share a scale along 32 tokens of a channel, values along 32 numbers of a token; the last tokens, 32
                          and those that don't fill a block of keys yet, are whole
RandomSinks               RotateKV, as many tokens whole, drawn at random
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..cache.base import CompressedCache, CompressedLayer, Compression
from ..cache.engine.quantising import Quantiser
from ..cache.rotatekv import RotatedLayer, RotateKV, RotateKVCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..cache.engine.attention import Moment
    from ..cache.engine.rope import Rope
    from ..cache.engine.support import KVShape

__all__ = ["KIVI", "RandomSinks"]


@dataclass(frozen=True)
class KIVI(Compression):
    """KIVI's layout of two-bit keys and values.

    Args:
        bits: of a number.
        block: tokens of a channel, or numbers of a token, that share a scale; also the window that is kept whole.
    """

    bits: int = 2
    block: int = 32

    def cache(self, model: PreTrainedModel) -> CompressedCache:
        """See `Compression.cache`."""
        return CompressedCache(model, self)

    def layer(self, index: int, shape: KVShape, prepared: None) -> KIVILayer:
        """See `Compression.layer`."""
        return KIVILayer(self)


class KIVILayer(CompressedLayer):
    """Blocks of tokens in few bits and the last ones whole; what attention sees is what is kept, also at the first call.

    Attributes:
        kept_keys: codes, scales and zeros, [batch, kv_heads, blocks, dim, ...]: a row is a channel along a block's tokens.
        kept_values: the same, [batch, kv_heads, blocks, block, ...]: a row is a token.
        last_keys, last_values: [batch, kv_heads, tokens, dim], whole.
    """

    stored = ("kept_keys", "kept_values", "last_keys", "last_values")

    def __init__(self, settings: KIVI) -> None:
        super().__init__()
        self.block, self.quantiser = settings.block, Quantiser(settings.bits, settings.block)
        self.kept_keys: list[Tensor] | None = None
        self.kept_values: list[Tensor] | None = None
        self.last_keys: Tensor | None = None
        self.last_values: Tensor | None = None

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `CompressedLayer.store`."""
        if self.last_keys is not None and self.last_values is not None:
            keys, values = torch.cat([self.last_keys, keys], 2), torch.cat([self.last_values, values], 2)
        blocks = max(0, keys.shape[2] - self.block) // self.block
        if blocks:
            whole = [one[:, :, : blocks * self.block].unflatten(2, (blocks, -1)) for one in (keys, values)]
            new = [self.quantiser.quantise(one) for one in (whole[0].transpose(3, 4), whole[1])]
            self.kept_keys, self.kept_values = _longer(self.kept_keys, new[0]), _longer(self.kept_values, new[1])
            keys, values = keys[:, :, blocks * self.block :], values[:, :, blocks * self.block :]
        self.last_keys, self.last_values = keys.clone(), values.clone()
        if self.kept_keys is None or self.kept_values is None:
            return keys, values
        old = self.quantiser.restore(self.kept_keys).transpose(3, 4), self.quantiser.restore(self.kept_values)
        seen = [torch.cat([a.flatten(2, 3).to(b.dtype), b], 2) for a, b in zip(old, (keys, values), strict=True)]
        return seen[0], seen[1]


def _longer(kept: list[Tensor] | None, new: list[Tensor]) -> list[Tensor]:
    return new if kept is None else [torch.cat(both, 2) for both in zip(kept, new, strict=True)]


@dataclass(frozen=True)
class RandomSinks(RotateKV):
    """RotateKV with other tokens whole than those of massive activations, as many in each layer and row.

    Args:
        seed: of the draw.
    """

    seed: int = 0

    def cache(self, model: PreTrainedModel) -> RotateKVCache:
        """See `Compression.cache`."""
        return RotateKVCache(model, self)

    def layer(self, index: int, shape: KVShape, prepared: Rope | None) -> RotatedLayer:
        """See `Compression.layer`."""
        order = None if self.order is None else self.order.order[index]
        return _RandomLayer(self, shape, prepared, order, 1000 * self.seed + index)


class _RandomLayer(RotatedLayer):
    def __init__(self, settings: RotateKV, shape: KVShape, rope: Rope | None, order: Tensor | None, seed: int) -> None:
        super().__init__(settings, shape, rope, order)
        self.seed = seed

    def whole_tokens(self, moment: Moment, real: Tensor) -> Tensor:
        """Drawn among all but the massive ones; bool [batch, new]."""
        massive = super().whole_tokens(moment, real)
        random = torch.Generator().manual_seed(self.seed)
        lots = torch.rand(real.shape, generator=random).to(real.device).masked_fill(massive | ~real, -1)
        ranks = lots.argsort(1, descending=True).argsort(1)
        return cast("Tensor", (ranks < massive.sum(1, keepdim=True)) & (lots >= 0))
