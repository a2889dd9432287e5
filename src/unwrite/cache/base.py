"""What every compressed cache is: settings, a cache for `past_key_values`, and one layer a decoder layer.

    text = model.generate(**inputs, past_key_values=RotateKVCache(model, bits=2))     # a cache holds one batch of texts
    cache = RotateKV(bits=2).cache(model)                                             # the same, settings first

A `Compression` is a frozen dataclass whose fields are the method's settings. It says which models it serves and makes layers; a
`CompressedLayer` stores keys and values in its own way and says what attention sees of them. Lengths are those of the text, never of
what is kept, so that `generate` counts positions right; masks are of the whole text likewise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from .. import catalog
from ..errors import MethodError
from .engine.attention import AttentionCall, Moment, asking, foreign, watch
from .engine.support import KVShape, attention_modules, check_attention, check_layers, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CompressedCache", "CompressedLayer", "Compression"]


@dataclass(frozen=True)
class Compression(ABC):
    """How keys and values are kept: the settings of a cache.

    A subclass is a frozen dataclass of them. It writes `layer`, where it must `check` and `prepare`, and says whether its layers
    attend.
    """

    @property
    def attends(self) -> bool:
        """Whether its layers compute attention themselves, in place of the model's function."""
        return False

    @property
    def slug(self) -> str:
        """Its name in the catalogue; its class's name where it has no record."""
        cls = type(self)
        entry = f"{cls.__module__}:{cls.__qualname__}"
        return next((record.slug for record in catalog.caches().values() if record.entry == entry), cls.__name__)

    def cache(self, model: PreTrainedModel) -> CompressedCache:
        """An empty cache for one batch of texts of this model.

        Raises:
            ModelError: a model it can't serve; see `engine.support` and `check`.
        """
        return CompressedCache(model, self)

    def check(self, shape: KVShape, model: PreTrainedModel) -> None:
        """Refuses a model; what has reasons of its own asks here first.

        Raises:
            ModelError: see `engine.support`; sizes that the method can't divide, and the like.
        """
        check_layers(model)
        if self.attends:
            check_attention(model)

    def prepare(self, model: PreTrainedModel) -> Any:
        """What all layers share, such as what was calibrated; made once a cache."""
        return None

    @abstractmethod
    def layer(self, index: int, shape: KVShape, prepared: Any) -> CompressedLayer:
        """An empty layer.

        Args:
            index: of the decoder layer.
            shape: what the model caches.
            prepared: of `prepare`.
        """


