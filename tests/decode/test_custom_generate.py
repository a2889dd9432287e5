"""`model.generate(custom_generate=...)`: the text of plain `generate`, its options honoured, the rest refused."""

import pytest
import torch
from tabular import Scripted, junk
from transformers import DynamicCache, LogitsProcessorList, StaticCache, TextStreamer

from conftest import make_llama
from unwrite.decode import DecodeOutput, PromptLookup, last_stats
from unwrite.decode.engine.planning.knowledge import forget_knowledge
from unwrite.errors import MethodError, ModelError

VOCAB = 64
# options whose processors count the padding, or know something else of every row
ROW_OPTIONS = {
    "min_new_tokens": 5,
    "min_length": 16,
    "forced_eos_token_id": 9,
    "repetition_penalty": 1.3,
    "encoder_repetition_penalty": 1.3,
    "encoder_no_repeat_ngram_size": 1,
    "prefix_allowed_tokens_fn": lambda row, ids: [[4, 5, 6, 7], [8, 9, 10, 2]][row],
}


@pytest.fixture(autouse=True)
def _fresh():
    forget_knowledge()


@pytest.fixture(scope="module")
def model():
    return make_llama(0, vocab=VOCAB)


def prompts(count, length=12, seed=0):
    return torch.randint(3, VOCAB, (count, length), generator=torch.Generator().manual_seed(seed))


def strategies():
    return {
        "prompt lookup": PromptLookup(),
        "prompt lookup, every draft run": PromptLookup(cost_model=False),
        "junk": Scripted(junk(VOCAB, 20), cost_model=False),
    }


@pytest.mark.parametrize("name", strategies())
def test_greedy_text_is_that_of_generate(model, name):
    for prompt in prompts(5):
        options = {"max_new_tokens": 40, "do_sample": False, "attention_mask": torch.ones(1, 12)}
        plain = model.generate(prompt[None], **options)
        assert torch.equal(model.generate(prompt[None], custom_generate=strategies()[name], **options), plain)


@pytest.mark.parametrize("name", strategies())
@pytest.mark.parametrize("seed", [0, 1])
def test_sampled_text_is_that_of_generate_at_the_same_seed(model, name, seed):
    options = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9}
    texts = []
    for extra in ({}, {"custom_generate": strategies()[name]}):
        torch.manual_seed(seed)
        texts.append(model.generate(prompts(1), **options, **extra))
    assert torch.equal(*texts)


def test_processors_see_each_nodes_own_text(model):
    options = {"max_new_tokens": 40, "do_sample": False, "repetition_penalty": 1.4, "no_repeat_ngram_size": 3}
    plain = model.generate(prompts(1), **options)
    drafted = model.generate(prompts(1), custom_generate=Scripted(junk(VOCAB, 30), cost_model=False), **options)
    assert torch.equal(plain, drafted)


def test_rows_of_a_left_padded_batch_are_the_rows_alone(model):
    ids = prompts(3)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 4, 7)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    batch = model.generate(ids, attention_mask=mask, custom_generate=PromptLookup(cost_model=False), **options)
    assert torch.equal(batch, model.generate(ids, attention_mask=mask, **options))


@pytest.mark.parametrize("name", strategies())
@pytest.mark.parametrize("option", ROW_OPTIONS)
def test_processors_that_count_or_read_padding_do_so_as_in_generate(name, option):
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, option: ROW_OPTIONS[option]}
    likely_end = make_llama(0, vocab=VOCAB)
    with torch.no_grad():
        likely_end.lm_head.weight[2] *= 3
    for seed in range(3):
        ids = prompts(2, seed=seed)
        mask = torch.ones_like(ids)
        ids[0, :7], mask[0, :7] = 0, 0
        plain = likely_end.generate(ids, attention_mask=mask, **options)
        drafted = likely_end.generate(ids, attention_mask=mask, custom_generate=strategies()[name], **options)
        assert torch.equal(drafted, plain)


def test_criteria_see_the_padded_rows(model):
    ids = prompts(2)
    mask = torch.ones_like(ids)
    ids[0, :7], mask[0, :7] = 0, 0
    seen = []

    def note(ids, scores, **_):
        seen.append(ids[0].tolist())
        return torch.tensor([ids.shape[1] >= 14])

    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=9, do_sample=False, stopping_criteria=[note], pad_token_id=0,
        custom_generate=PromptLookup(),
    )  # fmt: skip
    assert found.shape == (2, 14)
    assert sorted(seen) == sorted(row[:length] for row in found.tolist() for length in (13, 14))


