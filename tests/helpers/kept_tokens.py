"""Prompts for caches, and which tokens a layer of UNComp keeps."""

import torch

from unwrite.cache import HeadGroups
from unwrite.cache.engine.slots import EMPTY

GROUPS = HeadGroups(((0, 1), (1, 0), (0, 1)))  # of the tiny Llama's three layers of two key-value heads


def prompt(rows=1, length=60, seed=0):
    """Random ids, none of them special."""
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read(model, cache, ids, mask=None):
    """[rows, vocab] logits behind these ids."""
    return model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]


def written(model, cache, ids, **options):
    """Ids of the prompts and 12 tokens behind."""
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(ids, past_key_values=cache, **options)


def tokens_of(layer):
    """{key-value head: [tokens of row 0]}."""
    return {
        head: layer.columns[at][0, within][layer.columns[at][0, within] != EMPTY].tolist()
        for at, heads in enumerate(layer.heads.values())
        for within, head in enumerate(heads)
    }
