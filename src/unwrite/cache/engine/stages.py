"""Reading a prompt with fewer tokens in deeper layers: which layers form a stage, how many tokens each reads, and how the others leave.

    keep(l) = m + floor((n - m) / S) (S - s(l)),   s(l) = 0 .. S the stage of layer l, m the least length

A stage begins where the entropy of the layers falls by more than a bar (UNComp, arXiv 2410.03090). Before a layer of a later stage the
tokens that the layer above attended to least are taken out of hidden states, positions and mask, for it and all below; each row loses its
own. The last tokens always stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import MethodError, ModelError
from ...models import unwrap
from .support import attention_modules

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["Reading", "check_thinnable", "kept_lengths", "stage_labels", "watch_stages"]

READS = ("hidden_states", "attention_mask", "position_embeddings", "past_key_values")


def stage_labels(entropies: Sequence[float], fall: float = 1.0) -> tuple[int, ...]:
    """[layers] the stage of each layer, from 0: a new one begins where the entropy falls by more than `fall`.

    >>> stage_labels([71.1, 70.9, 67.4, 69.0, 69.2])
    (0, 0, 1, 1, 1)
    """
    labels = [0][: len(entropies)]
    for before, after in pairwise(entropies):
        labels.append(labels[-1] + (after - before < -fall))
    return tuple(labels)


def kept_lengths(tokens: int, stages: Sequence[int], least: int) -> tuple[int, ...]:
    """[layers] tokens of a prompt that each layer reads.

    Args:
        tokens: of the prompt.
        stages: [layers] of `stage_labels`.
        least: tokens that the last stage reads; a prompt within them is read whole everywhere.
    """
    last = max(stages)
    if tokens <= least or last == 0:
        return (tokens,) * len(stages)
    step = (tokens - least) // last
    return tuple(tokens if stage == 0 else least + step * (last - stage) for stage in stages)


@dataclass(frozen=True)
class Reading:
    """What a layer reads of a prompt, and what its last queries attended to.

    Args:
        columns: [rows, read] columns of the text, ascending.
        length: tokens of the whole prompt.
        scores: [rows, read] attention of the last queries, summed over heads; None before the layer has run.
    """

    columns: Tensor
    length: int
    scores: Tensor | None = None

    def thinned(self, size: int, window: int) -> Tensor | None:
        """[rows, size] indices within what was read of what the next layer reads, ascending; None where it reads all."""
        if self.scores is None or size >= self.columns.shape[1]:
            return None
        scores = self.scores.clone()
        scores[:, -window:] = torch.inf
        return scores.argsort(dim=-1, descending=True, stable=True)[:, :size].sort(-1).values


def check_thinnable(stages: Sequence[int], least: int, window: int, model: PreTrainedModel) -> None:
    """Refuses stages that don't fit a model, and a model whose layers aren't told positions and mask.

    Raises:
        MethodError: another number of stages than layers, stages that go back, a least length within the window.
        ModelError: decoder layers that take something else.
    """
    layers = decoder_layers(model)
    if len(stages) != len(layers) or stages[0] != 0 or any(b - a not in (0, 1) for a, b in pairwise(stages)):
        raise MethodError(
            f"stages are {', '.join(map(str, stages))}; give 0, 1, ... in order, one for each of the {len(layers)} layers."
        )
    if least <= window:
        raise MethodError(
            f"the last stage reads {least} tokens, and the window takes {window}. Raise the least length."
        )
    for layer in layers:
        if missing := [name for name in READS if name not in inspect.signature(layer.forward).parameters]:
            raise ModelError(
                f"{type(layer).__name__} takes no {missing[0].replace('_', ' ')}, by which tokens are taken out between layers. "
                "Leave the stages out."
            )


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that hold the attention modules, in the order of layers."""
    bare = unwrap(model)
    places = {id(module): name for name, module in bare.named_modules()}
    return [bare.get_submodule(places[id(module)].rpartition(".")[0]) for _, module in attention_modules(model)]


def watch_stages(model: PreTrainedModel) -> None:
    """Sets a hook before each decoder layer but the first, if it isn't there yet; it does nothing unless a cache has stages."""
    for index, layer in enumerate(decoder_layers(model)):
        if not any(isinstance(hook, _Thin) for hook in layer._forward_pre_hooks.values()):
            layer.register_forward_pre_hook(_Thin(index), with_kwargs=True)


@dataclass(frozen=True)
class _Thin:
    index: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        stages = getattr(getattr(cache, "compression", None), "stages", None)
        if cache is None or stages is None or cache.layers[self.index].length:
            return None  # another cache, or a text that goes on: all layers read what is new
        hidden = args[0] if args else kwargs["hidden_states"]
        rows, length = hidden.shape[0], kwargs["position_embeddings"][0].shape[1]
        if self.index == 0:
            columns = torch.arange(length, device=hidden.device).expand(rows, -1)
            cache.layers[0].reading = Reading(columns, length)
            return None
        above: Reading = cache.layers[self.index - 1].reading
        size = kept_lengths(length, stages, cache.compression.least_length)[self.index]
        stays = above.thinned(size, cache.compression.window)
        cache.layers[self.index - 1].reading = None
        columns = above.columns
        if stays is not None:
            columns = columns.gather(1, stays)
            hidden = hidden.gather(1, stays[..., None].expand(-1, -1, hidden.shape[2]))
        cache.layers[self.index].reading = Reading(columns, length)
        if columns.shape[1] == length:
            return None
        changed = {**kwargs, **_at(columns, kwargs)}
        return ((hidden, *args[1:]), changed) if args else (args, {**changed, "hidden_states": hidden})


def _at(columns: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positions and mask of these columns. columns: [rows, read]."""
    rows, read = columns.shape

    def along(states: Tensor) -> Tensor:  # [rows or 1, length, ...] to [rows, read, ...]
        wide = columns.view(rows, read, *(1,) * (states.dim() - 2))
        return states.expand(rows, *states.shape[1:]).gather(1, wide.expand(rows, read, *states.shape[2:]))

    changed: dict[str, Any] = {"position_embeddings": tuple(along(one) for one in kwargs["position_embeddings"])}
    if kwargs.get("position_ids") is not None:
        changed["position_ids"] = along(kwargs["position_ids"])
    mask = kwargs.get("attention_mask")
    if mask is not None:  # [rows or 1, 1, length, length]
        mask = mask.expand(rows, *mask.shape[1:])
        queries = columns[:, None, :, None].expand(rows, mask.shape[1], read, mask.shape[3])
        keys = columns[:, None, None].expand(rows, mask.shape[1], read, read)
        changed["attention_mask"] = mask.gather(2, queries).gather(3, keys)
    return changed
