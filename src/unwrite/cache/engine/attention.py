"""How a layer of a cache sees the attention it serves: rope, mask and queries of every call, and attention of its own.

transformers hands a cache keys and values alone. `watch` sets hooks on each attention module and the decoder layer around it, once a
model: before a call whose cache is one of ours, the layer gets what both were given (`Moment`); and where the layer attends itself, the
model's attention function is for this one call the one below, which asks the layer. Outside such a call the model is as it was.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...errors import MethodError
from .support import attention_modules, block_around

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["AttentionCall", "Moment", "asking", "foreign", "visible", "watch"]

NAME = "unwrite_cache"


@dataclass(frozen=True)
class Moment:
    """What an attention module was called with.

    Args:
        hidden_states: [batch, new, hidden], behind the layer's norm.
        residual: [batch, new, hidden], what the decoder layer around it was given, before that norm.
        rope: (cosines, sines), each [batch or 1, new, rotated dim], by which queries and new keys are turned; None where positions
            enter otherwise.
        attention_mask: the mask of this call as the model made it; see `visible`.
        position_ids: [batch or 1, new], or None where the model doesn't hand them on.
        module: the module itself.
    """

    hidden_states: Tensor
    residual: Tensor
    rope: tuple[Tensor, Tensor] | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    module: nn.Module


@dataclass(frozen=True)
class AttentionCall:
    """One attention to compute.

    Args:
        query: [batch, heads, new, dim], turned by rope.
        keys, values: what the layer's `update` returned for this call.
        attention_mask: see `visible`.
        scaling: factor of the scores.
        stock: the model's own attention function, called with keys, values and a mask: `stock(keys, values, mask)` gives
            ([batch, new, heads, dim], weights or None).
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    attention_mask: Tensor | None
    scaling: float
    stock: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class Watching(Protocol):
    """What a layer must have to be told of calls."""

    moment: Moment | None
    attends: bool

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """([batch, new, heads, dim], weights or None)."""


class Watched(Protocol):
    """A cache of such layers."""

    layers: list[Any]
    watches: bool
    serves: frozenset[int]  # ids of its model's attention modules


def visible(mask: Tensor | None, new: int, known: int, device: torch.device) -> Tensor:
    """Which key every query may see: bool [batch or 1, heads or 1, new, known].

    Args:
        mask: as models make it: bool, or added to scores; None for a causal one without padding.
        new, known: queries, and keys of which the last `new` are theirs.
    """
    if mask is None:
        return torch.ones(new, known, dtype=torch.bool, device=device).tril(known - new)[None, None]
    mask = mask[..., :known]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def foreign(cache: Any) -> MethodError:
    """That another model fills a cache than the one it was made for."""
    return MethodError(
        f"{cache!r} was made for another model than the one that fills it. Make a cache with that model."
    )


def watch(model: PreTrainedModel) -> None:
    """Sets the hooks on a model's attention modules, if they aren't there yet, as they are on a copy of a model that had them."""
    for layer, module in attention_modules(model):
        if not any(isinstance(hook, _Announce) for hook in module._forward_pre_hooks.values()):
            block_around(model, module).register_forward_pre_hook(_Enter(module), with_kwargs=True)
            module.register_forward_pre_hook(_Announce(layer), with_kwargs=True)
            module.register_forward_hook(_Leave(layer), with_kwargs=True, always_call=True)


@dataclass(frozen=True, eq=False)
class _Enter:
    attention: nn.Module

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _ours(cache := _cache_in(args, kwargs)) and id(self.attention) in cache.serves:
            _residual[self.attention] = _hidden(args, kwargs)


@dataclass(frozen=True)
class _Announce:
    layer: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _ours(cache := _cache_in(args, kwargs)):
            return
        if id(module) not in cache.serves:
            raise foreign(cache)
        layer: Watching = cache.layers[self.layer]
        hidden = _hidden(args, kwargs)
        layer.moment = Moment(
            hidden,
            _residual.pop(module, hidden),
            kwargs.get("position_embeddings"),
            kwargs.get("attention_mask"),
            kwargs.get("position_ids"),
            module,
        )
        if layer.attends:
            _stock[module] = module.config._attn_implementation
            module.config._attn_implementation_internal = NAME


@dataclass(frozen=True)
class _Leave:
    layer: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _ours(cache := _cache_in(args, kwargs)) and id(module) in cache.serves:
            cache.layers[self.layer].moment = None
            if (stock := _stock.pop(module, None)) is not None:
                module.config._attn_implementation_internal = stock


_stock: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_residual: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()
_ASKED = "unwrite_layer"  # attribute of the keys a layer returns, by which the function below knows whom to ask


def asking(keys: Tensor, layer: Watching) -> Tensor:
    """The keys, marked with the layer that attends to them."""
    marked = keys.view_as(keys)
    setattr(marked, _ASKED, layer)
    return marked


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """In the order of transformers' own functions, for others wrap all of them and pass dropout by its place (kvpress)."""
    used = _stock[module]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(used, eager)

    def stock(keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        given = {"dropout": dropout, "scaling": scaling, **others}
        out: tuple[Tensor, Tensor | None] = function(module, query, keys, values, mask, **given)
        return out

    layer: Watching | None = getattr(key, _ASKED, None)
    if layer is None:
        return stock(key, value, attention_mask)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layer.attend(AttentionCall(query, key, value, attention_mask, factor, stock))


AttentionInterface.register(NAME, _attention)


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return hidden


def _cache_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The cache a module is called with, by whatever name: GPT-NeoX has another one for it."""
    return next((one for one in (*kwargs.values(), *args) if isinstance(one, Cache)), None)


def _ours(cache: Any) -> TypeGuard[Watched]:
    return getattr(cache, "watches", False)
