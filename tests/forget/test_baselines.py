"""The baselines every other method is judged against: GA, GradDiff, KL, IDK, DPO, SimNPO."""

import copy
import math

import pytest
import torch
from forgetting import encoded, forward, gradients, references, train, value, weights
from test_npo import moved

from conftest import make_llama
from unwrite.data import Example, Examples
from unwrite.data.text.encoding import Encoded, pad
from unwrite.errors import DataError
from unwrite.forget import DPO, IDK, NPO, RMU, UNDIAL, GradientAscent, GradientDifference, KLAscent, SimNPO
from unwrite.forget.engine.batch import BatchPart, PairedBatch
from unwrite.forget.engine.loss import kl_divergence
from unwrite.forget.refusal import default_refusals, refuse

# With what it takes to exercise every term of each.
EVERY = {
    "gradient-ascent": GradientAscent(),
    "gradient-difference": GradientDifference(),
    "kl-ascent": KLAscent(),
    "kl-ascent on labels": KLAscent(kl_mask="labels"),
    "npo": NPO(),
    "npo with kl": NPO(retain_loss="kl"),
    "idk": IDK(),
    "dpo": DPO(),
    "simnpo": SimNPO(),
    "undial": UNDIAL(),
    "rmu": RMU(layer=1),
    "rmu on attention": RMU(layer=1, mask="attention"),
}


@pytest.fixture
def rows(forget, retain, tokenizer):
    return encoded(forget[:6], retain[:6], tokenizer, DPO())


def stub(nll, tokens, reference=None, index=None):
    """A part whose summed nll and token counts are given."""
    n = len(nll)
    labels = torch.full((n, max(tokens) + 1), -100)
    for row, count in enumerate(tokens):
        labels[row, 1 : count + 1] = 1
    part = BatchPart(torch.arange(n), torch.zeros_like(labels), torch.ones_like(labels), labels, labels != labels)
    part.__dict__["nll"] = torch.tensor(nll, dtype=torch.float64)
    part.reference = None if reference is None else torch.tensor(reference, dtype=torch.float64)
    return part


# Gradient ascent and its retain variants.


def test_gradient_ascent_is_minus_the_models_own_loss(rows, tiny_llama):
    tensors = pad(rows["forget"], 0)
    own = tiny_llama(**{k: tensors[k] for k in ("input_ids", "attention_mask", "labels")}).loss
    loss = value(GradientAscent(), forward(GradientAscent(), tiny_llama, {"forget": rows["forget"]}))
    torch.testing.assert_close(loss, -own, rtol=1e-6, atol=1e-6)


def test_gradient_difference_without_retain_weight_is_gradient_ascent_step_by_step(forget, retain, tokenizer):
    ascent, difference = make_llama(), make_llama()
    train(GradientAscent(), ascent, forget, None, tokenizer, max_steps=3)
    train(GradientDifference(retain_weight=0.0), difference, forget, retain, tokenizer, max_steps=3)
    for name, tensor in weights(ascent).items():
        torch.testing.assert_close(tensor, weights(difference)[name], rtol=1e-5, atol=1e-7)


def test_gradient_difference_adds_the_mean_token_nll_of_retain_answers(rows, tiny_llama):
    tensors = pad(rows["retain"], 0)
    retain = tiny_llama(**{k: tensors[k] for k in ("input_ids", "attention_mask", "labels")}).loss
    objective = GradientDifference(retain_weight=0.5)
    batch = forward(objective, tiny_llama, {"forget": rows["forget"], "retain": rows["retain"]})
    ascent = value(objective, batch, objective.loss)
    torch.testing.assert_close(value(objective, batch) - ascent, 0.5 * retain, rtol=1e-5, atol=1e-6)


def test_kl_divergence_has_its_closed_form():
    reference, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert kl_divergence(reference, other).item() == pytest.approx(0.510826, abs=1e-6)


def test_kl_divergence_is_zero_for_equal_distributions():
    logits = torch.randn(4, 9)
    assert kl_divergence(logits, logits + 2.0).abs().max() < 1e-6


def test_kl_retain_term_is_zero_before_unlearning_and_so_is_its_gradient(rows, tiny_llama):
    objective = KLAscent(forget_weight=0.0)
    loss = value(objective, forward(objective, tiny_llama, rows, references(objective, tiny_llama, rows)))
    assert abs(loss.item()) < 1e-6
    assert gradients(loss, tiny_llama).abs().max() < 1e-6


def test_kl_retain_term_grows_once_the_model_moves(rows, tiny_llama):
    objective = KLAscent(forget_weight=0.0)
    reference = references(objective, tiny_llama, rows)
    assert value(objective, forward(objective, moved(tiny_llama), rows, reference)) > 1e-3