@pytest.mark.parametrize("skip", [True, False])
def test_a_text_streamer_prints_what_it_prints_under_generate(model, skip, capsys):
    class Numbers:
        def decode(self, ids, **_):
            return "".join(f"{token} " for token in ids)

    printed = []
    for strategy in (None, PromptLookup()):
        streamer = TextStreamer(Numbers(), skip_prompt=skip)
        own = {"streamer": streamer} if strategy is None else {"custom_generate": PromptLookup(streamer=streamer)}
        ids = model.generate(prompts(1), max_new_tokens=6, do_sample=False, **own)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[1].split() == [str(token) for token in ids[0, 12 if skip else 0 :].tolist()]


def test_statistics_come_with_the_output_and_stay(model):
    out = model.generate(
        prompts(1), max_new_tokens=20, do_sample=False, return_dict_in_generate=True, custom_generate=PromptLookup()
    )
    assert isinstance(out, DecodeOutput)
    assert out.stats is last_stats()
    assert out.stats.tokens == len(out.sequences[0]) - 12


def test_scores_are_those_of_generate(model):
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    plain = model.generate(prompts(1), **options)
    drafted = model.generate(prompts(1), custom_generate=Scripted(junk(VOCAB, 9), cost_model=False), **options)
    torch.testing.assert_close(torch.stack(drafted.scores), torch.stack(plain.scores), rtol=1e-4, atol=1e-4)


def test_the_returned_cache_holds_all_but_the_last_token_and_can_be_gone_on_from(model):
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = model.generate(prompts(1), max_new_tokens=10, custom_generate=PromptLookup(), **options)
    assert first.past_key_values.get_seq_length() == first.sequences.shape[1] - 1
    more = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=8, **options)
    assert torch.equal(more.sequences, model.generate(prompts(1), max_new_tokens=18, do_sample=False))


def test_a_cache_with_the_beginning_of_the_prompt_is_gone_on_from(model):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompts(1)[:, :9], past_key_values=cache)
    found = model.generate(
        prompts(1), past_key_values=cache, max_new_tokens=12, do_sample=False, custom_generate=PromptLookup()
    )
    assert torch.equal(found, model.generate(prompts(1), max_new_tokens=12, do_sample=False))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_beams": 2}, MethodError, "has no beams, and num_beams is 2"),
        ({"num_return_sequences": 2, "do_sample": True}, MethodError, "num_return_sequences is 2"),
        ({"use_cache": False}, MethodError, "use_cache is False"),
        ({"output_attentions": True, "return_dict_in_generate": True}, MethodError, "output_attentions is not kept"),
        ({"cache_implementation": "offloaded"}, ModelError, "offloaded cache"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_honour_before_the_first_token(model, options, error, message):
    model.set_attn_implementation("sdpa" if "output_attentions" not in options else "eager")
    with pytest.raises(error, match=message):
        model.generate(prompts(1), max_new_tokens=4, custom_generate=PromptLookup(), **options)
    model.set_attn_implementation("sdpa")


def test_refuses_a_static_cache_passed_in(model):
    cache = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(ModelError, match="static cache"):
        model.generate(prompts(1), past_key_values=cache, max_new_tokens=4, custom_generate=PromptLookup())


def test_a_static_cache_that_generate_makes_by_itself_does_not_matter(model):
    ids, options = prompts(1), {"max_new_tokens": 12, "do_sample": False}
    found = model.generate(ids, cache_implementation="static", custom_generate=PromptLookup(), **options)
    assert torch.equal(found, model.generate(ids, **options))


def test_refuses_a_filled_cache_longer_than_the_prompt(model):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompts(1, 20), past_key_values=cache)
    with pytest.raises((ModelError, ValueError), match=r"holds 20 tokens|Passed"):
        model.generate(prompts(1), past_key_values=cache, max_new_tokens=4, custom_generate=PromptLookup())


def test_refuses_embeddings_in_place_of_ids(model):
    embeddings = model.get_input_embeddings()(prompts(1))
    with pytest.raises(MethodError, match="Pass input_ids"):
        model.generate(inputs_embeds=embeddings, max_new_tokens=4, custom_generate=PromptLookup())


def test_a_streamer_and_a_batch_are_refused_together(model):
    with pytest.raises(MethodError, match="a streamer shows one text, and the batch has 2"):
        model.generate(prompts(2), max_new_tokens=4, custom_generate=PromptLookup(streamer=object()))


def test_a_processor_given_by_hand_is_called(model):
    calls = []

    def note(ids, scores):
        calls.append(ids.shape[1])
        return scores

    model.generate(
        prompts(1),
        max_new_tokens=6,
        do_sample=False,
        custom_generate=PromptLookup(),
        logits_processor=LogitsProcessorList([note]),
    )
    assert calls == list(range(12, 18))
