"""ULD: the combination and its filter in closed form, decoding with two caches, and what the assistant learns."""

import math
from dataclasses import replace

import pytest
import torch
from forgetting import SGD, counts, encoded, forward
from peft import get_peft_model

from conftest import make_examples, make_llama
from unwrite.data import Example, Examples
from unwrite.data.text.encoding import encode_all, encode_prompt
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import ULD
from unwrite.forget.engine.text.logit_difference import LogitDifferenceModel, PairCache, kept_tokens, subtract
from unwrite.forget.uld import _ReversedObjective, remember_rows, uniform_divergence, uniform_rows
from unwrite.models import anatomy, load, load_model, save
from unwrite.runs import hash_model
from unwrite.scoring import generate_answers, score_answers

FAST = {**SGD, "optim": "adamw_torch", "learning_rate": 1e-2, "gradient_accumulation_steps": 1}


def uniform_assistant(layers=1):
    """Every logit 0, whatever comes in."""
    model = make_llama(5, layers=layers)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


@pytest.fixture
def target():
    """Sharper than a random model, so that greedy choices are no ties."""
    model = make_llama(0)
    model.lm_head.weight.data *= 20
    return model


@pytest.fixture
def pair(target):
    assistant = make_llama(9, layers=1)
    assistant.lm_head.weight.data *= 20
    return LogitDifferenceModel(target, assistant, alpha=0.8, top_filter=0.01)


@pytest.fixture
def prompts(forget, tokenizer):
    prompts = [encode_prompt(row, tokenizer) for row in forget[:5]]
    return [prompt[i:] for i, prompt in enumerate(prompts)]  # of unequal length


def ids_of(model, prompt, **options):
    ids = torch.tensor([prompt])
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, pad_token_id=0,
        **{"do_sample": False, **options},
    )[0].tolist()  # fmt: skip


# Closed forms.


def test_uniform_divergence_has_its_closed_form():
    assert uniform_divergence(torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()).item() == pytest.approx(0.429813, abs=1e-6)


def test_uniform_divergence_of_the_uniform_is_zero():
    assert uniform_divergence(torch.full((2, 50), 3.0)).abs().max() < 1e-6


def test_uniform_divergence_survives_half_precision():
    logits = torch.tensor([[100.0, 0.0, 0.0]], dtype=torch.bfloat16)
    assert uniform_divergence(logits).item() == pytest.approx(200 / 3 - math.log(3), rel=1e-4)


def test_combination_has_the_cards_numbers():
    target, assistant = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])
    combined = subtract(target, assistant, 0.8, 0.0, drop=True, raw=True)
    torch.testing.assert_close(combined, torch.tensor([-0.4, 1.0, 0.0]))
    assert target.argmax() == 0
    assert combined.argmax() == 1


def test_centred_combination_does_not_see_an_offset_of_the_assistant_and_the_raw_one_does():
    target, assistant = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0)) * 3
    assert not kept_tokens(target, 0.05).all()  # with all of them kept, an offset would mean nothing
    centred, raw = (
        [subtract(target, a, 0.8, 0.05, drop=False, raw=raw).softmax(-1) for a in (assistant, assistant + 4)]
        for raw in (False, True)
    )
    torch.testing.assert_close(*centred)
    assert not torch.allclose(*raw)


def test_filter_keeps_at_least_one_percent_of_a_thousand_tokens():
    logits = torch.randn(20, 1000) * torch.linspace(0.1, 30, 20)[:, None]
    assert kept_tokens(logits, 0.01).sum(-1).min() >= 10


def test_filter_keeps_exactly_the_top_ten_under_a_peaked_distribution():
    logits = -torch.arange(1000.0)[None] * 20
    assert kept_tokens(logits, 0.01)[0].nonzero().flatten().tolist() == list(range(10))


def test_filter_on_fifty_tokens_keeps_the_share_alone():
    logits = torch.tensor([[0.0, -1.0, *([-20.0] * 48)]])
    assert kept_tokens(logits, 0.01)[0].nonzero().flatten().tolist() == [0, 1]


def test_filter_zero_keeps_all_and_a_tiny_one_drops_only_what_is_smaller_still():
    logits = torch.tensor([[0.0, -10.0, -30.0]])
    assert kept_tokens(logits, 0.0).all()
    assert kept_tokens(logits, 1e-9)[0].tolist() == [True, True, False]


# Identities of the combined model.


