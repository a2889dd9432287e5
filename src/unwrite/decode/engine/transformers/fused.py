"""The forward of a Llama-family model as one flat loop: the same sums in fewer calls.

Per block: one product for query, key and value, one rotation for all heads, attention over the kept keys as they lie,
one product for gate and up, and residuals added inside the products. Used only where the model is stock down to the
last module: classes, forwards and attention are transformers' own, and no hook, adapter or quantised layer would be
passed by.

    x += O attention(turn(Q n(x)), turn(K n(x)), V n(x));   x += D (act(G n(x)) * U n(x));   n: RMS norm
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ....models.hooks import HOOKS, foreign_hooks
from ..runtime import Output
from .arena import Arena
from .packed import Pack, Unpacked, pack_of, packable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FusedLoop", "is_stock"]

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
PARTS = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
BASICS = (nn.Linear, nn.Embedding, nn.ModuleList)
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
FUNCTIONS = ("apply_rotary_pos_emb", "rotate_half", "eager_attention_forward")
LIBRARIES = tuple(str(Path(str(package.__file__)).parent) for package in (transformers, torch))

Product = Pack | Unpacked


def is_stock(model: PreTrainedModel) -> bool:
    """Whether the fused loop computes exactly what this model's own forward does.

    True for a float32 Llama, Mistral, Qwen2 or Qwen3 in main memory whose every module is of transformers' own class
    with its own forward, without hooks, adapters, dropout or parametrisations.
    """
    name = next((family for family in FAMILIES if type(model).__name__ == f"{family}ForCausalLM"), None)
    home = f"transformers.models.{name.lower()}.modeling_{name.lower()}" if name else ""
    if name is None or type(model).__module__ != home:
        return False
    source = sys.modules[home]
    own = tuple(getattr(source, name + part) for part in PARTS)
    if not all(_theirs(getattr(source, function)) for function in FUNCTIONS):
        return False
    if not _theirs(ALL_ATTENTION_FUNCTIONS.get("sdpa")) or any(getattr(torch_module, "_global" + h) for h in HOOKS):
        return False
    if model.training and model.config.attention_dropout > 0:
        return False
    return all(_untouched(module, own) for module in model.modules()) and _regular(model)


def _untouched(module: nn.Module, own: tuple[type, ...]) -> bool:
    """Of a class we know, with that class's forward, and nobody listening."""
    kind = type(module)
    if kind is nn.Linear:
        known = packable(module)
    else:
        known = kind in own or kind in BASICS or kind.__module__ in ACTIVATIONS
    return (
        known
        and "forward" not in vars(module)
        and _theirs(kind.__call__)
        and (kind is nn.ModuleList or _theirs(kind.forward))
        and not foreign_hooks(module)
        and all(type(p) is nn.Parameter and p.device.type == "cpu" for p in module.parameters(recurse=False))
    )


