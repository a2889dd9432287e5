"""What would change the text in silence is refused in one line, and what only looks like it is let through."""

import numpy as np
import pytest
import torch
from tabular import Tabular, greedy, hashed
from targets import FAMILIES, make_target
from transformers import DynamicCache, GenerationConfig, GPT2Config, GPT2LMHeadModel

from conftest import make_llama
from unwrite.decode import DraftModel, PromptLookup, TransformersRuntime, generate, why_plain
from unwrite.decode.engine.transformers.prefix import check_prefix
from unwrite.errors import MethodError, ModelError
from unwrite.forget.engine.text.logit_difference import LogitDifferenceModel

VOCAB = 64
LOGITS = hashed(VOCAB)


@pytest.fixture(scope="module")
def model():
    return make_llama(0, vocab=VOCAB)


def prompts(count, length=12, seed=0):
    return torch.randint(3, VOCAB, (count, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def filled(model, ids, cache=None, at_once=True, **options):
    """A cache of a text, written in one forward or a token at a time."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    for part in [ids] if at_once else ids.split(1, 1):
        model(part, past_key_values=cache, use_cache=True, **options)
    return cache


def written(model, ids, **options):
    return model.generate(ids, **{"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | options)


def test_refuses_a_filled_cache_with_padding(model):
    ids = prompts(2)
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    cache = filled(model, ids[:, :7], attention_mask=mask[:, :7])
    with pytest.raises(MethodError, match="does not say which of its columns are padding"):
        written(model, ids, attention_mask=mask, past_key_values=cache, custom_generate=PromptLookup())


def test_refuses_a_cache_of_another_text_of_the_same_length(model):
    cache = filled(model, prompts(1, 8, seed=9))
    with pytest.raises(ModelError, match="another text than the prompt of row 0: its keys differ from token 0"):
        written(model, prompts(1), past_key_values=cache, custom_generate=PromptLookup())


def test_the_row_and_the_token_where_a_cache_goes_wrong_are_named(model):
    ids = prompts(2)
    other = ids[:, :9].clone()
    other[1, 6] = (other[1, 6] + 1) % VOCAB
    with pytest.raises(ModelError, match="row 1: its keys differ from token 6"):
        written(model, ids, past_key_values=filled(model, other), custom_generate=PromptLookup())


def test_refuses_a_cache_of_the_same_text_at_other_positions(model):
    cache = filled(model, prompts(1)[:, :8], position_ids=torch.arange(3, 11)[None])
    with pytest.raises(ModelError, match="another text"):
        written(model, prompts(1), past_key_values=cache, custom_generate=PromptLookup())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tells_its_own_text_from_another(family, dtype):
    model, ids = make_target(family).to(dtype), prompts(2, 24)
    for at_once in (True, False):
        check_prefix(model, filled(model, ids, at_once=at_once), ids)
    for place in (0, 13, 23):
        other = ids.clone()
        other[1, place] = 3 + (other[1, place] + 1) % (VOCAB - 3)
        with pytest.raises(ModelError, match=f"row 1: its keys differ from token {place}"):
            check_prefix(model, filled(model, other), ids)


def test_a_cache_is_checked_in_a_model_of_two_models():
    model, ids = LogitDifferenceModel(make_llama(0, vocab=VOCAB), make_llama(1, vocab=VOCAB)), prompts(1)
    check_prefix(model, filled(model, ids, model.empty_cache()), ids)
    with pytest.raises(ModelError, match="another text"):
        check_prefix(model, filled(model, prompts(1, seed=5), model.empty_cache()), ids)


def test_checking_a_cache_changes_neither_it_nor_the_model(model):
    ids = prompts(1)
    cache, before = filled(model, ids[:, :9]), written(model, ids)
    keys = cache.layers[0].keys.clone()
    check_prefix(model, cache, ids[:, :9])
    assert cache.get_seq_length() == 9
    assert torch.equal(cache.layers[0].keys, keys)
    assert torch.equal(written(model, ids, past_key_values=cache), before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_beams", 3), ("repetition_penalty", 5.0), ("no_repeat_ngram_size", 2), ("min_p", 0.9), ("min_new_tokens", 3),
        ("min_length", 3), ("typical_p", 0.5), ("num_return_sequences", 2), ("stop_strings", ["a"]), ("max_time", 1.0),
        ("bad_words_ids", [[5]]), ("forced_eos_token_id", 5), ("output_scores", True), ("use_cache", False),
        ("remove_invalid_values", True), ("suppress_tokens", [5]), ("guidance_scale", 2.0),
    ],
)  # fmt: skip
def test_a_bare_runtime_refuses_what_it_does_not_honour(field, value):
    config = GenerationConfig(max_new_tokens=5)
    setattr(config, field, value)
    runtime = Tabular(LOGITS, VOCAB)
    with pytest.raises(MethodError, match=f"^{field} is "):
        generate(runtime, np.array([1, 2]), PromptLookup(), config)
    assert runtime.forwards == 0


def test_a_bare_runtime_takes_values_that_say_nothing():
    config = GenerationConfig(
        max_new_tokens=5, do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, min_length=0,
        typical_p=1.0, length_penalty=1.0, num_return_sequences=1, use_cache=True, bos_token_id=1, pad_token_id=0,
        return_dict_in_generate=True, output_scores=False, early_stopping=False,
    )  # fmt: skip
    found = generate(Tabular(LOGITS, VOCAB), np.array([1, 2]), PromptLookup(), config)
    assert found.sequences == [greedy(LOGITS, (1, 2), 5)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GenerationConfig(), "sets no length"),
        (GenerationConfig(max_length=3), "max_length is 3, and the longest prompt has 4 tokens"),
        (GenerationConfig(max_length=4), "max_length is 4, and the longest prompt has 4 tokens"),
    ],
    ids=str,
)
def test_a_bare_runtime_refuses_a_length_without_room(config, message):
    with pytest.raises(MethodError, match=message):
        generate(Tabular(LOGITS, VOCAB), [[1], [1, 2, 3, 4]], PromptLookup(), config)


@pytest.mark.parametrize("wrong", [-1, VOCAB, 999])
def test_a_bare_runtime_refuses_ids_outside_the_vocabulary(wrong):
    with pytest.raises(MethodError, match=f"holds the id {wrong}, outside the model's vocabulary of 64"):
        generate(Tabular(LOGITS, VOCAB), [[3, 4], [3, wrong]], PromptLookup())


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, eos_token_id=None, bos_token_id=1, **sizes)).eval()


def test_refuses_token_types(gpt2):
    with pytest.raises(MethodError, match="token ids only, and token_type_ids is passed"):
        written(gpt2, prompts(1), token_type_ids=torch.full((1, 12), 9), custom_generate=PromptLookup())


def test_refuses_positions_of_ones_own(gpt2):
    with pytest.raises(MethodError, match="position_ids differ"):
        written(gpt2, prompts(1), position_ids=torch.arange(12)[None] + 20, custom_generate=PromptLookup())


def test_takes_the_positions_that_generate_itself_counts(gpt2):
    ids = prompts(2)
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    found = written(gpt2, ids, attention_mask=mask, position_ids=places, custom_generate=PromptLookup())
    assert torch.equal(found, written(gpt2, ids, attention_mask=mask))


@pytest.mark.parametrize("strategy", [PromptLookup(), PromptLookup(cost_model=False)])
def test_guidance_is_followed_for_one_text_and_refused_for_several(model, strategy):
    ids, without = prompts(2), prompts(2, 5, seed=4)
    options = {"guidance_scale": 2.5, "max_new_tokens": 20}
    found = written(model, ids[:1], negative_prompt_ids=without[:1], custom_generate=strategy, **options)
    assert torch.equal(found, written(model, ids[:1], negative_prompt_ids=without[:1], **options))
    with pytest.raises(MethodError, match="keeps the state of one text, and the batch has 2"):
        written(model, ids, negative_prompt_ids=without, custom_generate=strategy, **options)


def test_a_draft_of_another_vocabulary_is_refused_before_the_first_forward(model, monkeypatch):
    called, draft = [], make_llama(1, vocab=60)
    why_plain(draft), why_plain(model)  # the check of a kind of model runs forwards of its own
    monkeypatch.setattr(TransformersRuntime, "prefill", lambda self, *_: called.append(self))
    with pytest.raises(MethodError, match="vocabularies of 60 and 64"):
        written(model, prompts(1), custom_generate=DraftModel(draft_model=draft))
    assert not called


def test_one_runtime_serves_calls_inside_and_outside_of_inference_mode(model):
    runtime, ids = TransformersRuntime(model), prompts(1)[0]
    with torch.inference_mode():
        inside = generate(runtime, ids, PromptLookup()).sequences
    assert generate(runtime, ids, PromptLookup()).sequences == inside
