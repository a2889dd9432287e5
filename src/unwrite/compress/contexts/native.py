"""Released ARC encoders, whose weights have the names and the rotary order of Llama's own code.

That code turns neighbouring pairs of a head's numbers, transformers the first half against the second: rows of the query and key
matrices change places, and every product of a query and a key stays as it was.

    row 2 i + b of a head  ->  row b head_dim / 2 + i,   b = 0, 1

Its rotary frequencies are plain: the encoder of Llama-3.2-3B was trained without the scaling that transformers' configuration of
that model has. (kyutai-labs/ARC-Encoder, weights kyutai/ARC8_Encoder_Llama, _Mistral, _multi)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ModelError
from ...runs import read_tensors
from .arc_encoder import ArcEncoder, blank_body
from .settings import ArcSettings

__all__ = ["arc_from_native", "rotated_half", "transformers_names"]

NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def arc_from_native(
    path: str | Path,
    *,
    pooling_factor: int = 8,
    head_dim: int = 128,
    rope_theta: float = 500_000.0,
    norm_eps: float = 1e-5,
    max_positions: int = 128_000,
    decoders: tuple[str, ...] = (),
) -> ArcEncoder:
    """An encoder from a released checkpoint, in evaluation mode; sizes are read from the weights.

    Args:
        path: a folder with `model.safetensors`, as it lies on the Hub, or with `embedder/` and `bridge_module/`, as its training writes.
        pooling_factor: that it was trained with, 8 for all that are released.
        head_dim, rope_theta, norm_eps, max_positions: of Llama-3.2-3B in the published code, which the weights can't say.
        decoders: names of the decoders, in order.

    Raises:
        ModelError: no such files, damaged ones, or weights that aren't those of such an encoder.
    """
    from transformers import LlamaConfig

    tensors, bridge = _read(Path(path))
    try:
        state = {name: one for name, one in transformers_names(tensors, head_dim).items() if "_tok." not in name}
        state |= _projectors(bridge) | _special(tensors)
        vocab, width = tensors["tok_embeddings.weight"].shape
        config = LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=tensors["layers.0.feed_forward.w1.weight"].shape[0],
            num_hidden_layers=len({name.split(".")[1] for name in tensors if name.startswith("layers.")}),
            num_attention_heads=tensors["layers.0.attention.wq.weight"].shape[0] // head_dim,
            num_key_value_heads=tensors["layers.0.attention.wk.weight"].shape[0] // head_dim,
            head_dim=head_dim,
            rms_norm_eps=norm_eps,
            max_position_embeddings=max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        )
        inner = state["projectors.0.first.weight"].shape[0]
        outs = [state[f"projectors.{one}.second.weight"].shape[0] for one in range(_count(state, "projectors"))]
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} holds no released ARC encoder: {' '.join(str(error).split())[:200]}") from None
    settings = ArcSettings(tuple(outs), decoders, pooling_factor, projector_dim=inner)
    encoder = ArcEncoder(blank_body(config, tensors["tok_embeddings.weight"].dtype), settings)
    encoder.load_state(state, str(path))
    return encoder.eval()


def transformers_names(tensors: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Weights of a Llama by transformers' names, queries and keys in its rotary order; what is no layer's keeps its place."""
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
        if match is None:
            renamed[name.replace("tok_embeddings", "embed_tokens")] = tensor
            continue
        layer, part = match.groups()
        if part not in NAMES:
            raise KeyError(f"{name} is no weight of a Llama")
        turned = rotated_half(tensor, head_dim) if part in ("attention.wq", "attention.wk") else tensor
        renamed[f"layers.{layer}.{NAMES[part]}.weight"] = turned
    return renamed


def rotated_half(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key matrix [heads * head_dim, width], from pairs to halves."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of encoder and projectors, by their own names."""
    whole = path / "model.safetensors"
    if whole.is_file():
        tensors, _ = read_tensors(whole, "released ARC encoder", ModelError)
        return tuple(  # type: ignore[return-value]
            {name.removeprefix(part): one for name, one in tensors.items() if name.startswith(part)}
            for part in ("embedder.", "bridge_module.")
        )
    files = [path / part / "consolidated.safetensors" for part in ("embedder", "bridge_module")]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ModelError(
            f"{path} has neither {whole.name} nor {missing.relative_to(path)}. Give a released encoder's folder."
        )
    embedder, bridge = (read_tensors(file, "released ARC encoder", ModelError)[0] for file in files)
    return embedder, bridge


def _projectors(bridge: dict[str, Tensor]) -> dict[str, Tensor]:
    """Projectors by our names; an encoder for one decoder has them without a number."""
    parts = {"layer1": "first", "layer2": "second"}
    renamed = {}
    for name, tensor in bridge.items():
        number, part, _ = name.split(".") if name.count(".") == 2 else ("0", *name.split("."))
        renamed[f"projectors.{number}.{parts[part]}.weight"] = tensor
    return renamed


def _special(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The learned vectors by our names; older checkpoints have one of each, without a number."""
    known: dict[str, Any] = {"cont_tok": "continuation", "rec_tok": "reconstruction"}
    renamed = {}
    for name, tensor in tensors.items():
        kind, *rest = name.split(".")
        if kind in known:
            renamed[f"{known[kind]}.{rest[0] if len(rest) == 2 else 0}"] = tensor[0]
    return renamed


def _count(state: dict[str, Tensor], kind: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{kind}.")})
