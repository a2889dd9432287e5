"""What does not decode at all is refused before the first token; what merely takes no tree, `support` knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import Cache
from transformers.cache_utils import DummyLayer, StaticLayer

from ....errors import ModelError
from .arena import GROWING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_cache", "check_model"]


def check_model(model: PreTrainedModel) -> None:
    """Refuses what is no causal model of transformers.

    Raises:
        ModelError: no model that generates; an encoder-decoder; learned prompts.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not hasattr(model, "prepare_inputs_for_generation"):
        raise ModelError(f"{name} is not a transformers model that generates. Load one with AutoModelForCausalLM.")
    if config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder; drafts need a decoder alone. Use its own `generate`.")
    owner = getattr(model.prepare_inputs_for_generation, "__self__", model)
    if getattr(getattr(owner, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError("learned prompts lie in the cache before the text. Use the adapter's own `generate`, or LoRA.")


def check_cache(cache: Cache, model: str) -> None:
    """Refuses a cache in which drafts cannot be rolled back. model: its name.

    Raises:
        ModelError: no Cache, an offloaded one, or one of other layers than growing ones.
    """
    if not isinstance(cache, Cache):
        raise ModelError(f"the cache is a {type(cache).__name__}; pass an empty DynamicCache, or none.")
    if cache.offloading:
        raise ModelError("an offloaded cache cannot be rolled back in place. Pass an empty DynamicCache, or none.")
    for layer in cache.layers:
        if isinstance(layer, StaticLayer):
            raise ModelError("a static cache cannot hold a tree. Pass an empty DynamicCache, or none.")
        if type(layer) not in (*GROWING, DummyLayer):
            raise ModelError(
                f"{model} was given a cache with a {type(layer).__name__}, which cannot be rolled back to an earlier token. "
                "Pass an empty DynamicCache, or none."
            )
    for inner in vars(cache).values():
        if isinstance(inner, Cache):
            check_cache(inner, model)
