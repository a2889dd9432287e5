"""What can be said of a model before anything is compiled: whether its sizes are right, and whether its weights may fit in fewer bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import psutil
from torch import nn

from ..packed import MEMORY_SHARE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["is_regular", "may_be_packed", "packs_fit"]

BLOCK = 32  # what every width is a multiple of
ROPES = ("default", "linear", "llama3", "yarn")  # whose angles are a function of the position alone
ACTIVATIONS = ("SiLUActivation", "SiLU")


def is_regular(model: PreTrainedModel) -> bool:
    """Whether all layers of a stock model (`fused.is_stock`) are alike, of widths that are multiples of 32, with SiLU between
    and angles that don't depend on how long the text is."""
    layers = model.model.layers[: model.config.num_hidden_layers]
    shapes, epsilons = set(), {model.model.norm.variance_epsilon}
    for layer in layers:
        own, mlp = layer.self_attn, layer.mlp
        shapes.add(
            (own.head_dim, own.scaling, own.q_proj.out_features, own.k_proj.out_features, mlp.gate_proj.out_features)
        )
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(own, name) for name in ("q_norm", "k_norm") if hasattr(own, name)]
        epsilons |= {norm.variance_epsilon for norm in norms}
    if len(shapes) != 1 or len(epsilons) != 1 or model.model.embed_tokens.weight.shape[1] % BLOCK:
        return False
    head_width, _, queries, keys, inner = shapes.pop()
    return (
        not any(size % BLOCK for size in (head_width, queries, keys, inner))
        and all(type(layer.mlp.act_fn).__name__ in ACTIVATIONS for layer in layers)
        and getattr(model.model.rotary_emb, "rope_type", None) in ROPES
        and all(parameter.is_contiguous() for parameter in model.parameters())
    )


def packs_fit(model: PreTrainedModel) -> bool:
    """Whether packs take at most `MEMORY_SHARE` of the memory that is free: half of the linear weights' bytes, where all are bfloat16."""
    linear = sum(2 * module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    return linear <= MEMORY_SHARE * psutil.virtual_memory().available


def may_be_packed(model: PreTrainedModel) -> bool:
    """Whether the first weights of some matrix look like a form of `exact.py`; of weights as training leaves them, one in a thousand does."""
    layers = model.model.layers[: model.config.num_hidden_layers]
    few = [layers[0].self_attn.q_proj, layers[-1].self_attn.o_proj, layers[0].mlp.up_proj, layers[-1].mlp.down_proj]
    return any(_looks_packed(module.weight[0, :BLOCK].detach().numpy()) for module in [*few, model.lm_head])


def _looks_packed(block: np.ndarray) -> bool:
    """A block whose lowest weight, largest one, or largest one over 127 has few enough bits for half precision, or all for bfloat16."""
    largest = block[np.abs(block).argmax()]
    with np.errstate(over="ignore"):
        step = np.float32(np.float16(abs(largest) / np.float32(127)))
        halves = [np.float32(np.float16(one)) == one for one in (block.min(), largest)]
    return bool(any(halves) or step * np.float32(127) == abs(largest) or not (block.view(np.uint32) & 0xFFFF).any())
