"""A compressed cache handed to `custom_generate`: plain decoding is generate's own, drafts are refused before the first token."""

import pytest
import torch

from helpers.tiny import make_llama
from unwrite.cache import HeadGroups, UNCompCache
from unwrite.decode import Plain, PromptLookup, TokenRecycling
from unwrite.errors import ModelError

OPTIONS = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module")
def model():
    return make_llama()


def cache_of(model, **fields):
    return UNCompCache(model, groups=HeadGroups(((0, 1),) * 3), capacity=12, window=4, **fields)


@pytest.mark.parametrize("padding", [0, 6])
def test_plain_decoding_is_that_of_generate(model, padding):
    ids = torch.randint(5, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    caches = [cache_of(model), cache_of(model)]
    texts = [
        model.generate(ids, attention_mask=mask, past_key_values=cache, custom_generate=way, **OPTIONS)
        for cache, way in zip(caches, (None, Plain()), strict=True)
    ]
    assert torch.equal(*texts)
    assert caches[0].nbytes() == caches[1].nbytes() < caches[0].full_nbytes()


def test_a_cache_that_is_filled_goes_on(model):
    ids = torch.randint(5, 60, (1, 24), generator=torch.Generator().manual_seed(0))
    cache = cache_of(model)
    whole = model.generate(ids, past_key_values=cache_of(model), **(OPTIONS | {"max_new_tokens": 20}))
    first = model.generate(ids, past_key_values=cache, custom_generate=Plain(), **OPTIONS)
    again = model.generate(first, past_key_values=cache, custom_generate=Plain(), **(OPTIONS | {"max_new_tokens": 8}))
    assert torch.equal(again, whole)
    assert cache.get_seq_length() == 24 + 19


@pytest.mark.parametrize("strategy", [TokenRecycling(), PromptLookup()])
@pytest.mark.parametrize("policy", ["fixed", "grow"])
def test_drafts_are_refused_by_name_before_the_first_token(model, strategy, policy):
    cache = cache_of(model, decode_policy=policy)
    with pytest.raises(ModelError, match=f"UNCompCache, which can't give .*: {type(strategy).__name__} cannot draft"):
        model.generate(torch.tensor([[5, 6, 7]]), past_key_values=cache, custom_generate=strategy, **OPTIONS)
    assert cache.get_seq_length() == 0
