"""Tiny target models of every family the decoding engine must carry, and random trees to run them on."""

import numpy as np
import torch

from conftest import make_llama
from unwrite.decode.engine.transformers.runtime import TransformersRuntime
from unwrite.decode.engine.tree import DraftTree

VOCAB = 67
CLOSE = 1e-4  # float32, logits of order 1 to 10
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "opt")


def make_target(family: str, attention: str = "sdpa", seed: int = 0):
    """A random model of a few thousand weights, in float32 and eval mode."""
    import transformers as hf

    torch.manual_seed(seed)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    common = tokens | {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 160,
        "tie_word_embeddings": False,
    }
    build = {
        "llama": lambda: make_llama(seed),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**common, sliding_window=None)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**{k: v for k, v in common.items() if k != "head_dim"})),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**common)),
        "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**common)),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(**tokens, vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=160)
        ),
        "opt": lambda: hf.OPTForCausalLM(
            hf.OPTConfig(
                **tokens,
                vocab_size=VOCAB,
                hidden_size=32,
                word_embed_proj_dim=32,
                ffn_dim=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=160,
            )
        ),
    }[family]
    model = build().eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, where a forward that forgets them goes unseen
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.set_attn_implementation(attention)
    return model


def random_tree(rng: np.random.Generator, nodes: int) -> DraftTree:
    """Parents at random among the nodes before: bushy at the top, several tokens deep."""
    parents = [-1, *(int(rng.integers(max(0, i - 12), i)) for i in range(1, nodes))]
    return DraftTree.of(rng.integers(3, VOCAB, nodes), parents)


def branch(tree: DraftTree, node: int) -> list[int]:
    """Nodes from the root to one node."""
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = int(tree.parents[0, node])
    return nodes[::-1]


@torch.no_grad()
def fresh_logits(model, ids) -> torch.Tensor:
    """[vocab] after a text, computed without any cache."""
    return model(input_ids=torch.tensor([list(map(int, ids))]), use_cache=False).logits[0, -1]


def prompt(rng, length=9):
    """Random ids."""
    return rng.integers(3, VOCAB, length)


def start(model, rows, path=None, room=120, **options):
    """A runtime with its prompts cached, and the logits after them."""
    runtime = TransformersRuntime(model, pack="always", **options)
    logits = runtime.prefill(rows, room)
    if path:
        runtime.use(path)
    return runtime, logits
