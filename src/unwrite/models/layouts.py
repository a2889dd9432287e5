"""One record an architecture: the names its transformers implementation gives the parts.

To add a family, read its `modeling_*.py` and write its record; the tests in `tests/models/test_anatomy.py` then run
on it as they do on all others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class LayoutPart:
    """A projection's place below its block.

    Args:
        path: the module's.
        index, of: which of how many maps the module holds fused.
        fused: how they share its output rows: `stacked`, equal parts one after the other; `grouped`, q then k then
            v, with fewer rows for k and v; `per-head`, each head's q, k, v together.
    """

    path: str
    index: int = 0
    of: int = 1
    fused: Literal["stacked", "grouped", "per-head"] = "stacked"

    def rows(self, config: PreTrainedConfig) -> slice | Tensor | None:
        """The module's outputs that belong to this part; None for all of them."""
        if self.of == 1:
            return None
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        if self.fused == "per-head":
            import torch

            return torch.arange(heads * self.of * width).view(heads, self.of, width)[:, self.index].reshape(-1)
        if self.fused == "grouped":
            groups = config.num_key_value_heads
            start = (0, heads, heads + groups)[self.index] * width
            return slice(start, start + (heads, groups, groups)[self.index] * width)
        size = config.intermediate_size if self.of == 2 else config.hidden_size
        return slice(self.index * size, (self.index + 1) * size)


@dataclass(frozen=True)
class Layout:
    """The parts of an architecture; paths below a block, but where said.

    Args:
        q, k, v, o, gate, up, down: the projections; gate None for an MLP without one.
        norms: every norm a block may have; those a configuration leaves out are skipped.
        attention, mlp: the block's halves; an empty mlp is the block itself.
        backbone: from the base model to the module that holds the blocks.
        blocks, embeddings, positions: below the backbone.
        final: what follows the last block, below the backbone; what a model lacks is skipped.
        head: what follows `last_hidden_state`, below the whole model.
    """

    q: LayoutPart
    k: LayoutPart
    v: LayoutPart
    o: LayoutPart
    up: LayoutPart
    down: LayoutPart
    gate: LayoutPart | None = None
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    attention: str = "self_attn"
    mlp: str = "mlp"
    backbone: str = ""
    blocks: str = "layers"
    embeddings: str = "embed_tokens"
    positions: str | None = None
    final: tuple[str, ...] = ("norm",)
    head: tuple[str, ...] = ("lm_head",)


LLAMA = Layout(
    q=LayoutPart("self_attn.q_proj"),
    k=LayoutPart("self_attn.k_proj"),
    v=LayoutPart("self_attn.v_proj"),
    o=LayoutPart("self_attn.o_proj"),
    gate=LayoutPart("mlp.gate_proj"),
    up=LayoutPart("mlp.up_proj"),
    down=LayoutPart("mlp.down_proj"),
)
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_GEMMA_NORMS = (*LLAMA.norms, "pre_feedforward_layernorm", "post_feedforward_layernorm")
QWEN3 = replace(LLAMA, norms=(*LLAMA.norms, *_HEAD_NORMS))
GEMMA2 = replace(LLAMA, norms=_GEMMA_NORMS)
GEMMA3 = replace(LLAMA, norms=(*_GEMMA_NORMS, *_HEAD_NORMS))

GPT2 = Layout(
    q=LayoutPart("attn.c_attn", 0, 3),
    k=LayoutPart("attn.c_attn", 1, 3),
    v=LayoutPart("attn.c_attn", 2, 3),
    o=LayoutPart("attn.c_proj"),
    up=LayoutPart("mlp.c_fc"),
    down=LayoutPart("mlp.c_proj"),
    norms=("ln_1", "ln_2"),
    attention="attn",
    blocks="h",
    embeddings="wte",
    positions="wpe",
    final=("ln_f",),
)
GPT_NEOX = Layout(
    q=LayoutPart("attention.query_key_value", 0, 3, "per-head"),
    k=LayoutPart("attention.query_key_value", 1, 3, "per-head"),
    v=LayoutPart("attention.query_key_value", 2, 3, "per-head"),
    o=LayoutPart("attention.dense"),
    up=LayoutPart("mlp.dense_h_to_4h"),
    down=LayoutPart("mlp.dense_4h_to_h"),
    attention="attention",
    embeddings="embed_in",
    final=("final_layer_norm",),
)
OPT = Layout(
    q=LayoutPart("self_attn.q_proj"),
    k=LayoutPart("self_attn.k_proj"),
    v=LayoutPart("self_attn.v_proj"),
    o=LayoutPart("self_attn.out_proj"),
    up=LayoutPart("fc1"),
    down=LayoutPart("fc2"),
    norms=("self_attn_layer_norm", "final_layer_norm"),
    mlp="",
    backbone="decoder",
    positions="embed_positions",
    final=("final_layer_norm", "project_out"),
)
PHI = Layout(
    q=LayoutPart("self_attn.q_proj"),
    k=LayoutPart("self_attn.k_proj"),
    v=LayoutPart("self_attn.v_proj"),
    o=LayoutPart("self_attn.dense"),
    up=LayoutPart("mlp.fc1"),
    down=LayoutPart("mlp.fc2"),
    norms=("input_layernorm", "self_attn.q_layernorm", "self_attn.k_layernorm"),
    final=("final_layernorm",),
)
PHI3 = replace(
    LLAMA,
    q=LayoutPart("self_attn.qkv_proj", 0, 3, "grouped"),
    k=LayoutPart("self_attn.qkv_proj", 1, 3, "grouped"),
    v=LayoutPart("self_attn.qkv_proj", 2, 3, "grouped"),
    gate=LayoutPart("mlp.gate_up_proj", 0, 2),
    up=LayoutPart("mlp.gate_up_proj", 1, 2),
)
MODERNBERT = Layout(
    q=LayoutPart("attn.Wqkv", 0, 3),
    k=LayoutPart("attn.Wqkv", 1, 3),
    v=LayoutPart("attn.Wqkv", 2, 3),
    o=LayoutPart("attn.Wo"),
    gate=LayoutPart("mlp.Wi", 0, 2),
    up=LayoutPart("mlp.Wi", 1, 2),
    down=LayoutPart("mlp.Wo"),
    norms=("attn_norm", "mlp_norm"),
    attention="attn",
    embeddings="embeddings.tok_embeddings",
    final=("final_norm",),
    head=("head", "decoder"),
)

LAYOUTS: dict[str, Layout] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "smollm3": LLAMA,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
    "phi": PHI,
    "phi3": PHI3,
    "modernbert": MODERNBERT,
}
"""`config.model_type` to its record."""
