"""The one face of all mask predictors: what is probed, what is asked for, what is refused."""

import pytest
import torch
from masks import END, MASK, VOCAB, lively, prompts_of, scripted

from conftest import make_llama
from unwrite.diffusion import MaskPredictor
from unwrite.errors import ModelError


def all_columns(canvas):
    return torch.arange(canvas.shape[1]).expand(canvas.shape)


def full_lengths(canvas):
    return torch.full((len(canvas),), canvas.shape[1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_last_token_changes_the_first_logits(attention):
    model = make_llama(vocab=VOCAB)
    model.config.is_causal = False
    model.set_attn_implementation(attention)
    predictor = MaskPredictor(model, MASK, (END,))
    canvas = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    logits = predictor.logits(canvas, full_lengths(canvas), all_columns(canvas))
    assert (logits[0, 0] != logits[1, 0]).any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_padded_token_changes_nothing(attention):
    predictor = lively()
    predictor.model.set_attn_implementation(attention)
    canvas = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 3, 4], [5, 6, 7, 8, 9]])
    lengths = torch.tensor([3, 3, 5])
    logits = predictor.logits(canvas, lengths, all_columns(canvas)[:, :3])
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


def test_rows_of_a_model_that_ignores_the_mask_are_run_by_length():
    def leaky(canvas):  # every logit depends on the sum of the whole row, padding too
        return canvas.sum(1, keepdim=True)[..., None].float().repeat(1, canvas.shape[1], VOCAB)

    predictor = scripted(leaky)
    canvas = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 4], [5, 6, 3, 3]])
    logits = predictor.logits(canvas, torch.tensor([4, 2, 2]), all_columns(canvas)[:, :2])
    assert logits[:, 0, 0].tolist() == [26.0, 11.0, 11.0]


def test_a_causal_model_is_refused_with_what_to_do():
    with pytest.raises(ModelError, match=r"LlamaForCausalLM is causal.*is_causal = False"):
        MaskPredictor(make_llama(vocab=VOCAB), MASK, (END,))


def test_a_refused_model_is_taken_once_it_is_made_bidirectional():
    model = make_llama(vocab=VOCAB)
    with pytest.raises(ModelError, match="is causal"):
        MaskPredictor(model, MASK, (END,))
    model.config.is_causal = False
    MaskPredictor(model, MASK, (END,))
    model.config.is_causal = True
    with pytest.raises(ModelError, match="is causal"):
        MaskPredictor(model, MASK, (END,))


def test_dropout_does_not_hide_that_a_model_is_causal():
    model = make_llama(vocab=VOCAB).train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.model.layers[1].eval()
    with pytest.raises(ModelError, match="is causal"):
        MaskPredictor(model, MASK, (END,))
    assert [layer.training for layer in model.model.layers] == [True, False, True]  # and modes are as they were


def test_the_mask_must_be_a_token_of_its_own():
    for wrong in ({"end_ids": (MASK,)}, {"pad_id": MASK}):
        with pytest.raises(ModelError, match=f"both {MASK}"):
            MaskPredictor(None, MASK, **wrong, probe=False)


def test_a_model_without_a_mask_token_is_refused():
    with pytest.raises(ModelError, match="mask_id"):
        MaskPredictor.of(make_llama(vocab=VOCAB))


def test_a_shifted_model_predicts_a_token_at_the_one_before():
    plain, shifted = lively(), lively(shift=True)
    canvas = torch.tensor(prompts_of(6))
    where = torch.tensor([[1, 3, 5]])
    at = plain.logits(canvas, full_lengths(canvas), where - 1)
    assert torch.equal(shifted.logits(canvas, full_lengths(canvas), where), at)


def test_logits_are_those_at_the_columns_asked_for_in_their_order():
    predictor = lively()
    canvas = torch.tensor(prompts_of(7, 7))
    where = torch.tensor([[6, 0, 3], [1, 1, 2]])
    whole = predictor.model(input_ids=canvas).logits
    torch.testing.assert_close(
        predictor.logits(canvas, full_lengths(canvas), where),
        whole.gather(1, where[..., None].expand(-1, -1, VOCAB)),
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_head_runs_at_the_wanted_columns_only():
    predictor, widths = lively(), []
    predictor.model.lm_head.register_forward_hook(lambda _, inputs, out: widths.append(out.shape[1]))
    canvas = torch.tensor(prompts_of(9))
    predictor.logits(canvas, full_lengths(canvas), torch.tensor([[4, 5]]))
    assert widths[-1] == 2


def test_a_masked_encoder_is_a_mask_predictor_as_it_is():
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    predictor = MaskPredictor(BertForMaskedLM(config).eval(), MASK, (END,))
    canvas = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    assert predictor.logits(canvas, full_lengths(canvas), all_columns(canvas)).shape == (2, 4, VOCAB)


def test_known_families_bring_their_own_ids_and_shift():
    class Config:
        model_type, vocab_size, eos_token_id = "Dream", 30, 5
        mask_token_id, pad_token_id = 29, 5

    class Model:
        config = Config

    dream = MaskPredictor.of(Model(), probe=False)
    assert (dream.mask_id, dream.end_ids, dream.shift) == (29, (5,), True)
    Config.model_type, Config.mask_token_id = "llada", None
    llada = MaskPredictor.of(Model(), probe=False)
    assert (llada.mask_id, llada.end_ids, llada.shift) == (126336, (126081, 126348), False)
