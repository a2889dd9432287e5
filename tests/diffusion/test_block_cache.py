"""Kept keys and values: exact where everything is fresh, approximate only where the papers are."""

from dataclasses import dataclass, replace

import pytest
import torch
from masks import MASK, VOCAB, lively, prompts_of

from unwrite.diffusion import BlockCache, Commit, CommitRule, FixedBlocks, MaskPredictor, Sampler, Threshold
from unwrite.diffusion.base import ranked
from unwrite.errors import ModelError

SIZE = 16
SAMPLER = Sampler(gen_length=SIZE, blocks=FixedBlocks(8), commit=Threshold(0.5))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_block_decoded_in_one_step_is_as_without_a_cache(cache, shift):
    predictor, prompts = lively(shift=shift), prompts_of(5, 9, 3)
    at_once = replace(SAMPLER, commit=Threshold(0.0))
    assert torch.equal(
        replace(at_once, cache=cache)(predictor, None, prompts).sequences, at_once(predictor, None, prompts).sequences
    )


@dataclass(frozen=True)
class Dictated(CommitRule):
    """Two positions a step, the same tokens whatever the logits: the canvas doesn't depend on the cache."""

    def commit(self, step):
        earliest = ranked(step, torch.full_like(step.start, 2), -step.columns.double())
        return Commit(earliest, tokens=3 + step.columns % 7)


@pytest.mark.parametrize("shift", [False, True])
def test_all_caches_agree_on_the_first_step_of_every_block_and_differ_within(shift):
    predictor, prompts, seen = lively(shift=shift), prompts_of(5, 9), {}
    for cache in ("none", "prefix", "dual"):
        steps = []
        replace(SAMPLER, commit=Dictated(), cache=cache, watch=steps.append)(predictor, None, prompts)
        seen[cache] = steps
    assert [bool(step.opening.all()) for step in seen["none"]] == [True, False, False, False] * 2
    for plain, prefix, dual in zip(*seen.values(), strict=True):
        if plain.opening.all():
            assert torch.equal(prefix.clean, dual.clean)
            torch.testing.assert_close(plain.clean, dual.clean, atol=1e-5, rtol=1e-5)
        else:
            assert not torch.allclose(plain.clean, dual.clean, atol=1e-2)


@pytest.mark.parametrize("shift", [False, True])
def test_computing_every_column_anew_is_no_cache(shift):
    """A dual step whose block is the whole row, after a refresh with other tokens."""
    predictor = lively(shift=shift)
    canvas = torch.tensor(prompts_of(12, 12))
    lengths, first = torch.tensor([12, 9]), torch.tensor([int(shift)] * 2)
    where = torch.arange(int(shift), 9).expand(2, -1)
    cache = BlockCache(predictor, "dual", 2, 12)
    cache.refresh(torch.arange(2), canvas.flip(0), lengths, where)
    found = cache.within(torch.arange(2), canvas, lengths, first, lengths - int(shift), where)
    torch.testing.assert_close(found, predictor.logits(canvas, lengths, where), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shift", "prompts"), [(False, [[]]), (True, [[5], [6]])])
def test_a_dual_cache_that_computes_the_whole_row_every_step_is_no_cache(shift, prompts):
    """One block without a prompt before it; a shifted model computes the one column before the block too."""
    predictor, seen = lively(shift=shift), {}
    for cache in ("none", "dual"):
        steps = []
        whole = replace(SAMPLER, blocks=FixedBlocks(None), commit=Dictated(), cache=cache, watch=steps.append)
        whole(predictor, None, prompts)
        seen[cache] = steps
    assert len(seen["none"]) == SIZE // 2
    for one, other in zip(seen["none"], seen["dual"], strict=True):
        torch.testing.assert_close(one.clean, other.clean, atol=1e-5, rtol=1e-5)


def test_prefix_is_exact_while_what_precedes_the_block_is_unchanged_in_a_one_layer_model():
    """With one layer, keys and values depend on their own column's token alone, so kept prompt columns are exact."""
    from conftest import make_llama

    model = make_llama(layers=1, vocab=VOCAB)
    model.config.is_causal = False
    predictor = MaskPredictor(model, MASK, (2,))
    prompts = prompts_of(5, 8)
    whole = replace(SAMPLER, blocks=FixedBlocks(None))
    for cache in ("prefix", "dual"):
        cached = replace(whole, cache=cache)(predictor, None, prompts)
        assert torch.equal(cached.sequences, whole(predictor, None, prompts).sequences)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_later_steps_compute_only_their_part(cache):
    predictor, prompt, widths = lively(), prompts_of(5)[0], []
    predictor.model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    out = replace(SAMPLER, cache=cache, commit=Threshold(2.0))(predictor, None, [prompt])
    later = {"prefix": (SIZE, SIZE - 8), "dual": (8, 8)}[cache]
    expected = [21, *[later[0]] * 7, 21, *[later[1]] * 7]
    assert widths == expected
    assert out.trace.work.tolist() == [sum(expected)]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_in_a_single_block_the_prompt_alone_is_not_computed_again(cache):
    predictor, prompt, fed = lively(), prompts_of(5)[0], []
    predictor.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs.get("position_ids")), with_kwargs=True
    )
    whole = replace(SAMPLER, blocks=FixedBlocks(None), cache=cache, commit=Threshold(2.0))
    out = whole(predictor, None, [prompt])
    assert [ids.tolist() for ids in fed if ids is not None] == [[list(range(5, 5 + SIZE))]] * (SIZE - 1)
    assert out.trace.work.tolist() == [5 + SIZE + SIZE * (SIZE - 1)]


def test_a_shifted_model_computes_one_column_more():
    predictor, prompt, widths = lively(shift=True), prompts_of(5)[0], []
    predictor.model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    out = replace(SAMPLER, cache="dual", commit=Threshold(2.0))(predictor, None, [prompt])
    assert widths == [21, *[9] * 7, 21, *[9] * 7]
    assert out.trace.work.tolist() == [sum(widths)]


def test_positions_are_absolute():
    """Within a block the model gets the block's own positions."""
    predictor, prompt, seen = lively(), prompts_of(5)[0], []
    predictor.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    replace(SAMPLER, cache="dual", commit=Threshold(2.0))(predictor, None, [prompt])
    assert seen[1].tolist() == [list(range(5, 13))]
    assert seen[9].tolist() == [list(range(13, 21))]


def test_bytes_are_counted_from_storage():
    predictor = lively()
    cache = BlockCache(predictor, "dual", 2, 12)
    assert cache.nbytes() == 0
    cache.refresh(torch.arange(2), torch.tensor(prompts_of(12, 12)), torch.tensor([12, 12]), torch.zeros(2, 1).long())
    config = predictor.model.config
    width = config.hidden_size // config.num_attention_heads
    assert cache.nbytes() == 2 * 3 * 2 * config.num_key_value_heads * 12 * width * 4  # k and v, layers, rows, ..., fp32


def test_an_encoder_has_no_cache_and_says_so():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    predictor = MaskPredictor(BertForMaskedLM(config).eval(), MASK)
    with pytest.raises(ModelError, match=r"BertForMaskedLM.*cache='none'"):
        replace(SAMPLER, cache="dual")(predictor, None, prompts_of(3))


def test_sliding_layers_are_refused():
    predictor = lively()
    predictor.model.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(ModelError, match=r"sliding_attention.*cache='none'"):
        replace(SAMPLER, cache="prefix")(predictor, None, prompts_of(3))
