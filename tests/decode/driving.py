"""A second, slow way to decode with a strategy: every node's logits come from a forward over its whole text.

No cache, no tree mask, no positions, no rollback, no pruning: what the engine must agree with, and what drafters are
tested against without it.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from unwrite.decode.engine.runtime import Output
from unwrite.decode.engine.sampling import Sampling
from unwrite.decode.engine.tree import DraftTree, Path


@dataclass
class Driven:
    """What `drive` saw.

    Args:
        tokens: the new tokens, exactly as many as asked for.
        accepted: tokens every tree step committed, the target's own included.
        trees: the drafts, as proposed.
        drafter: the strategy's, with what it learnt.
    """

    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    trees: list[DraftTree] = field(default_factory=list)
    drafter: object = None

    @property
    def tokens_per_forward(self):
        return sum(self.accepted) / len(self.accepted)


def drive(strategy, model, prompt, count, sampling=None, first=None):
    """Decodes `count` tokens after a prompt.

    Args:
        model: a transformers model, or a function of a list of ids that gives [vocab] logits.
        first: the first token, if it is known: then no logits of the prompt reach the drafter.
    """
    sampling = sampling or Sampling()
    text = list(prompt)
    logits = _after(model, text)
    drafter = strategy.drafter(SimpleNamespace(vocab=len(logits), fingerprint="driven"), sampling)
    drafter.reset(np.array(text), None if first is not None else logits)
    text.append(_pick(sampling, logits, text) if first is None else first)
    driven = Driven(drafter=drafter)
    while len(text) < len(prompt) + count:
        tree = drafter.propose(np.array(text), strategy.budget)
        logits = tree_logits(model, text, tree)
        path = walk(tree, logits, sampling, text)
        driven.trees.append(tree)
        driven.accepted.append(len(path.tokens))
        text += path.tokens
        drafter.observe(tree, Output(logits), path)
        drafter.commit(path)
    driven.tokens = text[len(prompt) : len(prompt) + count]
    return driven


def plain(model, prompt, count):
    """Greedy decoding without drafts."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(_after(model, text).argmax()))
    return text[len(prompt) :]


def tree_logits(model, text, tree):
    """[nodes, vocab] by one whole forward per leaf. text ends with the tree's root."""
    parents, tokens = tree.parents[0].tolist(), tree.tokens[0].tolist()
    rows = [None] * len(tokens)
    for leaf in sorted(set(range(len(tokens))) - set(parents), reverse=True):
        chain = []
        node = leaf
        while node != -1:
            chain.insert(0, node)
            node = parents[node]
        whole = text + [tokens[node] for node in chain[1:]]
        if callable(model) and not isinstance(model, torch.nn.Module):
            for depth, node in enumerate(chain):
                rows[node] = model(whole[: len(text) + depth])
        else:
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0]
            for depth, node in enumerate(chain):
                rows[node] = logits[len(text) - 1 + depth]
    return torch.stack(rows)


def walk(tree, logits, sampling, text):
    """The acceptance rule, by search through the arrays."""
    parents, tokens = tree.parents[0].tolist(), tree.tokens[0].tolist()
    path = Path()
    while True:
        node = path.nodes[-1]
        token = _pick(sampling, logits[node], text + path.tokens)
        path.tokens.append(token)
        following = [child for child in range(len(tokens)) if parents[child] == node and tokens[child] == token]
        if not following:
            return path
        path.nodes.append(following[0])


class Formula:
    """A target without weights: integer arithmetic on the text, the same on every machine.

    After ... a b, at length n, the token t = 5 b + (a mod 5) // 2 + 2 (n // 11 mod 3) is the likeliest, then t + 1, t + 2,
    ... (all mod vocab): tables of what followed a token or a pair are often right and often a few ranks off.
    """

    def __init__(self, vocab=61):
        self.vocab, self.ids = vocab, torch.arange(vocab)

    def __call__(self, ids):
        before = ids[-2] if len(ids) > 1 else 0
        best = 5 * ids[-1] + before % 5 // 2 + 2 * (len(ids) // 11 % 3)
        return -((self.ids - best) % self.vocab).float()


def bigram_llama(logits):
    """A Llama whose logits after token t are logits[t], whatever came before. logits: [vocab, vocab]."""
    from conftest import make_llama

    vocab = len(logits)
    width = 8 * (vocab // 8 + 1)
    model = make_llama(layers=1, hidden=width, vocab=vocab)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(vocab, width))
        # The norm makes a one-hot row sqrt(width) long.
        model.lm_head.weight.zero_()[:, :vocab] = logits.T / width**0.5
    return endless(model)


def cyclic(period, vocab):
    """[vocab, vocab] logits that make a text count 0, 1, ..., period - 1 round and round."""
    logits = -torch.arange(vocab).float().repeat(vocab, 1)
    logits[torch.arange(vocab), (torch.arange(vocab) + 1) % period] = 10.0
    return logits


def endless(model, positions=4096):
    """The model without an end token, and with room for long texts."""
    model.generation_config.eos_token_id = None
    model.config.max_position_embeddings = positions
    return model


def written(model, strategy, prompt, count, **options):
    """(new ids, stats) of `generate` with a strategy."""
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    options = {"do_sample": False, "return_dict_in_generate": True, "max_new_tokens": count} | options
    out = model.generate(**inputs, custom_generate=strategy, **options)
    return out.sequences[0, len(prompt) :].tolist(), out.stats


def prompts(count, vocab, seed=0, length=6):
    """Random ids."""
    return np.random.default_rng(seed).integers(3, vocab, size=(count, length)).tolist()


def _after(model, text):
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return model(torch.tensor([text])).logits[0, -1]
    return model(text)


def _pick(sampling, logits, text):
    return sampling.pick(sampling.scores(logits, torch.tensor([text])))
