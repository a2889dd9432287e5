"""Tiny llamas as GGUF files with a vocabulary, whole or in parts."""

from __future__ import annotations

import gguf
import numpy as np

from helpers.architectures import HEADS, INNER, WIDTH

NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}


def interleaved(weight, heads):
    """GGUF keeps each head's rotary halves interleaved, transformers one after the other."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def write_gguf(path, model, *, tensors_a_file=0, change=None):
    """A llama as llama.cpp writes it, float32, with a byte-level vocabulary.

    Args:
        tensors_a_file: split it into parts of so many.
        change: gets the tensors by name before they are written.
    """
    writer = gguf.GGUFWriter(str(path), "llama", split_max_tensors=tensors_a_file)
    writer.add_block_count(model.config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(ord("!") + i) for i in range(60)), "!!"])
    writer.add_token_types([3, 3, 3, *[1] * 61])
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    tensors["output"] = state["lm_head.weight"]
    for i in range(model.config.num_hidden_layers):
        old, new = f"model.layers.{i}", f"blk.{i}"
        for name, heads in (("q", HEADS), ("k", 2), ("v", None), ("o", None)):
            weight = state[f"{old}.self_attn.{name}_proj.weight"]
            tensors[f"{new}.{NAMES[name]}"] = weight if heads is None else interleaved(weight, heads)
        for name in ("gate", "up", "down"):
            tensors[f"{new}.ffn_{name}"] = state[f"{old}.mlp.{name}_proj.weight"]
        tensors[f"{new}.attn_norm"] = state[f"{old}.input_layernorm.weight"]
        tensors[f"{new}.ffn_norm"] = state[f"{old}.post_attention_layernorm.weight"]
    if change is not None:
        change(tensors)
    for name, value in tensors.items():
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
