"""NPO: the closed forms, the limits, and the gradient identity of the paper (arXiv 2404.05868)."""

import math

import pytest
import torch
from forgetting import encoded, forward, gradients, references, train, value, weights

from conftest import make_llama
from unwrite.data import Example, Examples
from unwrite.data.text.encoding import encode_all
from unwrite.errors import DataError, MethodError
from unwrite.forget import NPO, GradientAscent
from unwrite.forget.npo import npo_loss
from unwrite.runs import hash_model
from unwrite.scoring import score_answers


@pytest.fixture
def rows(forget, retain, tokenizer):
    return encoded(forget[:6], retain[:6], tokenizer)


def loss_of(nll: float, reference: float, beta: float) -> float:
    return npo_loss(torch.tensor([nll], dtype=torch.float64), torch.tensor([reference]), beta).item()


def moved(model, seed=7, by=0.05):
    """The model after some other training: small random steps."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("nll", "beta", "expected"),
    [(2, 0.1, 13.862944), (12, 0.1, 6.265234), (102, 0.1, 0.000908), (2, 1, 1.386294), (12, 1, 9.1e-5)],
)
def test_loss_has_the_papers_closed_form(nll, beta, expected):
    assert loss_of(nll, 2, beta) == pytest.approx(expected, rel=3e-3 if expected < 1e-2 else 1e-6)


@pytest.mark.parametrize(("ratio", "weight"), [(0, 1), (10, 0.537883), (100, 9.1e-5)])
def test_gradient_weight_fades_with_the_ratio(ratio, weight):
    nll = torch.tensor([2.0 + ratio], dtype=torch.float64, requires_grad=True)
    npo_loss(nll, torch.tensor([2.0]), 0.1).sum().backward()
    assert -nll.grad.item() == pytest.approx(weight, rel=3e-3 if weight < 1e-2 else 1e-5)


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.1, -2.775839), (0.01, -2.977501), (1e-3, -2.997750), (1e-4, -2.999775)]
)
def test_beta_to_zero_is_gradient_ascent_up_to_a_constant(beta, expected):
    assert loss_of(5, 2, beta) - 2 / beta * math.log(2) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("ratio", "weight"), [(1.0, 0.0), (-1.0, 2.0)])
def test_beta_to_infinity_pulls_only_answers_more_likely_than_before(ratio, weight):
    nll = torch.tensor([2.0 + ratio], dtype=torch.float64, requires_grad=True)
    npo_loss(nll, torch.tensor([2.0]), 1e3).sum().backward()
    assert -nll.grad.item() == pytest.approx(weight, abs=1e-9)


def test_loss_is_finite_where_log_of_sigmoid_would_not_be():
    assert loss_of(0, 1e6, 0.1) == pytest.approx(2e6)


def test_gradient_is_the_weight_times_the_gradient_of_the_log_likelihood(rows):
    model = make_llama()
    objective = NPO(beta=0.1, retain_loss="none")
    reference = references(objective, model, rows)
    batch = forward(objective, moved(model), {"forget": rows["forget"]}, reference)
    nll, ratio = batch.forget.nll, (batch.forget.nll - batch.forget.reference).detach()
    weight = 2 * torch.sigmoid(-0.1 * ratio)
    assert ratio.abs().max() > 0.1
    expected = gradients(-(weight * nll).mean(), model)
    torch.testing.assert_close(gradients(value(objective, batch), model), expected, rtol=1e-5, atol=1e-6)


def test_first_step_is_the_gradient_of_ascent_on_summed_nll(rows, tiny_llama):
    objective = NPO(retain_loss="none")
    batch = forward(objective, tiny_llama, {"forget": rows["forget"]}, references(objective, tiny_llama, rows))
    expected = gradients(-batch.forget.nll.mean(), tiny_llama)
    torch.testing.assert_close(gradients(value(objective, batch), tiny_llama), expected, rtol=1e-5, atol=1e-6)


def test_small_beta_points_where_gradient_ascent_points(rows):
    model = make_llama()
    objective = NPO(beta=1e-4, retain_loss="none")
    reference = references(objective, model, rows)
    batch = forward(objective, moved(model), {"forget": rows["forget"]}, reference)
    ascent = gradients(-batch.forget.nll.mean(), model)
    assert torch.cosine_similarity(gradients(value(objective, batch), model), ascent, dim=0) > 0.9999


def test_loss_before_unlearning_is_two_over_beta_log_two(rows, tiny_llama):
    objective = NPO(retain_loss="none")
    batch = forward(objective, tiny_llama, {"forget": rows["forget"]}, references(objective, tiny_llama, rows))
    assert value(objective, batch).item() == pytest.approx(13.862944, abs=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_loss_of_two_rows_is_the_mean_of_two_losses_of_one(rows, side):
    model = make_llama()
    objective = NPO(beta=1.0, retain_loss="none")
    reference = references(objective, model, rows)
    moved(model)
    short, long = sorted(rows["forget"], key=lambda row: row.targets)[:: len(rows["forget"]) - 1]
    assert short.targets != long.targets
    each = [
        value(objective, forward(objective, model, {"forget": [row]}, reference, side=side)) for row in (short, long)
    ]
    both = value(objective, forward(objective, model, {"forget": [short, long]}, reference, side=side))
    torch.testing.assert_close(both, torch.stack(each).mean(), rtol=1e-5, atol=1e-5)


def test_nll_is_summed_over_the_answer_not_averaged(rows, tiny_llama):
    objective = NPO(retain_loss="none")
    batch = forward(objective, tiny_llama, {"forget": rows["forget"]}, references(objective, tiny_llama, rows))
    scored = score_answers(tiny_llama, rows["forget"], pad_id=0)
    expected = torch.tensor([score.mean_nll * row.targets for score, row in zip(scored, rows["forget"], strict=True)])
    torch.testing.assert_close(batch.forget.nll.detach(), expected, rtol=1e-5, atol=1e-5)


def test_loss_does_not_see_a_shift_of_all_logits(rows, tiny_llama):
    """MUSE's variant on raw logits does."""
    objective = NPO(retain_loss="none")
    batch = forward(objective, tiny_llama, {"forget": rows["forget"]}, references(objective, tiny_llama, rows))
    plain = value(objective, batch)
    shifted = forward(objective, tiny_llama, {"forget": rows["forget"]}, references(objective, tiny_llama, rows))
    shifted.forget.logits = shifted.forget.logits + 3.0
    torch.testing.assert_close(value(objective, shifted), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", ["attention", "labels"])
def test_kl_term_is_zero_before_unlearning_and_so_is_its_gradient(rows, mask):
    model = make_llama()
    objective = NPO(retain_loss="kl", forget_weight=0.0, kl_mask=mask)
    batch = forward(objective, model, rows, references(objective, model, rows))
    loss = value(objective, batch)
    assert abs(loss.item()) < 1e-6
    assert gradients(loss, model).abs().max() < 1e-6


def test_npo_fades_where_gradient_ascent_runs_away(forget, retain, tokenizer):
    """Theorem: GA's forget nll grows without bound, NPO's like the logarithm of the steps."""
    ends = {}
    for name, objective in (("ga", GradientAscent()), ("npo", NPO(beta=1.0, retain_loss="none"))):
        model = make_llama()
        encoded_rows = encode_all(forget, tokenizer)
        nll = []
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        reference = references(objective, model, {"forget": encoded_rows})
        for _ in range(40):
            batch = forward(objective, model, {"forget": encoded_rows}, reference)
            # Per row for both, so that the first steps are equal.
            loss = value(objective, batch) if name == "npo" else -batch.forget.nll.mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()
            nll.append(batch.forget.nll.mean().item())
        ends[name] = nll
    assert ends["ga"][1] == pytest.approx(ends["npo"][1], rel=1e-4)
    assert ends["ga"][-1] > 10 * ends["npo"][-1]
    first, second = ends["npo"][19] - ends["npo"][0], ends["npo"][39] - ends["npo"][19]
    assert second < first / 2


def test_no_second_model_lives_and_the_reference_has_no_gradient(rows, tiny_llama):
    objective = NPO(retain_loss="kl")
    reference = references(objective, tiny_llama, rows)
    batch = forward(objective, tiny_llama, rows, reference)
    value(objective, batch).backward()
    tensors = [reference.nll["forget"], *reference.hidden["retain"].values(), *reference.head.parameters()]
    assert all(not t.requires_grad and t.grad is None for t in tensors)
    ours = sum(p.numel() for p in tiny_llama.parameters())
    assert sum(p.numel() for p in reference.head.parameters()) < ours / 4


def test_reference_head_stays_bit_identical_while_the_model_trains(rows, tiny_llama):
    objective = NPO(retain_loss="kl")
    reference = references(objective, tiny_llama, rows)
    before = hash_model(reference.head)
    moved(tiny_llama)
    assert hash_model(reference.head) == before


def test_long_answers_saturate_and_the_warning_says_so(retain, tokenizer):
    text = " ".join(["stone garden harbour winter"] * 20)
    long = Examples([Example(question=f"what was {w} ?", answer=text) for w in ("ann", "bert", "cora", "dov")], "long")
    with pytest.warns(UserWarning, match=r"gradient weight is .*Lower beta"):
        train(
            NPO(beta=5.0, retain_loss="none"), make_llama(), long, None, tokenizer,
            learning_rate=0.5, max_steps=3, per_device_train_batch_size=4,
        )  # fmt: skip


def test_saturation_warning_is_silent_on_short_answers(forget, retain, tokenizer, recwarn):
    train(NPO(), make_llama(), forget, retain, tokenizer, max_steps=3)
    assert not [w for w in recwarn if "gradient weight" in str(w.message)]


def test_training_logs_the_gradient_weight_and_the_ratio(forget, retain, tokenizer):
    from transformers import TrainerCallback

    lines = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            lines.append(dict(logs))

    train(NPO(), make_llama(), forget, retain, tokenizer, max_steps=2, callbacks=[Keep()])
    assert lines[0]["weight"] == pytest.approx(1.0, abs=1e-5)
    assert lines[0]["log_ratio"] == pytest.approx(0.0, abs=1e-4)
    assert lines[0]["forget_loss"] == pytest.approx(13.862944, abs=1e-3)
    assert lines[0]["loss"] == pytest.approx(lines[0]["forget_loss"] + lines[0]["retain_loss"], abs=1e-3)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_beta_without_meaning(beta):
    with pytest.raises(MethodError, match=r"beta is .* above 0"):
        NPO(beta=beta)


def test_refuses_a_retain_term_without_retain_rows(forget, tokenizer, tiny_llama):
    before = weights(tiny_llama)
    with pytest.raises(DataError, match="retain_loss='nll' but there is no retain set"):
        NPO().apply(tiny_llama, forget, processing_class=tokenizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_llama.state_dict().items())
