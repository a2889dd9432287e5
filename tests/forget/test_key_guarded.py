"""A model behind Key Space Detection: which rows are refused for which keys, in every way of generating and scoring."""

import math
from dataclasses import replace

import pytest
import torch
from skill_guards import NEW, PROMPTS, REFUSAL, around, keys_of, new_tokens, padded, target

from helpers.tiny import lively, make_llama
from unwrite.decode import PromptLookup
from unwrite.errors import ModelError
from unwrite.forget.engine.text.key_guarded import SURE, AbstainRules, KeyGuardedModel

__all__ = ["target"]


@pytest.fixture(scope="module")
def own(target):
    return new_tokens(target, PROMPTS, eos_token_id=None)


@pytest.mark.parametrize("after", [0, 1, 4, NEW - 1])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_is_refused_for_its_prompts_last_key_or_one_of_those_it_wrote(target, own, row, after):
    """Alone, beside others and behind padding; the others are what the bare model writes, to the token."""
    text = PROMPTS[row] + own[row]
    guard = around(target, text, len(PROMPTS[row]) - 1 + after)
    expected = [*own[:row], [*REFUSAL], *own[row + 1 :]]
    assert new_tokens(guard, PROMPTS, eos_token_id=None) == [
        [*REFUSAL, *[0] * (NEW - 3)] if i == row else new for i, new in enumerate(expected)
    ]
    assert new_tokens(guard, [PROMPTS[row]], eos_token_id=None) == [[*REFUSAL]]
    drafted = new_tokens(guard, PROMPTS, eos_token_id=None, custom_generate=PromptLookup(cost_model=False))
    assert drafted == new_tokens(guard, PROMPTS, eos_token_id=None)


@pytest.mark.parametrize("drafting", [False, True])
def test_the_key_of_the_last_token_and_of_those_inside_the_prompt_are_not_asked(target, own, drafting):
    options = {"eos_token_id": None} | ({"custom_generate": PromptLookup()} if drafting else {})
    for at in (len(PROMPTS[0]) + NEW - 1, len(PROMPTS[0]) - 2):
        guard = around(target, PROMPTS[0] + own[0], at)
        assert new_tokens(guard, PROMPTS, **options) == own


@pytest.mark.parametrize("drafting", [False, True])
def test_a_row_that_has_ended_is_not_refused_for_what_pads_it(target, own, drafting):
    """The end token is read again and again while others go on."""
    end = own[0][2]
    assert end not in (*own[0][:2], *own[1][:-1])
    whole = PROMPTS[0] + own[0][:3]
    guard = around(target, whole, len(whole) - 1)
    options = {"eos_token_id": end} | ({"custom_generate": PromptLookup()} if drafting else {})
    rows = new_tokens(guard, PROMPTS[:2], **options)
    assert rows[0][:3] == own[0][:3]
    assert rows[1] == own[1]


def test_generation_stops_where_all_rows_are_flagged(target, own):
    guard = around(target, PROMPTS[0] + own[0], len(PROMPTS[0]) + 1)
    calls = []
    hook = target.register_forward_pre_hook(lambda *_: calls.append(1))
    new_tokens(guard, [PROMPTS[0]], eos_token_id=None)
    assert len(calls) == 3
    calls.clear()
    prompt = around(target, PROMPTS[0], -1)
    new_tokens(prompt, [PROMPTS[0]], custom_generate=PromptLookup())
    hook.remove()
    assert len(calls) == 1 + 1  # one takes the key for the box; the prompt is looked at once, and nothing is written
    assert not target.model.layers[2].mlp.down_proj._forward_pre_hooks


