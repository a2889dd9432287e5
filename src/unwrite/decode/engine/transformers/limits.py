"""What a config and its modules say about trees: whether they can run at all, and up to which length.

Windows and switches are read, not measured: crossing one of 4,096 tokens would cost more than most texts. A test crosses every
window of every architecture on small models, so what is read here is known to hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicSlidingWindowLayer

from .arena import GROWING, empty_cache

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["Support", "columns", "decoders", "limits", "never"]


@dataclass(frozen=True)
class Support:
    """Up to which length drafts leave a model's text as it is.

    Args:
        limit: tokens of a text, its padding included, that a tree may end at; None for any number, 0 for plain steps only.
        why: what sets the limit, as the end of a sentence that begins with the model's name.
        columns: cached tokens and nodes together for which the model's own fixed masks hold; None for any number.
        fault: why not even plain steps run; empty where they do.
    """

    limit: int | None = None
    why: str = ""
    columns: int | None = None
    fault: str = ""

    @property
    def plain(self) -> bool:
        """Whether no draft may run at any length."""
        return self.limit == 0


def decoders(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model, and what decodes inside it."""
    yield model
    for part in model.modules():
        if part is not model and hasattr(part, "prepare_inputs_for_generation") and hasattr(part, "config"):
            yield part


def never(model: PreTrainedModel) -> str:
    """What rules trees out at every length."""
    config, attention = model.config, getattr(model.config, "_attn_implementation", None)
    if getattr(config, "add_cross_attention", False):
        return "attends to an encoder's states as well"
    if getattr(model, "_is_stateful", False):
        return "keeps a recurrent state, which cannot be rolled back"
    if attention not in (None, "eager", "sdpa"):
        return f"runs attention {attention!r}, which takes no tree's mask; call model.set_attn_implementation('sdpa')"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "takes no position ids, and the nodes of a tree share some"
    if getattr(config.get_text_config(decoder=True), "alibi", False):
        return "counts distances in columns (ALiBi), and the nodes of a tree share some"
    if not callable(getattr(model, "empty_cache", None)) and not _takes_dynamic_cache(model):
        return "keeps a cache of its own kind, which cannot be rolled back"
    for layer in empty_cache(model).layers:
        if type(layer) not in (*GROWING, DummyLayer):
            return f"keeps a {type(layer).__name__} in its cache, which cannot be rolled back"
    return ""


def _takes_dynamic_cache(model: PreTrainedModel) -> bool:
    supports = getattr(model, "_supports_default_dynamic_cache", None)
    return supports is None or bool(supports())


def limits(model: PreTrainedModel) -> Iterator[tuple[int, str]]:
    """(tokens, what happens beyond them) for every window and switch of the model and of those inside it."""
    for part in decoders(model):
        config = part.config.get_text_config(decoder=True)
        for layer in DynamicCache(config=config).layers:
            if isinstance(layer, DynamicSlidingWindowLayer):
                yield layer.sliding_window, f"has layers that see only the last {layer.sliding_window} tokens"
        yield from _named(config)
    for module in model.modules():
        yield from _switches(module)


def _named(config: PreTrainedConfig) -> Iterator[tuple[int, str]]:
    """Windows that attention reads from the config and the cache does not know of."""
    if "local" in (getattr(config, "attention_layers", None) or ()):
        yield config.window_size, f"has layers that see only the last {config.window_size} tokens"
    if window := getattr(config, "keep_window_size", None):
        yield window, f"chooses what it attends to from {window} tokens on"
    if getattr(config, "attn_temperature_tuning", False) and (scale := getattr(config, "floor_scale", None)):
        yield int(scale) - 1, f"scales its queries by their column from {scale} tokens on"


def _switches(module: nn.Module) -> Iterator[tuple[int, str]]:
    """Where a rotary embedding begins to turn otherwise."""
    kinds = getattr(module, "rope_type", None)
    kinds = kinds if isinstance(kinds, dict) else {None: kinds}
    for layers, kind in kinds.items():
        if not isinstance(kind, str):
            continue
        if "dynamic" in kind:
            last = int(module.original_max_seq_len)
            yield last, f"turns keys by another frequency behind {last} tokens (dynamic rope)"
        elif kind == "longrope":
            rope = module.config.rope_parameters
            last = int((rope[layers] if layers else rope)["original_max_position_embeddings"])
            yield last, f"turns keys by another frequency behind {last} tokens (longrope)"


def columns(model: PreTrainedModel) -> Iterator[int]:
    """Sizes of masks that the model made once, and windows that it counts in columns, where the nodes of a tree lie side by side."""
    for part in decoders(model):
        yield from (limit for limit, _ in _named(part.config.get_text_config(decoder=True)))
    for buffer in model.buffers():
        if buffer.ndim == 4 and buffer.dtype in (torch.bool, torch.uint8) and buffer.shape[2] == buffer.shape[3] > 1:
            yield buffer.shape[3]
