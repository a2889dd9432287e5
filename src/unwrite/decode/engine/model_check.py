"""What cannot be drafted for without changing its text is refused before the first token."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from ...errors import ModelError
from .arena import empty_cache

__all__ = ["check_model"]


def check_model(model: Any, cache: Any = None) -> None:
    """Refuses, before the first token, what cannot be drafted for without changing its text.

    Raises:
        ModelError: an encoder-decoder; layers with a sliding window, a recurrent state or shared keys; an attention
            implementation that takes no mask; no position ids; learned prompts; a cache that cannot roll back.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not hasattr(model, "prepare_inputs_for_generation"):
        raise ModelError(f"{name} is not a transformers model that generates. Load one with AutoModelForCausalLM.")
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise ModelError(f"{name} is an encoder-decoder; drafts need a decoder alone. Use its own `generate`.")
    if getattr(model, "_is_stateful", False):
        raise ModelError(f"{name} keeps a recurrent state, which cannot be rolled back. Use its own `generate`.")
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise ModelError(
            f"attention {attention!r} cannot take a tree's mask. Call model.set_attn_implementation('sdpa') first."
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelError(f"{name} takes no position ids, and the nodes of a tree share some. Use its own `generate`.")
    owner = getattr(model.prepare_inputs_for_generation, "__self__", model)
    if getattr(getattr(owner, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError("learned prompts lie in the cache before the text. Use the adapter's own `generate`, or LoRA.")
    for given in (empty_cache(model), cache):
        if given is not None:
            _check_cache(given, name)


def _check_cache(cache: Any, model: str) -> None:
    if not isinstance(cache, Cache):
        raise ModelError(f"the cache is a {type(cache).__name__}; pass an empty DynamicCache, or none.")
    if cache.offloading:
        raise ModelError("an offloaded cache cannot be rolled back in place. Pass an empty DynamicCache, or none.")
    for layer in cache.layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            raise ModelError(
                f"{model} has layers that see only the last {layer.sliding_window} tokens, and a tree's mask would "
                "undo that. Use a model with full attention, or its own `generate`; where all layers are alike and "
                "texts stay shorter than the window, config.sliding_window = None says the same thing."
            )
        if isinstance(layer, StaticLayer):
            raise ModelError("a static cache cannot hold a tree. Pass an empty DynamicCache, or none.")
        if type(layer) is not DynamicLayer:
            raise ModelError(
                f"{model} keeps a {type(layer).__name__}, which cannot be rolled back to an earlier token. Use a model "
                "with full attention in every layer and a DynamicCache, or its own `generate`."
            )
    for held in vars(cache).values():
        if isinstance(held, Cache):
            _check_cache(held, model)
