"""A model behind ECO: which tokens of a prompt are corrupted, once and in every way of generating, and whose rows are not."""

import copy

import pytest
import torch
from asked_prompts import ASKED, OTHER, batch, ids
from corrupting import guarded
from transformers import TextStreamer

from conftest import make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite.beds.language import small_tokenizer
from unwrite.decode import PromptLookup, TokenRecycling
from unwrite.errors import ModelError
from unwrite.forget.engine.text.corrupted_prompts import spans_of
from unwrite.forget.engine.text.prompts import PromptReader

# --- names


def test_a_name_marks_exactly_the_tokens_that_share_its_characters():
    tokenizer = small_tokenizer(["abc"])  # bytes, so that names have many tokens
    text = "Who is Harry Potter?"
    assert spans_of(text, ["Harry Potter", "Ron"]) == [(7, 19)]
    coarse = small_tokenizer([text, "He lives in Edinburgh with a red owl."], 300)
    for one in (tokenizer, coarse):
        encoded = one(text, return_offsets_mapping=True)
        model = guarded(names=("Harry Potter",))
        model.tokenizer, model.reader = one, PromptReader(one)
        expected = [start < 19 and end > 7 for start, end in encoded["offset_mapping"]]
        assert any(expected)
        assert not all(expected)
        assert model.marks(encoded["input_ids"]).tolist() == expected
    assert spans_of("HARRY  POTTER'S owl, not Harry Potters", ["Harry Potter"]) == [(0, 13)]


def test_a_character_of_several_tokens_marks_all_of_them():
    tokenizer = small_tokenizer(["abc"])
    model = guarded(names=("Ågot",))
    model.tokenizer, model.reader = tokenizer, PromptReader(tokenizer)
    marks = model.marks(tokenizer("Is Ågot in?")["input_ids"])
    assert marks.tolist() == [False] * 3 + [True] * 5 + [False] * 4


def test_without_a_name_all_but_the_last_token_are_marked():
    assert guarded(names=("Eve",)).marks(ASKED).tolist() == [True] * (len(ASKED) - 1) + [False]
    assert guarded(names=("Ann",)).marks(ASKED).tolist() == [False, False, False, True, False, False]


# --- a model behind it