@functools.cache
def _theirs(function: Any) -> bool:
    """Whether a function, and all that it wraps, was written in transformers or torch."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is None or not code.co_filename.startswith(LIBRARIES):
            return False
        function = getattr(function, "__wrapped__", None)
        if function is None:
            return True
    return False


def _regular(model: PreTrainedModel) -> bool:
    """Whether shapes are those the loop assumes."""
    norm = model.model.norm.weight
    return norm.dtype is torch.float32 and all(
        layer.self_attn.head_dim % 2 == 0
        and layer.self_attn.q_proj.out_features % layer.self_attn.k_proj.out_features == 0
        and layer.self_attn.k_proj.out_features == layer.self_attn.v_proj.out_features
        and getattr(layer.self_attn, "sliding_window", None) is None
        for layer in model.model.layers
    )


@dataclass(frozen=True)
class FusedBlock:
    """One decoder layer, its products ready.

    Args:
        layer: transformers' own module, for its norms, activation and sizes.
        qkv, out, gate_up, down: [rows, in] to [rows, out].
    """

    layer: nn.Module
    qkv: Product
    out: Product
    gate_up: Product
    down: Product


class FusedLoop:
    """The forward of one stock model.

    Args:
        model: see `is_stock`.
        pack: multiply by packs; else by the model's own weights.
    """

    def __init__(self, model: PreTrainedModel, pack: bool) -> None:
        def product(owner: nn.Module, *modules: nn.Module) -> Product:
            return pack_of(owner, modules) if pack else Unpacked(modules)

        self.model = model
        self.blocks = []
        for layer in model.model.layers[: model.config.num_hidden_layers]:
            own, mlp = layer.self_attn, layer.mlp
            self.blocks.append(
                FusedBlock(
                    layer,
                    product(own, own.q_proj, own.k_proj, own.v_proj),
                    product(own.o_proj, own.o_proj),
                    product(mlp, mlp.gate_proj, mlp.up_proj),
                    product(mlp.down_proj, mlp.down_proj),
                )
            )
        self.head = product(model.lm_head, model.lm_head)

    @property
    def nbytes(self) -> int:
        """Bytes of the packs."""
        products = [p for b in self.blocks for p in (b.qkv, b.out, b.gate_up, b.down)]
        return sum(p.nbytes for p in [*products, self.head] if isinstance(p, Pack))

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        arena: Arena,
        want: frozenset[str],
        causal: bool = False,
        ends: Tensor | None = None,
    ) -> Output:
        """One forward; its keys go where `arena.expect` said.

        Args:
            tokens, positions: [batch, nodes].
            mask: [batch or 1, 1, nodes, columns], added to the scores; None where every node sees every column.
            causal: instead, every node sees itself and those before it, and there are no other columns.
            ends: [batch] the one node of every row whose logits are wanted; None for all nodes'.
        """
        backbone = self.model.model
        batch, nodes = tokens.shape
        embedded = backbone.embed_tokens(tokens)
        cos, sin = backbone.rotary_emb(embedded, positions)
        turn = _rotation(cos, sin, backbone.layers[0].self_attn)
        x = embedded.reshape(batch * nodes, -1)  # [rows, width], rows = batch x nodes
        layers = {}
        for index, block in enumerate(self.blocks):
            x = _attend(block, x, turn, mask, arena, batch, causal)
            x = _expand(block, x)
            if f"layer:{index}" in want:
                layers[index] = x.view(batch, nodes, -1)
        if ends is not None:
            x, nodes = x.view(batch, nodes, -1)[torch.arange(batch), ends], 1
        final = _norm(backbone.norm, x)
        return Output(
            self.head(final).view(batch, nodes, -1),
            final.view(batch, nodes, -1) if "final_hidden" in want else None,
            layers or None,
        )


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _rotation(cos: Tensor, sin: Tensor, attention: nn.Module) -> tuple[Tensor, Tensor]:
    """Factors for query, key and value heads alike, [rows, heads, width]; values are turned by nothing.

    turn(x) = x * cos + roll(x, width / 2) * sin, with the sign of the first half's sine already in it.
    """
    width = cos.shape[-1]
    cos, sin = cos.reshape(-1, 1, width), sin.reshape(-1, 1, width)
    sign = sin.new_ones(width)
    sign[: width // 2] = -1
    values = attention.v_proj.out_features // width
    turned = attention.q_proj.out_features // width + values
    still = cos.new_ones(len(cos), values, width)
    cosines = torch.cat([cos.expand(-1, turned, -1), still], 1)
    sines = torch.cat([(sin * sign).expand(-1, turned, -1), torch.zeros_like(still)], 1)
    return cosines, sines


def _attend(
    block: FusedBlock,
    x: Tensor,
    turn: tuple[Tensor, Tensor],
    mask: Tensor | None,
    arena: Arena,
    batch: int,
    causal: bool,
) -> Tensor:
    """x plus attention. x: [rows, width]."""
    own = block.layer.self_attn
    cosines, sines = turn
    mixed = block.qkv(_norm(block.layer.input_layernorm, x)).view(cosines.shape)  # [rows, q + k + v heads, width]
    kv = own.v_proj.out_features // own.head_dim
    heads = cosines.shape[1] - 2 * kv
    if hasattr(own, "q_norm"):
        q, k, v = mixed.split([heads, kv, kv], 1)
        mixed = torch.cat([_norm(own.q_norm, q), _norm(own.k_norm, k), v], 1)
    turned = (mixed * cosines).addcmul_(mixed.roll(own.head_dim // 2, -1), sines)
    turned = turned.view(batch, -1, *turned.shape[1:]).transpose(1, 2)  # [batch, heads, nodes, width]
    store = arena.layers[own.layer_idx]
    keys = arena.write(store.keys, turned[:, heads : heads + kv])
    values = arena.write(store.values, turned[:, heads + kv :])
    attended = F.scaled_dot_product_attention(
        turned[:, :heads], keys, values, attn_mask=mask, is_causal=causal, scale=own.scaling, enable_gqa=heads != kv
    )
    return block.out.add_to(x, attended.transpose(1, 2).reshape(len(x), -1))


def _expand(block: FusedBlock, x: Tensor) -> Tensor:
    """x plus the MLP. x: [rows, width]."""
    layer = block.layer
    gate, up = block.gate_up(_norm(layer.post_attention_layernorm, x)).chunk(2, -1)
    return block.down.add_to(x, layer.mlp.act_fn(gate).mul_(up))
