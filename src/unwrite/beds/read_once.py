"""A prompt that is read once for many caches, and what a compressed cache is held against: few tokens of it, whole.

A cache that compresses a prompt behind its attention reads it as the full cache does, so that one forward serves all of them: `read_once`
notes what every layer is given, `filled` gives it to another cache. What follows is read in one piece, each token seeing the ones before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from ..cache.base import CompressedCache, CompressedLayer, Compression
from ..cache.engine.attention import AttentionCall, Moment, visible
from ..cache.engine.pruning import recent_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..cache.engine.support import KVShape

__all__ = ["FewTokens", "ReadPrompt", "filled", "following", "read_once"]

ASKING = 32  # last queries, which say what they attend to
NEAR = 7  # neighbours whose attention counts for a token


@dataclass(frozen=True)
class Given:
    """What one layer was given of a prompt.

    Args:
        moment: what its module was called with, but for hidden states.
        keys, values: [rows, kv_heads, tokens, dim].
        queries: [rows, heads, last, dim].
        scaling: factor of the scores.
    """

    moment: Moment
    keys: Tensor
    values: Tensor
    queries: Tensor
    scaling: float


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as every layer saw it.

    Args:
        model: which read it.
        mask: [rows, tokens], 0 where there is only padding.
        layers: what each was given.
    """

    model: PreTrainedModel
    mask: Tensor
    layers: tuple[Given, ...]


class _Noting(Compression):
    attends = True

    def layer(self, index: int, shape: KVShape, prepared: Any) -> CompressedLayer:
        return _NotingLayer()


class _NotingLayer(CompressedLayer):
    given: Given

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        assert self.moment is not None
        moment = replace(self.moment, hidden_states=call.query[:0])
        self.given = Given(moment, call.keys, call.values, call.query[:, :, -ASKING:].clone(), call.scaling)
        return super().attend(call)


@torch.no_grad()
def read_once(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> ReadPrompt:
    """Reads a prompt at once. ids: [rows, tokens]; mask: the same, 0 where there is only padding in front."""
    mask = torch.ones_like(ids) if mask is None else mask
    cache = _Noting().cache(model)
    model(ids, attention_mask=mask, position_ids=_positions(mask), past_key_values=cache, logits_to_keep=1)
    return ReadPrompt(model, mask, tuple(cast("_NotingLayer", layer).given for layer in cache.layers))


@torch.no_grad()
def filled(prompt: ReadPrompt, compression: Compression) -> CompressedCache:
    """A cache as it is behind the prompt. It may compress behind its attention only, and look at the last queries only."""
    cache = compression.cache(prompt.model)
    for layer, given in zip(cache.layers, prompt.layers, strict=True):
        layer.moment = given.moment
        keys, values = layer.update(given.keys, given.values)
        if layer.attends:
            missing = given.keys.shape[2] - given.queries.shape[2]
            queries = torch.nn.functional.pad(given.queries, (0, 0, missing, 0))
            mask = given.moment.attention_mask
            layer.attend(AttentionCall(queries, keys, values, mask, given.scaling, _not_again))
        layer.moment = None
    return cache


@torch.no_grad()
def following(prompt: ReadPrompt, cache: CompressedCache, ids: Tensor) -> Tensor:
    """[rows, tokens, vocab] scores of what follows each of these tokens, which stand behind the prompt. ids: [rows, tokens]."""
    mask = torch.cat([prompt.mask, torch.ones_like(ids)], 1)
    positions = _positions(mask)[:, -ids.shape[1] :]
    scores: Tensor = prompt.model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
    return scores.float()


def _not_again(keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The prompt has attended already."""
    return values, None


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


@dataclass(frozen=True)
class FewTokens(Compression):
    """Some tokens of a prompt, whole, and all that follow.

    Args:
        tokens: how many of the prompt are kept.
        by: "recent" keeps the first and the last ones (StreamingLLM, arXiv 2309.17453), "attention" the last ones and, each key-value head
            its own, those that they attend to (SnapKV, arXiv 2404.14469).
        sinks: how many of the first ones.
    """

    tokens: int = 256
    by: Literal["recent", "attention"] = "recent"
    sinks: int = 4

    attends = True

    def layer(self, index: int, shape: KVShape, prepared: Any) -> FewTokensLayer:
        """See the base."""
        return FewTokensLayer(self)


class FewTokensLayer(CompressedLayer):
    """Keys and values of a prompt's chosen tokens and of all that follow.

    Attributes:
        kept_keys, kept_values: [rows, kv_heads, kept, dim].
        real: bool [rows, kv_heads, chosen], False for padding.
    """

    stored = ("kept_keys", "kept_values", "real")

    def __init__(self, settings: FewTokens) -> None:
        super().__init__()
        self.settings = settings
        self.kept_keys: Tensor | None = None
        self.kept_values: Tensor | None = None
        self.real: Tensor | None = None

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See the base; what is seen is what is kept."""
        if self.kept_keys is not None and self.kept_values is not None:
            keys, values = torch.cat([self.kept_keys, keys], 2), torch.cat([self.kept_values, values], 2)
        self.kept_keys, self.kept_values = keys, values
        return keys, values

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        new = call.query.shape[2]
        if self.real is None:
            out = call.stock(call.keys, call.values, call.attention_mask)
            self._choose(call)
            return out
        since = call.keys.shape[2] - self.real.shape[2]
        old = self.real.repeat_interleave(call.query.shape[1] // self.real.shape[1], 1)[:, :, None].expand(
            -1, -1, new, -1
        )
        late = torch.ones(new, since, dtype=torch.bool, device=old.device).tril(since - new).expand(*old.shape[:3], -1)
        return call.stock(call.keys, call.values, torch.cat([old, late], -1))

    def _choose(self, call: AttentionCall) -> None:
        """Keeps the chosen tokens of a prompt."""
        keys, values = call.keys, call.values
        rows, heads, tokens, dim = keys.shape
        real = visible(call.attention_mask, tokens, tokens, keys.device)[:, 0, -1].expand(rows, -1)
        chosen = self._recent(real) if self.settings.by == "recent" else self._attended(call, real)
        chosen = chosen.expand(rows, heads, -1)
        self.real = real[:, None].expand(-1, heads, -1).gather(2, chosen)
        places = chosen[..., None].expand(-1, -1, -1, dim)
        self.kept_keys, self.kept_values = keys.gather(2, places), values.gather(2, places)

    def _recent(self, real: Tensor) -> Tensor:
        """[rows, 1, kept]: the first tokens behind the padding, and the last ones."""
        tokens, s = real.shape[1], self.settings
        last = torch.arange(tokens - max(0, s.tokens - s.sinks), tokens, device=real.device)
        first = real.int().argmax(1)[:, None] + torch.arange(s.sinks, device=real.device)
        return torch.cat([first, last.expand(len(real), -1)], 1)[:, None]

    def _attended(self, call: AttentionCall, real: Tensor) -> Tensor:
        """[rows, kv_heads, kept]: the last tokens, and those that they or whose neighbours they attend to, in the order of the text."""
        got = recent_attention(call.query[:, :, -ASKING:], call.keys, real, call.scaling)
        got = torch.nn.functional.max_pool1d(got, NEAR, 1, NEAR // 2)
        got[..., -ASKING:] = torch.inf
        return got.topk(self.settings.tokens, -1).indices.sort(-1).values
