"""Whether a model has the sizes that the compiled step is written for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["is_regular"]

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