@pytest.mark.parametrize("side", ["left", "right"])
def test_unflagged_rows_are_the_targets_to_the_bit_beside_a_flagged_one(side):
    model, inputs = guarded(), batch([ASKED, OTHER], side)
    own, bare = model(**inputs).logits, model.target(**inputs).logits
    assert torch.equal(own[1], bare[1])
    assert not torch.allclose(own[0], bare[0])
    alone = model(**batch([OTHER])).logits
    assert torch.equal(alone, model.target(**batch([OTHER])).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_neighbours_do_not_change_the_corruption(side):
    model = guarded()
    inputs = batch([ASKED, OTHER], side)
    shown = inputs["attention_mask"][0].bool()
    alone = model(input_ids=torch.tensor([ASKED])).logits[0]
    places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert torch.allclose(model(**inputs, position_ids=places).logits[0][shown], alone, atol=1e-5)


def test_noise_is_a_function_of_prompt_and_seed():
    def noise(prompt, seed=0):
        model = guarded(noise_seed=seed)
        return (model._replacement(prompt).values - model._embedded(prompt)[:-1])[:, 0]

    other = [ids("where")[0] if token == ids("who")[0] else token for token in ASKED]
    assert torch.equal(noise(ASKED), noise(ASKED))
    assert not torch.allclose(noise(ASKED), noise(other), atol=0.1)
    assert not torch.allclose(noise(ASKED), noise(ASKED, seed=1), atol=0.1)


def test_strength_0_and_threshold_1_are_the_bare_model():
    inputs = batch([ASKED, OTHER])
    for model in (guarded(strength=0.0), guarded(threshold=1.0)):
        assert torch.equal(model(**inputs).logits, model.target(**inputs).logits)
        assert not model.target._forward_pre_hooks
        own, bare = (one.generate(**inputs, max_new_tokens=8, do_sample=False) for one in (model, model.target))
        assert torch.equal(own, bare)


def explicit(model, prompt):
    """The prompt's embeddings as the model corrupts them."""
    one = model._replacement(prompt)
    table = model.target.get_input_embeddings()
    embeddings = table(torch.tensor([prompt]))
    embeddings[0, one.places] = one.values
    return embeddings


def test_generation_is_decoding_from_corrupted_embeddings():
    model = guarded(strength=20.0)
    own = model.generate(**batch([ASKED]), max_new_tokens=10, do_sample=False)[0, len(ASKED) :]
    by_hand = model.target.generate(inputs_embeds=explicit(model, ASKED), max_new_tokens=10, do_sample=False)[0]
    bare = model.target.generate(**batch([ASKED]), max_new_tokens=10, do_sample=False)[0, len(ASKED) :]
    assert own.tolist() == by_hand.tolist()
    assert own.tolist() != bare.tolist()
    assert torch.allclose(model(**batch([ASKED])).logits, model.target(inputs_embeds=explicit(model, ASKED)).logits)


def changed_by_call(model, **options):
    """How many positions of each call of the embedding differ from the table."""
    calls, table = [], model.target.get_input_embeddings()
    weights = table.weight

    def look(_, args, kwargs):
        embedded = kwargs.get("hidden_states", args[0] if args else None)
        calls.append((seen[-1].shape[1], int((embedded != weights[seen[-1]]).any(-1).sum())))

    seen = []
    handles = [
        table.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        model.target.model.layers[0].register_forward_pre_hook(look, with_kwargs=True),
    ]
    model.generate(do_sample=False, max_new_tokens=6, **options)
    for handle in handles:
        handle.remove()
    return calls


def test_only_the_prompt_is_corrupted_and_once():
    calls = changed_by_call(guarded(), **batch([ASKED, OTHER]))
    assert calls[0] == (len(OTHER), len(ASKED) - 1)
    assert [changed for width, changed in calls[1:]] == [0] * (len(calls) - 1)
    assert [width for width, _ in calls[1:]] == [1] * (len(calls) - 1)
    assert len(calls) > 1


def test_a_prompt_of_one_token_does_not_escape():
    prompt = ids("ann")
    calls = changed_by_call(guarded(name="reverse_order", dims=1), **batch([prompt]))
    assert calls[0] == (1, 0)  # all but the last token is none
    calls = changed_by_call(guarded(names=("ann",)), **batch([prompt]))
    assert calls[0] == (1, 1)
    assert not any(changed for _, changed in calls[1:])


WAYS = {
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3, "do_sample": False},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "chunks": {"prefill_chunk_size": 3, "do_sample": False},
    "without cache": {"use_cache": False, "do_sample": False},
    "static cache": {"cache_implementation": "static", "do_sample": False},
    "lookup": {"prompt_lookup_num_tokens": 2, "do_sample": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_generating_reads_the_corrupted_prompt(way):
    """As a target whose table itself holds the corrupted embeddings, under tokens of their own."""
    size = len(make_tokenizer())
    bias = {"sequence_bias": {(size + place,): -1e9 for place in range(len(ASKED))}}
    options = WAYS[way] | bias | {"max_new_tokens": 8}
    model = guarded(strength=20.0, target=lively(make_llama(0, vocab=size + len(ASKED))))
    one = model._replacement(ASKED)
    twin = copy.deepcopy(model.target)
    with torch.no_grad():
        twin.get_input_embeddings().weight[size:] = explicit(model, ASKED)[0]
    renamed = [size + place if place in one.places else token for place, token in enumerate(ASKED)]
    rows = [ASKED] if way == "lookup" else [ASKED, OTHER]
    torch.manual_seed(3)
    own = model.generate(**batch(rows), **options)
    torch.manual_seed(3)
    other = twin.generate(**batch([renamed, *rows[1:]]), **options)
    width = batch(rows)["input_ids"].shape[1]
    assert torch.equal(own[:, width:], other[:, width:])
    assert torch.equal(own[:, :width], batch(rows)["input_ids"].repeat_interleave(len(own) // len(rows), 0))


@pytest.mark.parametrize("strategy", [PromptLookup(), TokenRecycling()])
def test_drafting_gives_the_guards_own_text_beside_an_unflagged_prompt(strategy):
    model, inputs = guarded(strength=20.0), batch([ASKED, OTHER])
    plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    drafted = model.generate(**inputs, max_new_tokens=12, do_sample=False, custom_generate=strategy)
    assert torch.equal(plain, drafted)
    bare = model.target.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert torch.equal(plain[1], bare[1])
    assert not torch.equal(plain[0], bare[0])
    assert not model.target._forward_pre_hooks


def test_a_streamer_is_given_every_token(capsys):
    model = guarded(strength=20.0)
    out = model.generate(
        **batch([ASKED]), max_new_tokens=6, do_sample=False, streamer=TextStreamer(make_tokenizer(), skip_prompt=True)
    )
    assert capsys.readouterr().out.split() == make_tokenizer().decode(out[0, len(ASKED) :]).split()


def test_what_other_people_keep_of_the_embeddings_stays_as_it_was():
    model, kept = guarded(), []
    table = model.target.get_input_embeddings()
    table.register_forward_hook(lambda _, __, output: kept.append(output))
    model(**batch([ASKED]))
    assert torch.equal(kept[0][0], table.weight[ASKED])


def test_hooks_of_other_people_stay():
    model = guarded()
    calls = []
    table = model.target.get_input_embeddings()
    for one in (table, model.target):
        one.register_forward_hook(lambda *_: calls.append(1))
    before = [(dict(one._forward_hooks), dict(one._forward_pre_hooks)) for one in model.target.modules()]
    model(**batch([ASKED]))
    assert len(calls) == 2
    with pytest.raises(ValueError, match="mine"):
        model.generate(**batch([ASKED]), logits_processor=[lambda *_: (_ for _ in ()).throw(ValueError("mine"))])
    assert [(dict(one._forward_hooks), dict(one._forward_pre_hooks)) for one in model.target.modules()] == before


def test_in_the_scope_of_the_answer_its_tokens_are_corrupted_when_a_row_is_scored():
    row = [*ASKED, *ids("the red garden"), 2]
    inputs = batch([row])
    prompt_alone, whole = guarded(), guarded(scope="prompt+answer")
    assert prompt_alone._replacement(row).places.tolist() == [*range(len(ASKED) - 1)]
    assert whole._replacement(row).places.tolist() == [*range(len(row) - 1)]
    assert not torch.allclose(prompt_alone(**inputs).logits, whole(**inputs).logits)
    assert prompt_alone._replacement(row).values.equal(prompt_alone._replacement(ASKED).values)


def test_a_cache_goes_on_as_the_prompt_was_read():
    model = guarded(strength=20.0)
    greedy = model.generate(**batch([ASKED]), max_new_tokens=4, do_sample=False)[0].tolist()
    output, text = model(input_ids=torch.tensor([ASKED]), use_cache=True), list(ASKED)
    for _ in range(len(greedy) - len(ASKED)):
        text.append(int(output.logits[0, -1].argmax()))
        output = model(input_ids=torch.tensor([text[-1:]]), past_key_values=output.past_key_values, use_cache=True)
    assert text == greedy
    with pytest.raises(ModelError, match="cache given holds its beginning"):
        model.generate(**batch([[*text, *ASKED]]), past_key_values=output.past_key_values)


def test_the_loss_is_of_what_the_model_says_and_defaults_are_its_own():
    model = guarded()
    output = model(**batch([ASKED]), labels=torch.tensor([ASKED]))
    assert output.loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(output.logits[0, :-1], torch.tensor(ASKED[1:])).item(), rel=1e-5
    )
    model.generation_config.max_new_tokens = 2
    assert model.generate(**batch([ASKED])).shape[1] == len(ASKED) + 2
    assert model.target.generation_config.max_new_tokens is None


def test_a_way_that_reads_the_prompt_past_the_corruption_gives_nothing_out():
    def by_rows(model, input_ids, **_):
        return torch.cat([model(row[None]).logits.argmax(-1) for row in input_ids])

    with pytest.raises(ModelError, match="was not read in the batch's order"):
        guarded().generate(**batch([ASKED, OTHER]), custom_generate=by_rows)


def test_one_flagged_turn_flags_the_conversation():
    row = ids("<user> who was ann ? <assistant> red </s> <user> where is the garden ? <assistant>")
    assert guarded().flagged([row, OTHER]) == [True, False]
    assert guarded().flagged([ids("<user> who was bert ? <assistant> ann </s> <user> and ? <assistant>")]) == [False]
