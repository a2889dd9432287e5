"""Tiny random models of every architecture that transformers lists with a causal head, and of its variants with windows and switches.

`ARCHITECTURES` is the library's own list; `VARIANTS` are shapes of some of them that a default config doesn't show. Windows are 16
tokens, the range of a rope that switches 24, positions 160.
"""

import re

import torch
import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unwrite.decode.engine.transformers.model_check import check_model
from unwrite.decode.engine.transformers.support import able
from unwrite.errors import ModelError

VOCAB = 67
WINDOW, SWITCH = 16, 24
UNMADE = "not tried: no small model of it can be made here"
TREES, LIMITED, PLAIN, REFUSED = "trees", "trees, then plain steps", "plain steps", "refused"
LARGEST = 8_000_000  # weights of what counts as tiny
ARCHITECTURES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Every field by any of its names; a config takes those it has.
SMALL = {
    "vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "embedding_size": 32, "intermediate_size": 64, "d_ff": 64, "ffn_dim": 64,
    "decoder_ffn_dim": 64, "num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "num_layers": 3, "decoder_layers": 3,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 160, "n_positions": 160, "sliding_window": WINDOW, "attention_chunk_size": WINDOW,
    "window_size": WINDOW, "sliding_window_size": WINDOW, "attention_window_size": WINDOW, "shared_experts_intermediate_size": 32, "keep_window_size": WINDOW,
    "local_attention": 2 * WINDOW, "index_topk": WINDOW, "index_head_dim": 16, "index_n_heads": 2, "rotary_dim": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "expert_ffn_hidden_size": 32, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "qk_head_dim": 16, "state_size": 4,
}  # fmt: skip
_ALL_HEADS = {"num_key_value_heads": 4}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_n_groups": 1,
}
_PER_LAYER = {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8}
_MIXED = ["full_attention", "sliding_attention", "full_attention"]

