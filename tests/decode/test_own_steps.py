"""Where a tree is not what a model computes, the text goes on in the model's own steps, token for token as `generate` writes it."""

import pytest
import torch
from architectures import make
from targets import VOCAB

from unwrite.decode import ADED, Plain, PromptLookup, TokenRecycling

STRATEGIES = [Plain(), PromptLookup(cost_model=False), TokenRecycling(cost_model=False), ADED()]
KINDS = ["phi3 longrope", "mistral", "gemma2", "mamba", "falcon alibi"]


def prompts(rows, length, seed=0):
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_within_across_and_beyond_the_limit_are_those_of_generate(kind):
    model = make(kind)
    for length, new in ((5, 8), (9, 30), (30, 8)):
        ids, options = prompts(1, length), {"max_new_tokens": new, "do_sample": False}
        expected = model.generate(ids, **options)
        for strategy in STRATEGIES if kind not in ("mamba", "falcon alibi") else STRATEGIES[:1]:
            assert torch.equal(model.generate(ids, custom_generate=strategy, **options), expected), (length, strategy)
