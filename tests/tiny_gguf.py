"""A random Llama as a GGUF file of some hundred kilobytes, for tests that need llama.cpp but no real model."""

import numpy as np


def make_model(vocab=96):
    """A random Llama of two layers whose widths llama.cpp can quantise; float32, in eval mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(path, model, tensors_a_file=0):
    """The model's weights in float32, without a tokenizer; in parts where `tensors_a_file` is given."""
    import gguf

    config, state = model.config, {k: v.numpy() for k, v in model.state_dict().items()}
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_a_file)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for layer in range(config.num_hidden_layers):
        inside = {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
            "self_attn.o_proj": "attn_output",
        }
        inside |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"}
        inside |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
        names |= {f"model.layers.{layer}.{k}": f"blk.{layer}.{v}" for k, v in inside.items()}
    for name, stored in names.items():
        weight = state[f"{name}.weight"]
        if stored.endswith(("attn_q", "attn_k")):
            weight = _paired(weight, heads[stored[-1]])
        writer.add_tensor(f"{stored}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _paired(weight, heads):
    """GGUF's Llama rotates neighbouring columns; transformers rotates the halves of a head."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