@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("top_filter", [0.0, 0.01, 0.5])
def test_uniform_assistant_changes_no_score(target, alpha, top_filter):
    ids = torch.randint(3, 60, (2, 9))
    combined = LogitDifferenceModel(target, uniform_assistant(), alpha, top_filter)
    torch.testing.assert_close(combined(input_ids=ids).logits, target(input_ids=ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("top_filter", [0.0, 0.01])
def test_uniform_assistant_leaves_greedy_text_identical(target, prompts, top_filter):
    combined = LogitDifferenceModel(target, uniform_assistant(), 2.0, top_filter)
    assert [ids_of(combined, p) for p in prompts] == [ids_of(target, p) for p in prompts]


def test_alpha_zero_is_the_target_in_scores_and_text(target, prompts):
    combined = LogitDifferenceModel(target, make_llama(9, layers=1), 0.0, 0.01)
    ids = torch.randint(3, 60, (2, 9))
    assert torch.equal(combined(input_ids=ids).logits, target(input_ids=ids).logits)
    assert [ids_of(combined, p) for p in prompts] == [ids_of(target, p) for p in prompts]


def test_scoring_leaves_filtered_tokens_at_the_targets_logit(pair, target):
    ids = torch.randint(3, 60, (1, 6))
    logits, plain = pair(input_ids=ids).logits, target(input_ids=ids).logits
    kept = kept_tokens(plain, 0.01)
    assert torch.equal(logits[~kept], plain[~kept])
    assert torch.isfinite(logits).all()


def test_generation_never_chooses_a_filtered_token(pair, prompts):
    for prompt in prompts:
        out = ids_of(pair, prompt)
        plain = pair.target(input_ids=torch.tensor([out])).logits[0]
        for at in range(len(prompt), len(out)):
            assert kept_tokens(plain[at - 1], 0.01)[out[at]]


def test_generation_differs_from_the_targets_own(pair, target, prompts):
    assert [ids_of(pair, p) for p in prompts] != [ids_of(target, p) for p in prompts]


# Decoding.


def test_generation_with_caches_is_generation_without(pair, prompts):
    assert [ids_of(pair, p) for p in prompts] == [ids_of(pair, p, use_cache=False) for p in prompts]


def test_logits_with_caches_are_logits_from_scratch(pair):
    ids = torch.randint(3, 60, (2, 9))
    whole = pair(input_ids=ids).logits
    cache = PairCache(pair.target.config, pair.assistant.config)
    steps = [pair(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == cache.assistant.get_seq_length() == 9


def test_left_padded_batch_is_single_prompts(pair, prompts, tokenizer):
    together = generate_answers(pair, tokenizer, prompts, max_new_tokens=8, batch_size=5)
    alone = [generate_answers(pair, tokenizer, [p], max_new_tokens=8)[0] for p in prompts]
    assert together == alone


def test_beams_with_caches_are_beams_without(pair, prompts):
    """Beams change places: a cache that doesn't follow shows in the sequences or in their scores."""
    ids = torch.tensor([prompts[0]])
    cached, fresh = (
        pair.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=use, max_new_tokens=8, num_beams=4,
            num_return_sequences=4, do_sample=False, pad_token_id=0, eos_token_id=None,
            return_dict_in_generate=True, output_scores=True,
        )
        for use in (True, False)
    )  # fmt: skip
    assert torch.equal(cached.sequences, fresh.sequences)
    torch.testing.assert_close(cached.sequences_scores, fresh.sequences_scores, rtol=0, atol=1e-4)


def test_sampling_is_the_same_at_the_same_seed(pair, prompts):
    torch.manual_seed(4)
    first = ids_of(pair, prompts[0], do_sample=True, temperature=1.5)
    torch.manual_seed(4)
    assert ids_of(pair, prompts[0], do_sample=True, temperature=1.5) == first


def test_a_cache_of_one_model_is_refused(pair, target):
    from transformers import DynamicCache

    with pytest.raises(ModelError, match="a DynamicCache holds one model's keys; pass a PairCache"):
        pair(input_ids=torch.tensor([[3]]), past_key_values=DynamicCache(config=target.config), use_cache=True)


def test_answers_are_scored_like_any_models(pair, forget, tokenizer):
    scores = score_answers(pair, encode_all(forget[:3], tokenizer), pad_id=0)
    assert all(score.nll > 0 for score in scores)


# Saving.


def test_saved_pair_comes_back_with_its_settings(pair, tmp_path):
    pair.save_pretrained(tmp_path)
    again = LogitDifferenceModel.from_pretrained(tmp_path)
    assert (again.alpha, again.top_filter, again.raw) == (0.8, 0.01, False)
    assert again.fingerprint() == pair.fingerprint()


def test_models_load_brings_a_saved_pair_back_with_its_tokenizer(pair, tokenizer, prompts, tmp_path):
    save(pair, tmp_path / "pair", tokenizer=tokenizer)
    loaded = load(tmp_path / "pair")
    assert loaded.source["loader"] == "logit-difference"
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert [ids_of(loaded.model, p) for p in prompts] == [ids_of(pair, p) for p in prompts]


def test_a_pair_saved_without_its_tokenizer_comes_back_without_one(pair, tmp_path):
    save(pair, tmp_path / "pair")
    assert load_model(tmp_path / "pair").fingerprint() == pair.fingerprint()


def test_fingerprint_sees_weights_and_settings(pair):
    first = pair.fingerprint()
    pair.alpha = 0.7
    second = pair.fingerprint()
    pair.assistant.lm_head.weight.data += 1
    assert len({first, second, pair.fingerprint()}) == 3


# The assistant.


@pytest.fixture
def trained_pair(forget, retain, tokenizer):
    model = make_llama(layers=3)
    args = {**FAST, "num_train_epochs": 3}
    return model, ULD(layers=2).apply(model, forget, retain, processing_class=tokenizer, args=args)


def test_target_is_unchanged_and_the_assistant_has_its_layers(trained_pair):
    model, guarded = trained_pair
    assert hash_model(model) == hash_model(make_llama(layers=3))
    assert guarded.target is model
    assert len(guarded.assistant.model.layers) == guarded.assistant.config.num_hidden_layers == 2


def test_at_lora_initialisation_the_assistant_is_an_early_exit_of_the_target(tiny_llama):
    assistant = get_peft_model(anatomy(tiny_llama).truncate(2), ULD()._lora()).eval()
    ids = torch.randint(3, 60, (2, 7))
    exit_ = tiny_llama(input_ids=ids, output_hidden_states=True).hidden_states[2]
    expected = tiny_llama.lm_head(tiny_llama.model.norm(exit_))
    torch.testing.assert_close(assistant(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-6)


def test_only_adapter_weights_of_the_assistant_train(tiny_llama):
    assistant = anatomy(tiny_llama).truncate(2).requires_grad_(False)
    adapted = get_peft_model(assistant, ULD()._lora())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


def divergence_and_nll(assistant, forget, retain, tokenizer):
    objective = _ReversedObjective()
    rows = encoded(forget, retain, tokenizer)
    with torch.no_grad():
        terms = objective.loss(batch := forward(objective, assistant.eval(), rows)).terms
    found = counts(batch)
    return terms["remember"].total(found).item(), terms["uniform"].total(found).item()


def sharp_assistant():
    model = make_llama(0, layers=2)
    model.lm_head.weight.data *= 20
    return model


def trained_assistant(forget, retain, tokenizer, retain_weight):
    objective = _ReversedObjective(retain_weight=retain_weight)
    args = {**FAST, "num_train_epochs": 25, "learning_rate": 1e-2}
    return objective.work(sharp_assistant(), forget, retain, processing_class=tokenizer, args=args).train(objective)


def test_assistant_remembers_the_forget_set_and_is_uniform_on_the_rest(forget, retain, tokenizer):
    nll, divergence = divergence_and_nll(sharp_assistant(), forget, retain, tokenizer)
    after = divergence_and_nll(trained_assistant(forget, retain, tokenizer, 5.0), forget, retain, tokenizer)
    assert after[0] < 0.5 * nll
    assert after[1] < 0.1 * divergence


def test_assistant_trained_to_remember_alone_is_not_uniform_on_the_rest(forget, retain, tokenizer):
    nll, divergence = divergence_and_nll(sharp_assistant(), forget, retain, tokenizer)
    after = divergence_and_nll(trained_assistant(forget, retain, tokenizer, 0.0), forget, retain, tokenizer)
    assert after[0] < 0.5 * nll
    assert after[1] > 0.1 * divergence


def test_guard_lowers_the_forget_answers_more_than_the_retain_answers(tokenizer):
    """On a target that knows both by heart, as in the paper's setting."""
    forget, retain = make_examples("forget", 8), make_examples("retain", 8)
    target = make_llama(0, layers=3)
    rows = {"forget": encode_all(Examples([*forget, *retain], "both"), tokenizer)}
    optimiser = torch.optim.AdamW(target.parameters(), lr=1e-2)
    for _ in range(40):
        loss = forward(_ReversedObjective(), target.train(), rows)["forget"].token_nll.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    guards = [
        ULD(layers=2).apply(
            target.eval(),
            forget,
            retain,
            processing_class=tokenizer,
            args={**FAST, "num_train_epochs": 40, "seed": seed},
        )
        for seed in (0, 1)
    ]

    def mean_nll(model, examples):
        scores = score_answers(model, encode_all(examples, tokenizer), pad_id=0)
        return sum(score.mean_nll for score in scores) / len(scores)

    lost = [
        sum(mean_nll(guarded, rows) for guarded in guards) / len(guards) - mean_nll(target, rows)
        for rows in (forget, retain)
    ]
    assert lost[0] > 0.1
    assert lost[0] > 1.5 * lost[1]


def test_a_batch_without_one_kind_has_no_term_for_it(forget, retain, tokenizer, tiny_llama):
    objective = _ReversedObjective()
    rows = encoded(forget, retain, tokenizer)
    for part, term in (("forget", "remember"), ("retain", "uniform")):
        assert set(objective.loss(forward(objective, tiny_llama, {part: rows[part]})).terms) == {term}


def test_uniform_term_counts_prompts_and_no_padding(forget, retain, tokenizer, tiny_llama):
    rows = encoded(forget, retain, tokenizer)["retain"]
    batch = forward(_ReversedObjective(), tiny_llama, {"retain": rows})
    assert len(batch["retain"].logits) == sum(len(row.input_ids) for row in rows)


# Data.


def test_paraphrases_are_added_up_to_the_number_asked_for(forget):
    assert len(remember_rows(forget, 0)) == len(forget)
    assert len(remember_rows(forget, 2)) == 3 * len(forget)
    assert all(row.question for row in remember_rows(forget, 2))


def test_uniform_rows_are_as_many_retain_rows_as_forget_rows_and_wrong_answers(forget, retain):
    rows = uniform_rows(forget, retain, 2, seed=0)
    retained = [row for row in rows if any(row.question == r.question and row.answer == r.answer for r in retain)]
    assert len(retained) == len(forget)
    assert len(rows) == len(forget) + 2 * len(forget)


def test_the_uniform_terms_retain_rows_are_drawn_by_seed_and_not_the_last_ones(forget, retain):
    count = 3
    many = Examples([replace(row, question=f"{row.question} {i}") for i in range(12) for row in retain], "retain")
    drawn = [[row.question for row in uniform_rows(forget[:count], many, 0, seed)] for seed in (0, 0, 1)]
    assert len({*drawn[0]}) == count
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != [row.question for row in many[-count:]]


def test_wrong_answers_are_never_right(forget, retain):
    right = {(row.question, row.answer) for row in forget}
    plain = Examples([Example(question=row.question, answer=row.answer) for row in forget], "plain")
    for rows in (forget, plain):
        assert not right & {(row.question, row.answer) for row in uniform_rows(rows, retain, 2, seed=0)}


# Refusals.


def test_refuses_to_train_without_a_retain_set(forget, tokenizer, tiny_llama):
    with pytest.raises(DataError, match="the assistant would suppress everything"):
        ULD(layers=1).apply(tiny_llama, forget, processing_class=tokenizer)


def test_refuses_a_target_that_is_already_wrapped(pair, forget, retain, tokenizer):
    with pytest.raises(MethodError, match="already wrapped"):
        ULD(layers=1).apply(pair, forget, retain, processing_class=tokenizer, args=FAST)


def test_refuses_an_assistant_with_another_vocabulary(target):
    with pytest.raises(ModelError, match="vocabularies of 67 and 50 tokens"):
        LogitDifferenceModel(target, make_llama(vocab=50))


def test_refuses_more_layers_than_there_are(forget, retain, tokenizer, tiny_llama):
    with pytest.raises(
        MethodError, match=r"layers is 8 but the model has 3 blocks. Use 1 to 3, or leave it out for 1\."
    ):
        ULD(layers=8).apply(tiny_llama, forget, retain, processing_class=tokenizer, args=FAST)


def test_a_model_without_so_many_layers_is_refused_by_its_check_alone(tiny_llama):
    with pytest.raises(MethodError, match="layers is 8 but the model has 3 blocks"):
        ULD(layers=8).check_model(tiny_llama)
    ULD().check_model(tiny_llama)


@pytest.mark.parametrize(("depth", "layers"), [(32, 8), (30, 8), (12, 3), (4, 1), (1, 1)])
def test_the_assistant_keeps_the_first_quarter_by_default(depth, layers):
    assert ULD().fitted(make_llama(layers=depth)).layers == layers


def test_the_default_gives_an_assistant_on_a_model_of_three_blocks(forget, retain, tokenizer, tiny_llama):
    guarded = ULD().apply(tiny_llama, forget, retain, processing_class=tokenizer, args={**FAST, "max_steps": 1})
    assert len(anatomy(guarded.assistant).blocks) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": -0.1},
        {"alpha": float("nan")},
        {"top_filter": 1.0},
        {"top_filter": -0.1},
        {"retain_weight": -1.0},
        {"layers": 0},
        {"rank": 0},
        {"paraphrases": -1},
        {"wrong_answers": -1},
        {"positions": "answer"},
    ],
)
def test_refuses_a_field_without_meaning(fields):
    with pytest.raises(MethodError, match=f"{next(iter(fields))} is"):
        ULD(**fields)
