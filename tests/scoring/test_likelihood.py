"""Scoring answers: equal to the model's own logits, whatever the batch, and refused where there is nothing to score."""

import pytest
import torch
import torch.nn.functional as F

from conftest import make_llama
from unwrite.data.text.encoding import Encoded, encode_all, pad
from unwrite.errors import DataError
from unwrite.scoring import head_at, logits_at, prediction_mask, score_answers, sum_rows, token_nll


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=67, n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=67, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        final_logit_softcapping=0.5, attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


MODELS = {"llama": make_llama, "gpt2": gpt2, "gemma2 with soft cap": gemma2}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture
def rows(forget, tokenizer):
    return encode_all(forget, tokenizer)


@every_model
def test_logits_at_some_positions_are_the_whole_ones_there(make, rows):
    model, batch = make(), pad(rows[:6], 0)
    where = prediction_mask(batch["labels"])
    with torch.no_grad():
        whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        picked, hidden = logits_at(model, batch["input_ids"], batch["attention_mask"], where)
    torch.testing.assert_close(picked, whole[where], rtol=1e-5, atol=1e-6)
    assert hidden.shape == (int(where.sum()), 32)


def test_soft_cap_still_bounds_the_picked_logits(rows):
    batch = pad(rows[:4], 0)
    with torch.no_grad():
        picked, _ = logits_at(gemma2(), batch["input_ids"], batch["attention_mask"], batch["attention_mask"].bool())
    assert picked.abs().max() < 0.5


def test_head_is_whole_again_after_the_block(rows, tiny_llama):
    batch = pad(rows[:2], 0)
    with head_at(tiny_llama, prediction_mask(batch["labels"])):
        pass
    assert tiny_llama(input_ids=batch["input_ids"]).logits.dim() == 3
    assert not tiny_llama.lm_head._forward_pre_hooks


@every_model
def test_mean_nll_is_the_models_own_loss(make, rows):
    model = make()
    for row, score in zip(rows[:4], score_answers(model, rows[:4], pad_id=0), strict=True):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        assert score.mean_nll == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)
        assert len(score.token_nll) == row.targets


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_do_not_depend_on_the_batch_and_come_in_the_order_given(rows, tiny_llama, batch_size):
    alone = [score_answers(tiny_llama, [row], pad_id=0)[0] for row in rows]
    together = score_answers(tiny_llama, rows, pad_id=0, batch_size=batch_size)
    assert [score.index for score in together] == [row.index for row in rows]
    for one, other in zip(alone, together, strict=True):
        assert one.token_nll == pytest.approx(other.token_nll, abs=1e-5)
        assert one.correct == other.correct


def test_scores_follow_a_permutation_of_the_rows(rows, tiny_llama):
    scores = score_answers(tiny_llama, rows[::-1], pad_id=0)
    assert [score.index for score in scores] == [row.index for row in rows[::-1]]


def test_scores_do_not_depend_on_which_token_pads(rows, tiny_llama):
    one, other = (score_answers(tiny_llama, rows, pad_id=pad_id) for pad_id in (0, 2))
    assert [s.nll for s in one] == pytest.approx([s.nll for s in other], abs=1e-5)


def test_end_token_is_scored(rows, tiny_llama):
    row = rows[0]
    assert row.labels[-1] == 2
    without = Encoded(row.input_ids[:-1], row.labels[:-1])
    with_end, cut = (score_answers(tiny_llama, [r], pad_id=0)[0] for r in (row, without))
    assert len(with_end.token_nll) == len(cut.token_nll) + 1
    assert with_end.nll > cut.nll


def test_correct_says_whether_the_likeliest_token_was_the_label(rows, tiny_llama):
    row = rows[0]
    choices = tiny_llama(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].argmax(-1)
    expected = [bool(c == y) for c, y in zip(choices, row.labels[1:], strict=True) if y != -100]
    assert score_answers(tiny_llama, [row], pad_id=0)[0].correct == expected


def test_moments_are_of_log_p_under_the_models_own_distribution(rows, tiny_llama):
    """Min-K%++: mu = sum_v p log p, sigma^2 = sum_v p (log p - mu)^2."""
    tiny_llama.lm_head.weight.data *= 5
    score = score_answers(tiny_llama, rows[:1], pad_id=0, moments=True)[0]
    logits = tiny_llama(input_ids=torch.tensor([rows[0].input_ids])).logits[0].double()
    log_p = logits[prediction_mask(torch.tensor([rows[0].labels]))[0]].log_softmax(-1)
    mean = (log_p.exp() * log_p).sum(-1)
    deviation = (log_p.exp() * (log_p - mean[:, None]).square()).sum(-1).sqrt()
    assert score.mean_log_prob == pytest.approx(mean.tolist(), rel=1e-4)
    assert score.std_log_prob == pytest.approx(deviation.tolist(), rel=1e-3)


def test_moments_are_empty_unless_asked_for(rows, tiny_llama):
    score = score_answers(tiny_llama, rows[:1], pad_id=0)[0]
    assert (score.mean_log_prob, score.std_log_prob) == ([], [])


def test_moments_stay_finite_where_a_guard_rules_tokens_out():
    from unwrite.scoring.likelihood import _position_scores

    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    _, _, mean, deviation = _position_scores(logits, torch.tensor([1]), True)
    assert torch.isfinite(mean).all()
    assert torch.isfinite(deviation).all()


def test_prediction_mask_is_one_before_each_label():
    labels = torch.tensor([[-100, -100, 5, 6], [7, -100, 8, -100]])
    assert prediction_mask(labels).tolist() == [[False, True, True, False], [False, True, False, False]]


def test_rows_sum_their_own_positions_and_a_row_without_any_is_zero():
    where = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    assert sum_rows(torch.tensor([1.0, 2.0, 4.0]), where).tolist() == [3.0, 0.0, 4.0]


def test_nll_is_computed_in_float32_from_half_precision_logits():
    logits = torch.randn(8, 500).to(torch.bfloat16)
    targets = torch.arange(8)
    expected = F.cross_entropy(logits.double(), targets, reduction="none").float()
    torch.testing.assert_close(token_nll(logits, targets), expected, rtol=1e-6, atol=0)


def test_twenty_token_sum_over_a_large_vocabulary_is_exact_to_a_ten_thousandth():
    torch.manual_seed(0)
    logits = torch.randn(20, 49_152) * 4
    targets = torch.randint(0, 49_152, (20,))
    exact = F.cross_entropy(logits.double(), targets, reduction="sum").item()
    assert token_nll(logits, targets).sum().item() == pytest.approx(exact, abs=1e-4)


def test_model_keeps_its_mode(rows, tiny_llama):
    tiny_llama.train()
    score_answers(tiny_llama, rows[:1], pad_id=0)
    assert tiny_llama.training


def test_refuses_a_row_without_a_label(tiny_llama):
    with pytest.raises(DataError, match="row 4 has no answer token to score"):
        score_answers(tiny_llama, [Encoded([3, 4, 5], [-100, -100, -100], 4)], pad_id=0)


def test_refuses_a_row_whose_only_label_has_nothing_before_it(tiny_llama):
    with pytest.raises(DataError, match="no answer token"):
        score_answers(tiny_llama, [Encoded([3, 4], [3, -100])], pad_id=0)


def test_refuses_damaged_weights(rows, tiny_llama):
    tiny_llama.lm_head.weight.data[5, 0] = torch.nan
    with pytest.raises(DataError, match="logits are not finite"):
        score_answers(tiny_llama, rows[:2], pad_id=0)