OVERRIDES = {
    **{kind: {"layer_types": _MIXED} for kind in ("flint", "gpt_oss", "laguna", "mellum")},
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "dots3_note_text": _ALL_HEADS | {"shared_experts_intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB},
    "gemma3n_text": _PER_LAYER | {"num_kv_shared_layers": 0, "laurel_rank": 8, "activation_sparsity_pattern": None},
    "gemma4_text": _PER_LAYER | {"num_kv_shared_layers": 0},
    "gemma4": _PER_LAYER | {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
              "mamba_d_state": 4, "mamba_dt_rank": 4},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention", "mamba"]},
    **{kind: {"num_hidden_layers": 4} for kind in (
        "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8},
    "prophetnet": {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
                 "attn_layers": ["local", "lsh"], "num_hashes": 1, "num_buckets": 4, "hash_seed": 0, "attention_head_size": 8},
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8, "pronunciation_embed_dim": 8, "shape_embed_dim": 8,
                 "is_decoder": True},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba"], "n_mamba_heads": 8, "mamba_d_state": 4, "chunk_size": 8},
    **{kind: {"num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8} for kind in ("qwen4_exp", "qwen4_exp_text")},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 1.0, "hidden_size": 32},
    "minimax_m3_vl_text": {"index_block_size": 4, "index_topk_blocks": 4,
                           "layer_types": ["full_attention", "minimax_m3_sparse", "full_attention"]},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}},
    "git": {"vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                              "image_size": 16, "patch_size": 8}, "num_image_with_embedding": None},
    "phi4_multimodal": {
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "image_size": 28, "crop_size": 28, "feature_layer": 0},
        "audio_config": {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2,
                         "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 16, "feature_layer": 0},
        "original_max_position_embeddings": 160},
}  # fmt: skip
EXTRA = {}  # of configs of several parts
WITHOUT = {"gpt_neo": {"num_hidden_layers"}, "reformer": {"num_hidden_layers"}, "falcon": {"head_dim"}, "xlnet": {"max_position_embeddings"}, "xlstm": {"head_dim", "v_head_dim", "qk_head_dim"},
           "prophetnet": {"num_hidden_layers", "num_attention_heads"}}  # fmt: skip

_LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [1.5, 2.5, 4.0, 6.0],
             "original_max_position_embeddings": SWITCH, "factor": 160 / SWITCH}  # fmt: skip
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 32.0}
_PHI3 = {"rope_parameters": _LONGROPE | {"partial_rotary_factor": 1.0}, "original_max_position_embeddings": SWITCH,
         "sliding_window": None}  # fmt: skip
VARIANTS = {
    "falcon alibi": ("falcon", {"alibi": True}),
    "llama dynamic rope": ("llama", {"rope_parameters": _DYNAMIC, "max_position_embeddings": SWITCH}),
    "llama longrope": ("llama", {"rope_parameters": _LONGROPE}),
    "gpt_neo global": ("gpt_neo", {"attention_types": [[["global"], 4]]}),
    "phi3 longrope": ("phi3", _PHI3),
    "phi3 longrope and window": ("phi3", _PHI3 | {"sliding_window": WINDOW}),
    "qwen2 mixed": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}),
    "qwen3 mixed": ("qwen3", {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "llama4 tuned": ("llama4_text", {"attn_temperature_tuning": True, "floor_scale": 20, "attention_chunk_size": 64, "no_rope_layers": [1, 0, 1]}),
    "gemma3n_text shared": ("gemma3n_text", OVERRIDES["gemma3n_text"] | {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}),
    "bert decoder": ("bert", {"is_decoder": True}),
}  # fmt: skip


NAMES = [*VARIANTS, *ARCHITECTURES]
QUICK = [
    "phi3 longrope", "gpt_neo", "falcon alibi", "mistral", "gemma2", "gemma3_text", "qwen2 mixed", "llama4_text",
    "llama dynamic rope", "mamba", "jamba",
]  # fmt: skip


def make(name, seed=0):
    """A random model in float32 and eval mode, its weights spread so that a token forgotten or seen twice shows.

    Raises:
        ValueError: no config of at most `LARGEST` weights comes of the fields above.
    """
    kind, changes = VARIANTS.get(name, (name, {}))
    given = OVERRIDES.get(kind, {}) | changes
    outer = CONFIG_MAPPING[kind]
    whole = outer(is_decoder=True) if kind == "reformer" else outer()
    text = whole.get_text_config(decoder=True)
    config = _small(text, kind, given)
    model_class = getattr(hf, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    torch.manual_seed(seed)
    try:
        model = _built(model_class, config)
    except Exception:
        if type(text) is outer:
            raise
        parts = {key: part for key in whole.sub_configs if (part := getattr(whole, key, None)) is not None}
        small = {key: config if part is text else _small(part, kind, {}) for key, part in parts.items()}
        model = _built(model_class, outer(**small | EXTRA.get(kind, {})))
    model = model.float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    if hasattr(model, "set_default_language"):
        model.set_default_language("en_XX")
    model.generation_config = hf.GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=None)
    return model


def _small(config, kind, given):
    known = {field for field in dir(config) if not field.startswith("_")} | set(getattr(config, "attribute_map", {}))
    fields = {key: value for key, value in SMALL.items() if key in known and key not in WITHOUT.get(kind, ())}
    if "kv_lora_rank" in known:  # latent attention has a key for every query
        fields["num_key_value_heads"] = SMALL["num_attention_heads"]
    return type(config)(**fields | given)


def _built(model_class, config):
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{model_class.__name__} has {size:,} weights")
    return model_class(config)


def verdict(name):
    """(what runs, why) of a small model of an architecture."""
    try:
        model = make(name)
    except Exception:
        return UNMADE, ""
    try:
        check_model(model)
        support = able(model)
    except ModelError as error:
        return REFUSED, re.sub(r"^\w+ |\(.*\)", "", str(error)).split(".")[0].strip()
    why = re.sub(r"\b\d+\b", "N", re.sub(r"(takes no tree) .*", r"\1", support.why))
    return (PLAIN if support.plain else LIMITED if support.limit else TREES), why