class CompressedLayer(CacheLayerMixin, ABC):
    """Keys and values of one decoder layer, in fewer bytes.

    A subclass names the attributes that hold them in `stored` and writes `store`, which takes new keys and values and returns what
    attention sees now. Where its `Compression` attends, it writes `attend`.

    Attributes:
        attends: as its `Compression` says.
        length: tokens of the text so far, padding included, whatever is kept of them.
        moment: what the attention module was called with, while it is being called.
    """

    is_sliding = False
    is_croppable = False
    stored: ClassVar[tuple[str, ...]] = ()
    """Attributes that are a tensor, a list of tensors or None; the first dimension of each tensor is the row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attends = False
        self.length = 0
        self.moment: Moment | None = None
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None

    @abstractmethod
    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps what is new, and says what this call's attention sees.

        Args:
            keys, values: [batch, kv_heads, new, dim], keys turned by rope. `length` doesn't count them yet.

        Returns:
            [batch, kv_heads, length + new, dim] each, unless the layer attends: then whatever `attend` understands.
        """

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Attention of one call; the model's own, unless a layer has one.

        Returns:
            [batch, new, heads, dim], and weights or None.
        """
        return call.stock(call.keys, call.values, call.attention_mask)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Notes type and place of the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See `store`. key_states, value_states: [batch, kv_heads, new, dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.store(key_states, value_states)
        self.length += key_states.shape[-2]
        return (asking(keys, self), values) if self.attends else (keys, values)

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept of the text."""
        for name in self.stored:
            value = getattr(self, name)
            yield from [] if value is None else [value] if isinstance(value, Tensor) else value

    def nbytes(self) -> int:
        """Bytes of the storages of all that is kept, each counted once and whole."""
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in self.tensors()}
        return sum(storages.values())

    def get_seq_length(self) -> int:
        """Tokens of the text so far, whatever is kept of them."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns, first column) of a call's mask: the whole text."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """-1: no bound."""
        return -1

    def reset(self) -> None:
        """Empties the layer."""
        for name in self.stored:
            setattr(self, name, None)
        self.length, self.is_initialized, self.moment = 0, False, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes these rows in place of its own. beam_idx: [rows] of indices."""
        self._rows(lambda one: one.index_select(0, beam_idx.to(one.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows. indices: [rows] of indices, or bool [batch]."""
        self._rows(lambda one: one[indices.to(one.device), ...])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times, one after another."""
        self._rows(lambda one: one.repeat_interleave(repeats, dim=0))

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in self.stored:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, change(value) if isinstance(value, Tensor) else [change(one) for one in value])

    def crop(self, tokens_to_remove: int) -> None:
        """Refuses: what was compressed can't be put back, unless a layer says how.

        Raises:
            MethodError: always, but for 0 tokens.
        """
        if tokens_to_remove:
            raise MethodError(
                f"{type(self).__name__} can't give back {abs(tokens_to_remove)} tokens. Decode without drafts, or with a full cache."
            )

    def offload(self) -> None:
        """Refuses: a compressed cache stays where its model is.

        Raises:
            MethodError: always.
        """
        raise MethodError(
            "a compressed cache can't be moved to other memory between calls. Use DynamicCache(offloading=True)."
        )

    prefetch = offload


class CompressedCache(Cache):
    """Keys and values of one batch of texts, as a `Compression` keeps them: for `past_key_values`.

    Args:
        model: whose texts. It gets hooks on its attention modules, which do nothing unless a cache like this is passed.
        compression: the settings; without, those of `settings`.
        fields: of `settings`, where no compression is given.

    Raises:
        ModelError: a model that such a cache can't serve.
        MethodError: fields beside a compression, or a field without meaning.
    """

    settings: ClassVar[type[Compression] | None] = None
    watches: ClassVar[bool] = True
    plain_only: ClassVar[bool] = True  # `unwrite.decode` reads it: one token a forward, no draft
    is_compileable = False

    def __init__(self, model: PreTrainedModel, compression: Compression | None = None, **fields: Any) -> None:
        if compression is None:
            if self.settings is None:
                raise MethodError("CompressedCache is given no settings. Pass a compression, such as RotateKV(bits=2).")
            compression = self.settings(**fields)
        elif fields:
            raise MethodError(
                f"{next(iter(fields))} is given beside a compression that has its own. Pass one of the two."
            )
        self.compression, self.shape = compression, shape_of(model)
        compression.check(self.shape, model)
        prepared = compression.prepare(model)
        layers = [compression.layer(one, self.shape, prepared) for one in range(self.shape.layers)]
        for layer in layers:
            layer.attends = compression.attends
        super().__init__(layers=layers)
        self.serves = frozenset(id(module) for _, module in attention_modules(model))
        watch(model)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `CompressedLayer.update`.

        Raises:
            MethodError: another model fills it.
        """
        if layer_idx >= len(self.layers) or self.layers[layer_idx].moment is None:
            raise foreign(self)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def nbytes(self) -> int:
        """Bytes of all that is kept of the texts, counted from storage."""
        return sum(layer.nbytes() for layer in self.layers)

    def full_nbytes(self) -> int:
        """Bytes that keys and values of all tokens so far take where all are kept, in the model's precision."""
        first = self.layers[0]
        rows = next((len(one) for one in first.tensors()), 0)
        if not rows or first.dtype is None:
            return 0
        numbers = 2 * rows * first.length * self.shape.kv_heads * self.shape.head_dim * len(self.layers)
        return int(numbers * first.dtype.itemsize)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.compression}, {self.get_seq_length()} tokens)"
