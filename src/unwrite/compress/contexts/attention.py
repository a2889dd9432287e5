"""A decoder layer run with queries from one sequence, and keys and values from another.

    h1 = q + Attn(norm(q); norm(h)),   out = h1 + FFN(norm(h1))

transformers' layers take both from one sequence; this is the same arithmetic, with the layer's own modules.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward, rotate_half

__all__ = ["Turn", "crossed", "hiding"]

Turn = tuple[Tensor, Tensor]  # cosines and sines of rotary positions, [batch, length, head_dim] each


def hiding(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to attention scores, [batch, 1, queries, keys], of True where a query sees a key."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def crossed(layer: nn.Module, queries: Tensor, states: Tensor, at: Turn, of: Turn, mask: Tensor) -> Tensor:
    """A layer's output for `queries` that attend to `states`.

    Args:
        layer: a decoder layer of transformers' Llama, Mistral, Qwen2 or Qwen3.
        queries: [batch, vectors, dim], what the residual stream goes on from.
        states: [batch, tokens, dim], what keys and values are made of.
        at, of: rotary positions of the queries and of the states.
        mask: [batch, 1, vectors, tokens], see `hiding`.

    Returns:
        [batch, vectors, dim].
    """
    block: Any = layer
    attention = block.self_attn
    query = _heads(attention, block.input_layernorm(queries), "q")  # [batch, heads, vectors, head_dim]
    normed = block.input_layernorm(states)
    key, value = _heads(attention, normed, "k"), _heads(attention, normed, "v")  # [batch, kv heads, tokens, head_dim]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    output, _ = attend(
        attention,
        _turned(query, at),
        _turned(key, of),
        value,
        mask,
        dropout=attention.attention_dropout if layer.training else 0.0,
        scaling=attention.scaling,
    )  # [batch, vectors, heads, head_dim]
    states = queries + attention.o_proj(output.flatten(2))
    return cast(Tensor, states + block.mlp(block.post_attention_layernorm(states)))


def _heads(attention: Any, states: Tensor, part: str) -> Tensor:
    projected = getattr(attention, f"{part}_proj")(states).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{part}_norm", None)  # Qwen3 norms each head's queries and keys
    return cast(Tensor, projected if norm is None else norm(projected)).transpose(1, 2)


def _turned(heads: Tensor, turn: Turn) -> Tensor:
    cos, sin = (part[:, None] for part in turn)
    return cast(Tensor, heads * cos + rotate_half(heads) * sin)