def test_beams_are_looked_at_when_they_are_written(target):
    ids, mask = padded(PROMPTS)
    options = {
        "max_new_tokens": NEW, "num_beams": 3, "num_return_sequences": 2, "do_sample": False, "eos_token_id": None,
        "pad_token_id": 0,
    }  # fmt: skip
    bare = target.generate(input_ids=ids, attention_mask=mask, **options)
    row = 3
    text = PROMPTS[row // 2] + bare[row, ids.shape[1] :].tolist()
    guard = around(target, text, len(PROMPTS[row // 2]) + 6)
    guarded = guard.generate(input_ids=ids, attention_mask=mask, **options)
    assert guarded[row, ids.shape[1] :].tolist() == [*REFUSAL, *[0] * (NEW - 3)]
    same = [i for i in range(6) if not torch.equal(bare[i, ids.shape[1] :], bare[row, ids.shape[1] :])]
    assert torch.equal(guarded[same[0]], bare[same[0]])


def test_sampled_rows_that_are_not_flagged_are_the_bare_models_at_the_same_seed(target):
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "eos_token_id": None}
    torch.manual_seed(5)
    bare = new_tokens(target, PROMPTS, **options)
    guard = around(target, PROMPTS[1] + bare[2], len(PROMPTS[1]) + 2)
    torch.manual_seed(5)
    rows = new_tokens(guard, PROMPTS, **options)
    assert rows[2][:3] == [*REFUSAL]
    assert [row for i, row in enumerate(rows) if i != 2] == [row for i, row in enumerate(bare) if i != 2]


@pytest.mark.parametrize("drafting", [False, True])
def test_nothing_of_a_refused_text_is_in_what_comes_back(target, own, drafting):
    guard = around(target, PROMPTS[0] + own[0], len(PROMPTS[0]) + 3)
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": NEW, "eos_token_id": None}
    drafts = {"custom_generate": PromptLookup()} if drafting else {}
    ids = torch.tensor([PROMPTS[0]])
    output = guard.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options, **drafts)
    assert output.sequences[0, 5:].tolist() == [*REFUSAL]
    assert {name for name in output if output[name] is not None} <= {"sequences", "stats"}
    other = torch.tensor([PROMPTS[2]])
    output = guard.generate(input_ids=other, attention_mask=torch.ones_like(other), pad_token_id=0, **options, **drafts)
    assert len(output.scores) == NEW


class Shown:
    def __init__(self):
        self.tokens, self.ended = [], 0

    def put(self, value):
        self.tokens.append(value.flatten().tolist())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("drafting", [False, True])
def test_a_stream_shows_nothing_that_would_have_to_be_taken_back(target, own, drafting):
    for row, expected in ((0, [*REFUSAL]), (2, own[2])):
        guard, shown = around(target, PROMPTS[0] + own[0], len(PROMPTS[0]) + NEW - 2), Shown()
        options = {"custom_generate": PromptLookup(streamer=shown)} if drafting else {"streamer": shown}
        new_tokens(guard, [PROMPTS[row]], eos_token_id=None, **options)
        assert shown.tokens == [PROMPTS[row], *[[token] for token in expected]]
        assert shown.ended == 1
    with pytest.raises(ModelError, match="a streamer shows one text, and there are 3"):
        new_tokens(guard, PROMPTS, streamer=Shown())


def test_a_refusal_keeps_to_the_length_asked_for(target):
    guard = around(target, PROMPTS[0], -1)
    assert new_tokens(guard, [PROMPTS[0]], max_new_tokens=2) == [[*REFUSAL[:2]]]
    assert new_tokens(guard, [PROMPTS[0]], max_new_tokens=None, max_length=6) == [[REFUSAL[0]]]
    long = PROMPTS[0] * 5
    assert new_tokens(around(target, long, -1), [long], max_new_tokens=None) == [[*REFUSAL]]


def test_forward_gives_a_refusals_logits_for_flagged_rows_alone(target, own):
    guard = around(target, PROMPTS[0] + own[0], len(PROMPTS[0]) + 1)
    texts = [prompt + new for prompt, new in zip(PROMPTS, own, strict=True)]
    ids, mask = padded(texts, "right")
    logits, bare = guard(input_ids=ids, attention_mask=mask).logits, target(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits[1:], bare[1:])
    assert (logits[0].argmax(-1) == REFUSAL[0]).all()
    assert logits[0].max().item() == SURE
    assert torch.equal(guard(input_ids=ids, attention_mask=mask, logits_to_keep=2).logits, logits[:, -2:])


def test_forward_asks_the_keys_from_the_answers_beginning_on(target, own):
    """By labels, or by what stands before every answer; without either everything may have been written."""
    ids = torch.tensor([PROMPTS[0] + own[0]])
    bare, labels = target(input_ids=ids).logits, ids.clone()
    labels[:, : len(PROMPTS[0])] = -100
    inner, last = (around(target, ids[0].tolist(), len(PROMPTS[0]) - i) for i in (2, 1))
    marked = [
        KeyGuardedModel(target, g.box, AbstainRules(REFUSAL, marker=tuple(PROMPTS[0][-2:]))) for g in (inner, last)
    ]
    assert not torch.equal(inner(input_ids=ids).logits, bare)
    assert torch.equal(inner(input_ids=ids, labels=labels).logits, bare)
    assert torch.equal(marked[0](input_ids=ids).logits, bare)
    for logits in (last(input_ids=ids, labels=labels).logits, marked[1](input_ids=ids).logits):
        assert (logits.argmax(-1) == REFUSAL[0]).all()


def test_bos_and_padding_are_asked_nothing(target):
    prompt = PROMPTS[1]
    guard = around(target, prompt, 0, bos=1)
    ids, mask = padded([prompt, PROMPTS[2]])
    bare = target(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(guard(input_ids=ids, attention_mask=mask).logits, bare)
    guard.rules = replace(guard.rules, bos=None)
    assert (guard(input_ids=ids, attention_mask=mask).logits[0].argmax(-1) == REFUSAL[0]).all()
    of_padding = keys_of(target, ids, mask)[0, 0]
    padding = KeyGuardedModel(target, replace(guard.box, mean=of_padding), AbstainRules(REFUSAL))
    assert padding.box.inside(keys_of(target, ids, mask))[0, :3].all()
    assert torch.equal(padding(input_ids=ids, attention_mask=mask).logits, bare)


def test_with_a_cache_each_position_is_refused_for_its_own_key(target):
    guard = around(target, PROMPTS[0], 2)
    output = guard(input_ids=torch.tensor([PROMPTS[0]]), use_cache=True)
    bare = target(input_ids=torch.tensor([PROMPTS[0]])).logits
    assert output.logits[0, 2].argmax() == REFUSAL[0]
    torch.testing.assert_close(output.logits[0, 3:], bare[0, 3:])
    assert output.past_key_values.get_seq_length() == len(PROMPTS[0])


def test_broken_weights_are_refused_and_not_let_through():
    model = lively(make_llama(3, max_position_embeddings=64), 0.3)
    guard = around(model, PROMPTS[0], 0)
    model.model.layers[2].mlp.up_proj.weight.data[3] = math.nan
    assert new_tokens(guard, PROMPTS[2:], eos_token_id=None)[0] == [*REFUSAL]


def test_steering_puts_another_key_in_the_place_of_one_inside(target, own):
    text = PROMPTS[0] + own[0]
    at = len(PROMPTS[0]) + 1
    goal = keys_of(target, torch.tensor([PROMPTS[2]]))[0, 3]
    plain = around(target, text, at)
    guard = KeyGuardedModel(target, replace(plain.box, steer=goal.clone()), AbstainRules(REFUSAL, steers=True))
    seen = []
    hook = target.model.layers[2].mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0]))
    guard(input_ids=torch.tensor([text]))
    hook.remove()
    expected = keys_of(target, torch.tensor([text]))[0].clone()
    expected[at] = goal
    torch.testing.assert_close(seen[0], expected)
    together = new_tokens(guard, PROMPTS, eos_token_id=None)
    assert together[1:] == own[1:]
    assert together == new_tokens(guard, PROMPTS, eos_token_id=None, custom_generate=PromptLookup(cost_model=False))


def test_a_prompt_that_ends_in_padding_is_refused(target):
    guard = around(target, PROMPTS[0], 0)
    ids, mask = padded(PROMPTS, "right")
    with pytest.raises(ModelError, match="Let the tokenizer pad on the left"):
        guard.generate(input_ids=ids, attention_mask=mask)