def test_kl_over_all_positions_counts_padding_as_the_official_code_does(rows, tiny_llama):
    objective = KLAscent(forget_weight=0.0, kl_mask="all")
    reference = references(objective, tiny_llama, rows)
    tensors = pad(rows["retain"][:3], 0)
    before = tiny_llama(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits.detach()
    moved(tiny_llama)
    after = tiny_llama(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
    expected = kl_divergence(before.flatten(0, 1), after.flatten(0, 1)).mean()
    parts = {"forget": rows["forget"][:3], "retain": rows["retain"][:3]}
    torch.testing.assert_close(value(objective, forward(objective, tiny_llama, parts, reference)), expected)


def test_kl_over_all_positions_trains(forget, retain, tokenizer, tiny_llama):
    after = {}
    for mask in ("all", "labels"):
        model = copy.deepcopy(tiny_llama)
        train(KLAscent(kl_mask=mask), model, forget, retain, tokenizer, max_steps=3)
        after[mask] = weights(model)["lm_head.weight"]
    assert not torch.equal(after["all"], weights(tiny_llama)["lm_head.weight"])
    assert not torch.equal(after["all"], after["labels"])


# Refusals.


def test_idk_is_one_mean_over_the_tokens_of_refusals_and_retain_answers(rows, tiny_llama):
    batch = forward(IDK(), tiny_llama, rows)
    total = batch["alternate"].token_nll.sum() + batch["retain"].token_nll.sum()
    tokens = len(batch["alternate"].token_nll) + len(batch["retain"].token_nll)
    torch.testing.assert_close(value(IDK(), batch), total / tokens)


def test_idk_never_labels_a_token_of_the_original_answer(forget, tokenizer):
    refusals = IDK().alternates(forget, 0)
    sentences = set(default_refusals())
    for row, refusal in zip(forget, refusals, strict=True):
        assert refusal.question == row.question
        assert refusal.answer in sentences
        assert refusal.answer != row.answer


def test_idk_labels_hold_no_answer_token_where_the_words_differ(forget, tokenizer):
    refused = encoded(forget, forget, tokenizer, IDK(refusals=("sorry i do not know",)))["alternate"]
    labels = {token for row in refused for token in row.labels if token != -100}
    answers = {token for row in forget for token in tokenizer(row.answer, add_special_tokens=False)["input_ids"]}
    assert not labels & answers


def test_refusals_are_a_function_of_seed_and_row(forget):
    sentences = default_refusals()
    assert [r.answer for r in refuse(forget, sentences, 3)] == [r.answer for r in refuse(forget, sentences, 3)]
    assert [r.answer for r in refuse(forget, sentences, 3)] != [r.answer for r in refuse(forget, sentences, 4)]
    assert [r.answer for r in refuse(forget[:4], sentences, 3)] == [r.answer for r in refuse(forget, sentences, 3)][:4]


def test_a_hundred_distinct_refusals_ship():
    assert len(set(default_refusals())) == 100


def test_refuses_to_refuse_a_plain_text(tokenizer, tiny_llama, retain):
    texts = Examples([Example(answer="the old town near the river", source="texts.jsonl:1")], "texts")
    with pytest.raises(DataError, match=r"texts\.jsonl:1: a plain text has no question to refuse"):
        IDK().apply(tiny_llama, texts, retain, processing_class=tokenizer, args={"use_cpu": True})


def test_idk_needs_a_retain_set_and_says_so_without_naming_a_field_it_has_not(forget, tokenizer, tiny_llama):
    with pytest.raises(DataError, match="IDK trains on retain rows too, but there is no retain set"):
        IDK().apply(tiny_llama, forget, processing_class=tokenizer)


def test_idk_trains_on_retain_answers_as_it_is_and_has_no_second_retain_term():
    with pytest.raises(TypeError, match="retain_loss"):
        IDK(retain_loss="nll")


def test_dpo_before_unlearning_is_two_over_beta_log_two(rows, tiny_llama):
    objective = DPO(retain_loss="none")
    batch = forward(objective, tiny_llama, rows, references(objective, tiny_llama, rows))
    assert value(objective, batch).item() == pytest.approx(13.862944, abs=1e-4)


def test_dpo_first_gradient_moves_from_the_answer_to_the_refusal(rows, tiny_llama):
    objective = DPO(retain_loss="none")
    batch = forward(objective, tiny_llama, rows, references(objective, tiny_llama, rows))
    # s = -nll, so grad of [s(lose) - s(win)].
    expected = gradients((batch["alternate"].nll - batch["forget"].nll).mean(), tiny_llama)
    torch.testing.assert_close(gradients(value(objective, batch), tiny_llama), expected, rtol=1e-4, atol=1e-6)


def test_dpo_has_the_worked_number_of_the_paper():
    batch = PairedBatch(forget=stub([10.0], [1], [4.0]), alternate=stub([3.0], [1], [5.0]))
    assert value(DPO(retain_loss="none"), batch).item() == pytest.approx(7.422013, abs=1e-6)


# SimNPO.


@pytest.mark.parametrize(("beta", "expected"), [(4.5, 5.48454e-05), (2.5, 0.00537228)])
def test_simnpo_has_its_closed_form(beta, expected):
    objective = SimNPO(beta=beta, forget_weight=1.0, retain_loss="none")
    assert value(objective, PairedBatch(forget=stub([6.0], [3]))).item() == pytest.approx(expected, rel=1e-5)


def test_simnpo_does_not_see_the_length_and_npo_does():
    short, long = PairedBatch(forget=stub([6.0], [3], [5.0])), PairedBatch(forget=stub([12.0], [6], [10.0]))
    simnpo, npo = SimNPO(retain_loss="none"), NPO(retain_loss="none")
    assert value(simnpo, short) == value(simnpo, long)
    assert value(npo, short) != value(npo, long)


def test_simnpo_gradient_weight_is_per_token():
    objective = SimNPO(beta=2.5, forget_weight=1.0, retain_loss="none")
    part = stub([6.0], [3])
    part.__dict__["nll"] = torch.tensor([6.0], dtype=torch.float64, requires_grad=True)
    value(objective, PairedBatch(forget=part)).backward()
    expected = 2 / (1 + math.exp(2.5 * 2.0)) / 3
    assert -part.nll.grad.item() == pytest.approx(expected, rel=1e-9)


def test_simnpo_margin_shifts_the_mean_nll():
    with_margin = SimNPO(margin=0.5, retain_loss="none")
    batch, shifted = PairedBatch(forget=stub([6.0], [3])), PairedBatch(forget=stub([4.5], [3]))
    assert value(with_margin, batch).item() == pytest.approx(value(SimNPO(retain_loss="none"), shifted).item())


def test_simnpo_counts_shifted_labels(tiny_llama):
    """A label at position 0 has nothing before it and doesn't lengthen the answer."""
    ids = [5, 9, 11, 13]
    text, answer = Encoded(ids, ids), Encoded(ids, [-100, *ids[1:]])
    losses = [value(SimNPO(), forward(SimNPO(), tiny_llama, {"forget": [row]})) for row in (text, answer)]
    assert losses[0] == losses[1]


# What all of them share.


@pytest.mark.parametrize("name", EVERY)
def test_loss_does_not_see_right_padding(name, rows, tiny_llama):
    objective = EVERY[name]
    reference = references(objective, tiny_llama, rows)
    moved(tiny_llama)
    plain = value(objective, forward(objective, tiny_llama, rows, reference))
    padded = value(objective, forward(objective, tiny_llama, rows, reference, extra=5))
    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("rmu")])
