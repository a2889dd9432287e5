"""Which models a compressed cache serves, and what their keys and values look like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from transformers.cache_utils import get_layer_types_and_kwargs

from ...errors import ModelError
from ...models import unwrap

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["KVShape", "attention_modules", "block_around", "check_attention", "check_layers", "shape_of"]

COMPUTED_HERE = (
    "eager",
    "sdpa",
)  # what a layer's own attention can stand in for: masks are tensors, one a query and key
WORKS = "Use a model all of whose layers attend to the whole text, or transformers' DynamicCache"


@dataclass(frozen=True)
class KVShape:
    """The sizes of what a model caches.

    Args:
        layers: decoder layers, each with keys and values of its own.
        heads, kv_heads: query heads and key-value heads of a layer; a key-value head serves heads / kv_heads query heads in a row.
        head_dim: numbers of one head's key.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads a key-value head serves."""
        return self.heads // self.kv_heads


def shape_of(model: PreTrainedModel) -> KVShape:
    """What a model caches, read from its config."""
    config = _bare(model).config.get_text_config(decoder=True)
    heads: int = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KVShape(config.num_hidden_layers, heads, kv_heads, head_dim)


def check_layers(model: PreTrainedModel) -> None:
    """Refuses what caches more, or less, than keys and values of every token.

    Raises:
        ModelError: an encoder-decoder; layers with a window, chunks, a recurrent state, or the keys of another layer; a fixed way to
            make masks.
    """
    bare = _bare(model)
    name, config = type(bare).__name__, bare.config.get_text_config(decoder=True)
    if bare.config.is_encoder_decoder:
        raise ModelError(f"{name} reads through an encoder, whose keys never grow. Use a decoder, or its own cache.")
    kinds = [kind for kind in get_layer_types_and_kwargs(config)[0] if kind != "full_attention"]
    if kinds:
        raise ModelError(
            f"{name} has {len(kinds)} of {config.num_hidden_layers} layers of the kind {kinds[0].replace('_', ' ')}, whose "
            f"cache is no list of all keys. {WORKS}."
        )
    found = sum(1 for _ in attention_modules(bare))
    if found != config.num_hidden_layers:
        raise ModelError(
            f"{name} has {config.num_hidden_layers} layers and {found} attention modules that say which layer is theirs. {WORKS}."
        )


def check_attention(model: PreTrainedModel) -> None:
    """Refuses a model whose attention no other function can stand in for.

    Raises:
        ModelError: a class outside transformers' attention interface; scores with a bound; an implementation whose masks are no
            tensors.
    """
    bare = _bare(model)
    used = bare.config._attn_implementation
    if not getattr(bare, "_supports_attention_backend", False):
        raise ModelError(
            f"{type(bare).__name__} computes attention in a way that nothing can replace, which this cache must. Use a cache that "
            "hands over whole keys (RotateKV, or Mustafar unpacked)."
        )
    if bound := getattr(bare.config.get_text_config(decoder=True), "attn_logit_softcapping", None):
        raise ModelError(
            f"{type(bare).__name__} bounds the scores of its attention by {bound:g}, which this cache's own does not. {WORKS}."
        )
    if used not in COMPUTED_HERE:
        raise ModelError(f"the model's attention is {used!r}; call model.set_attn_implementation('sdpa') before.")


def attention_modules(model: PreTrainedModel) -> Iterator[tuple[int, nn.Module]]:
    """(layer, module) of every attention module that fills a cache, in the order of layers."""
    found: dict[int, nn.Module] = {}
    for name, module in _bare(model).named_modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and "attention" in type(module).__name__.lower() and "cross" not in name.lower():
            found.setdefault(layer, module)
    return iter(sorted(found.items()))


def block_around(model: PreTrainedModel, attention: nn.Module) -> nn.Module:
    """The decoder layer that an attention module is of: the innermost entry of a list of modules around it."""
    bare = _bare(model)
    path = next(name for name, module in bare.named_modules() if module is attention).split(".")
    ends = [i + 1 for i, part in enumerate(path) if part.isdigit()]
    return bare.get_submodule(".".join(path[: ends[-1]] if ends else path))


def _bare(model: PreTrainedModel) -> PreTrainedModel:
    return cast("PreTrainedModel", unwrap(model))
