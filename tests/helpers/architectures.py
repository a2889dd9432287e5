"""Randomly initialised models of every architecture unwrite knows, small enough to build in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

WIDTH, HEADS, INNER = 32, 4, 48
_COMMON = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": INNER}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 8},
    "qwen2": {**_GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen3": {**_GROUPED, "head_dim": 16},
    "gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 4},
    "gemma3_text": {**_GROUPED, "head_dim": 16, "sliding_window": 4},
    "smollm3": _GROUPED,
    "gpt2": {"n_embd": WIDTH, "n_head": HEADS, "n_inner": INNER, "n_positions": 64},
    "gpt_neox": {**_COMMON, "tie_word_embeddings": False},
    "opt": {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "ffn_dim": INNER,
        "word_embed_proj_dim": WIDTH,
        "max_position_embeddings": 64,
    },
    "phi": {**_GROUPED, "qk_layernorm": True},
    "phi3": _GROUPED,
    "modernbert": {**_COMMON, "local_attention": 8},
}


def tiny_model(arch: str, *, vocab: int = 64, layers: int = 4, seed: int = 0, **settings: Any) -> nn.Module:
    """A model with a language-modelling head, in evaluation mode, float32; `settings` go to its configuration."""
    torch.manual_seed(seed)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if arch == "modernbert":
        special |= {"cls_token_id": 1, "sep_token_id": 2}
    options = {**special, **ARCHITECTURES[arch], **settings}
    config = AutoConfig.for_model(arch, vocab_size=vocab, num_hidden_layers=layers, **options)
    auto = AutoModelForMaskedLM if arch == "modernbert" else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():  # fresh norms and biases are ones and zeros, which would hide a mistake
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tokens(batch: int = 2, length: int = 10, vocab: int = 64, seed: int = 1) -> torch.Tensor:
    """Random token ids `[batch, length]`, none of them special."""
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a word: w0, w1, ...; `special` names the special tokens it has, by default eos only."""
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(60))])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(special or {"eos_token": "</s>"}))
