"""Where a tree is not what a model computes, the text goes on in the model's own steps, token for token as `generate` writes it."""

import numpy as np
import pytest
import torch
from architectures import SWITCH, WINDOW, make
from targets import VOCAB
from transformers import DynamicCache, GenerationConfig

from unwrite.decode import ADED, Plain, PromptLookup, TokenRecycling, TransformersRuntime, generate
from unwrite.decode.engine.transformers.support import able

LIMITED = {"mistral": WINDOW, "phi3 longrope": SWITCH, "gemma2": WINDOW}
PLAIN_ONLY = ["mamba", "falcon alibi"]
DRAFTING = [PromptLookup(cost_model=False), TokenRecycling(cost_model=False), ADED()]


@pytest.fixture(scope="module", params=[*LIMITED, *PLAIN_ONLY])
def model(request):
    found = make(request.param)
    found.kind = request.param
    return found


@pytest.fixture(scope="module", params=LIMITED)
def limited(request):
    return make(request.param)


def prompts(rows, length, seed=0):
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def strategies(model):
    return [Plain()] if able(model).plain else [Plain(), *DRAFTING]


def written(model, ids, strategy=None, **options):
    torch.manual_seed(5)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(ids, custom_generate=strategy, **options)


def same_cache(found, expected):
    assert found.get_seq_length() == expected.get_seq_length()
    for own, other in zip(found.layers, expected.layers, strict=True):
        assert type(own) is type(other)
        assert own.is_initialized == other.is_initialized
        if not other.is_initialized:
            continue
        assert torch.allclose(own.keys, other.keys, atol=1e-4)
        assert torch.allclose(own.values, other.values, atol=1e-4)


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_prompt_may_end_at_the_very_limit(limited, offset):
    ids = prompts(1, able(limited).limit + offset)
    expected = written(limited, ids)
    for strategy in (Plain(), *DRAFTING):
        assert torch.equal(written(limited, ids, strategy), expected)


def test_sampled_text_is_generates_own_at_the_same_seed(model):
    ids, options = prompts(1, 9), {"do_sample": True, "temperature": 0.8, "top_k": 20}
    expected = written(model, ids, **options)
    for strategy in strategies(model):
        assert torch.equal(written(model, ids, strategy, **options), expected)


def test_processors_see_what_they_see_in_generate(model):
    ids, options = prompts(1, 9), {"repetition_penalty": 1.6, "no_repeat_ngram_size": 2}
    expected = written(model, ids, **options)
    for strategy in strategies(model):
        assert torch.equal(written(model, ids, strategy, **options), expected)


def test_rows_end_each_at_its_own_end_token(model):
    ids = prompts(3, 9)
    plain = written(model, ids)
    ends = [int(plain[0, 12]), int(plain[1, 28])]  # one before the limit, one behind it
    expected = written(model, ids, eos_token_id=ends)
    assert (expected == 0).any()
    for strategy in strategies(model):
        assert torch.equal(written(model, ids, strategy, eos_token_id=ends), expected)


def test_statistics_count_the_models_own_steps(model):
    ids, limit = prompts(1, 9), able(model).limit
    stats = written(model, ids, Plain(), return_dict_in_generate=True).stats
    assert stats.forwards == stats.tokens == 24
    assert stats.routes["own"] == (23 if limit == 0 else 9 + 24 - 1 - limit)


def test_a_filled_cache_that_trees_could_not_check_goes_on():
    model, ids = make("falcon alibi"), prompts(1, 12)

    def filled():
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :8], past_key_values=cache)
        return cache

    given = filled()
    expected = written(model, ids, past_key_values=filled())
    assert torch.equal(written(model, ids, Plain(), past_key_values=given), expected)
    assert given.get_seq_length() == 12 + 24 - 1


@pytest.mark.parametrize("held", [5, WINDOW + 4])
def test_a_filled_cache_goes_on(limited, held):
    ids = prompts(1, held + 4)

    def filled():
        cache = DynamicCache(config=limited.config)
        with torch.no_grad():
            limited(ids[:, :held], past_key_values=cache)
        return cache

    expected = written(limited, ids, past_key_values=filled())
    for strategy in (Plain(), *DRAFTING):
        assert torch.equal(written(limited, ids, strategy, past_key_values=filled()), expected)


@pytest.mark.parametrize(("length", "new"), [(9, 4), (9, 24), (30, 4)])
def test_the_cache_comes_back_as_generate_leaves_it(limited, length, new):
    ids, options = prompts(1, length), {"max_new_tokens": new, "return_dict_in_generate": True}
    expected = written(limited, ids, **options).past_key_values
    left = DynamicCache(config=limited.config)  # which Phi 3 leaves for another where its rope switches
    written(limited, ids, past_key_values=left, max_new_tokens=new)
    for strategy in (Plain(), DRAFTING[0]):
        same_cache(written(limited, ids, strategy, **options).past_key_values, expected)
        given = DynamicCache(config=limited.config)
        written(limited, ids, strategy, past_key_values=given, max_new_tokens=new)
        same_cache(given, left)


def test_rows_of_uneven_length_on_a_bare_runtime_are_a_padded_batch(model):
    rows = [prompts(1, length, seed=length)[0] for length in (9, 6, 8)]
    ids = torch.stack([torch.cat([torch.zeros(9 - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.stack([(torch.arange(9) >= 9 - len(row)).long() for row in rows])
    expected = written(model, ids, attention_mask=mask)[:, 9:].tolist()
    for strategy in strategies(model):
        runtime = TransformersRuntime(model)
        config = GenerationConfig(max_new_tokens=24)
        for _ in range(2):  # a runtime forgets one text before the next
            assert generate(runtime, [row.numpy() for row in rows], strategy, config).sequences == expected


def test_one_runtime_serves_texts_within_and_behind_the_limit_in_turn(model):
    runtime = TransformersRuntime(model)
    for length in (6, 30, 6, 9):
        ids = prompts(1, length)
        found = generate(runtime, np.array(ids[0]), strategies(model)[-1], GenerationConfig(max_new_tokens=24))
        assert found.sequences == written(model, ids)[:, length:].tolist()


def test_a_filled_cache_with_layers_that_share_anothers_keys_goes_on():
    model, ids = make("gemma3n_text shared"), prompts(1, 9)
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    with torch.no_grad():
        for cache in caches:
            model(ids[:, :5], past_key_values=cache)
    found, expected = (
        written(model, ids, strategy, past_key_values=cache, max_new_tokens=12)
        for strategy, cache in zip((DRAFTING[0], None), caches, strict=True)
    )
    assert torch.equal(found, expected)


def test_a_model_that_could_see_writes_from_text_alone():
    model, ids = make("gemma4"), prompts(1, 9)
    for strategy in (Plain(), DRAFTING[0]):
        assert torch.equal(written(model, ids, strategy, max_new_tokens=10), written(model, ids, max_new_tokens=10))
