"""A text as the model's own `generate` writes it, one token a forward: its inputs, its cache, its forward.

What no tree can do (a window that slides, a recurrent state, a rope that turns otherwise from some length on) is left to the model:
`prepare_inputs_for_generation` decides before every forward, just as in `generate`. All rows of a batch have one length here, padding
on the left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerationMode

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel
    from transformers.utils import ModelOutput

__all__ = ["OwnSteps"]

CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")  # what models call theirs


class OwnSteps:
    """One call's rows.

    Args:
        model: never changed, but for what its own forward changes.
        ids: [batch, length], padded on the left.
        padding: [batch] ids of it.
        cache: empty or filled with a beginning of `ids`; made as `generate` makes it where there is none.
        room: tokens that may follow, for caches of a fixed size.
        handed_over: the cache given holds all of `ids`; `step` comes first.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        padding: Sequence[int],
        cache: Cache | None = None,
        room: int = 64,
        handed_over: bool = False,
    ) -> None:
        self._handed_over = handed_over
        self.model = model
        self.ids = ids.to(model.device)
        self._config = GenerationConfig()
        self._config._mask_length = ids.shape[1]
        self._kwargs = self._inputs(padding)
        if cache is not None:
            self._kwargs["cache_params" if "mamba" in type(model).__name__.lower() else "past_key_values"] = cache
        else:
            self._make_cache(ids.shape[0], ids.shape[1] + room)

    @property
    def cache(self) -> Cache | None:
        """What the model keeps of the text so far; None where it has shown none."""
        return next((self._kwargs[name] for name in CACHES if self._kwargs.get(name) is not None), None)

    @torch.no_grad()
    def prefill(self) -> Tensor:
        """The prompts' forward. Returns [batch, vocab] logits after them."""
        return self._after(self.model._prefill(self.ids, self._config, self._kwargs))

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """One token of every row. tokens: [batch], not yet forwarded. Returns [batch, vocab] logits after them."""
        self.ids = torch.cat([self.ids, tokens.to(self.ids)[:, None]], 1)
        if self._handed_over:  # mask and positions end with the cache; those of the token are made as after a forward
            self._kwargs = self.model._update_model_kwargs_for_generation({}, self._kwargs)
            self._handed_over = False
        inputs = self.model.prepare_inputs_for_generation(self.ids, next_sequence_length=1, **self._kwargs)
        return self._after(self.model(**inputs, return_dict=True))

    def _after(self, outputs: ModelOutput) -> Tensor:
        self._kwargs = self.model._update_model_kwargs_for_generation(outputs, self._kwargs)
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _inputs(self, padding: Sequence[int]) -> dict[str, Any]:
        """Mask and positions as `generate` makes them: no mask where nothing is padding."""
        accepts = _accepted(self.model.forward)
        rows, length = self.ids.shape
        columns = torch.arange(length, device=self.ids.device).expand(rows, -1)
        shown = columns >= torch.tensor(list(padding), device=self.ids.device)[:, None]
        inputs: dict[str, Any] = {"use_cache": True}
        if "attention_mask" in accepts:
            inputs["attention_mask"] = shown.long() if any(padding) else None
        if "position_ids" in accepts:
            inputs["position_ids"] = (shown.long().cumsum(-1) - 1).masked_fill(~shown, 0)
        if self.model._supports_logits_to_keep():
            inputs["logits_to_keep"] = 1
        return inputs

    def _make_cache(self, rows: int, length: int) -> None:
        make = getattr(self.model, "empty_cache", None)
        if callable(make):
            self._kwargs["past_key_values"] = make()
            return
        self.model._prepare_cache_for_generation(self._config, self._kwargs, GenerationMode.GREEDY_SEARCH, rows, length)


def _accepted(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