def test_loss_does_not_see_the_padding_side(name, rows, tiny_llama):
    objective = EVERY[name]
    reference = references(objective, tiny_llama, rows)
    moved(tiny_llama)
    right = value(objective, forward(objective, tiny_llama, rows, reference))
    left = value(objective, forward(objective, tiny_llama, rows, reference, side="left", extra=2))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=2e-5)


def test_rmu_does_not_see_the_padding_side(rows, tiny_llama):
    objective = RMU(layer=1, hold_weight=0.0)
    parts = {"forget": rows["forget"]}
    right = value(objective, forward(objective, tiny_llama, parts))
    left = value(objective, forward(objective, tiny_llama, parts, side="left", extra=2))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_loss_does_not_see_the_order_of_rows(name, rows, tiny_llama):
    objective = EVERY[name]
    reference = references(objective, tiny_llama, rows)
    moved(tiny_llama)
    plain = value(objective, forward(objective, tiny_llama, rows, reference))
    turned = value(objective, forward(objective, tiny_llama, {n: r[::-1] for n, r in rows.items()}, reference))
    torch.testing.assert_close(turned, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_end_token_that_is_also_the_pad_token_is_still_scored(name, rows, tiny_llama):
    """Masks come from lengths: the last label, eos, counts when padding has the same id."""
    objective = EVERY[name]
    eos = 2
    assert all(row.labels[-1] == eos for row in rows["forget"])
    batch = forward(objective, tiny_llama, rows, references(objective, tiny_llama, rows))
    tokens = sum(row.targets for row in rows["forget"])
    assert int((batch["forget"].labels[:, 1:] != -100).sum()) == tokens
    assert batch["forget"].attention_mask.sum() == sum(len(row.input_ids) for row in rows["forget"])
