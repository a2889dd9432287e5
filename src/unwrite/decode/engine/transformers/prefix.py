"""Whether a filled cache holds the beginning of these very prompts.

The keys of the first layer depend on nothing but ids, positions and weights. So the model starts a forward over the ids
that the cache should hold, stops where it stores those keys, and they are compared:

    mean |k - k'|  <=  tolerance * mean |k|   for every token
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ....errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import CacheLayerMixin

TOLERANCE = 1e-3  # and never less than a few roundings of the keys' number format
ROUNDINGS = 8


class _Stored(Exception):
    """Leaves the forward where it stores keys: `fresh` beside those `held` by the given cache."""

    def __init__(self, fresh: Tensor, held: Any) -> None:
        self.fresh, self.held = fresh, held


class _Probe(DynamicLayer):
    """An empty layer in place of a given one."""

    def __init__(self, layer: CacheLayerMixin) -> None:
        super().__init__()
        self.layer = layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise _Stored(key_states, self.layer.keys)


@torch.no_grad()
def check_prefix(model: PreTrainedModel, cache: Cache, ids: Tensor) -> None:
    """Refuses a cache of another text. A model that stores its keys some other way, or drops out, is let through.

    Args:
        cache: filled, of plain growing layers; never changed.
        ids: [batch, length of the cache], the beginning of every prompt.

    Raises:
        ModelError: the first layer's keys are not those of these ids.
    """
    if model.training:
        return
    probe, ids = _probing(cache), ids.to(model.get_input_embeddings().weight.device)
    inputs = model.prepare_inputs_for_generation(ids, past_key_values=probe, attention_mask=None, use_cache=True)
    inputs |= {"position_ids": torch.arange(ids.shape[1], device=ids.device).expand_as(ids)}
    try:
        model(**inputs)
    except _Stored as stored:
        if not isinstance(stored.held, Tensor) or stored.held.shape != stored.fresh.shape:
            return
        rounding = max(torch.finfo(keys.dtype).eps for keys in (stored.fresh, stored.held))
        fresh, held = stored.fresh.float(), stored.held.to(stored.fresh.device).float()
        error, size = ((x.abs().mean((1, 3))) for x in (held - fresh, fresh))
        wrong = (error > max(TOLERANCE, ROUNDINGS * rounding) * size).nonzero()
        if len(wrong):
            row, place = wrong[0].tolist()
            raise ModelError(
                f"the cache holds another text than the prompt of row {row}: its keys differ from token {place} on. "
                "Pass the cache this model filled with the prompt's own beginning, or no cache."
            ) from None


def _probing(cache: Cache) -> Cache:
    """An empty cache of the same class, and so for the caches it holds."""
    twin = copy.copy(cache)
    twin.layers = [_Probe(layer) for layer in cache.layers]
    twin.layer_class_to_replicate = None
    for name, inner in vars(cache).items():
        if isinstance(inner, Cache):
            setattr(twin, name, _probing(inner))
    return twin
