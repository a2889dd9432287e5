"""References: what is kept of the model before, on disk and by row, and how logits are rebuilt from it."""

import pytest
import torch
from forgetting import StepCounter, encoded, forward, references, train
from test_npo import moved

from conftest import make_llama
from unwrite.data.text.encoding import pad
from unwrite.errors import MethodError
from unwrite.forget import DPO, NPO, RMU, UNDIAL, KLAscent
from unwrite.forget.engine.text import reference as reference_module
from unwrite.forget.engine.text.reference import Wanted, compute
from unwrite.runs import hash_model
from unwrite.scoring import score_answers


@pytest.fixture
def rows(forget, retain, tokenizer):
    return encoded(forget[:6], retain[:6], tokenizer, DPO())


@pytest.fixture
def passes(monkeypatch):
    """How many times the model was really run over the rows."""
    calls = []
    real = reference_module._run
    monkeypatch.setattr(reference_module, "_run", lambda *args: (calls.append(args[1]), real(*args))[1])
    return calls


def gemma2(cap):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        final_logit_softcapping=cap,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config).eval()


def test_reference_nll_is_the_scored_nll(rows, tiny_llama):
    reference = references(NPO(retain_loss="none"), tiny_llama, rows)
    scored = torch.tensor([score.nll for score in score_answers(tiny_llama, rows["forget"], pad_id=0)])
    torch.testing.assert_close(reference.nll["forget"], scored, rtol=1e-5, atol=1e-5)


def test_reference_does_not_depend_on_the_batch_size(rows, tiny_llama):
    wanted = Wanted(nll=("forget",))
    one, all_ = (
        compute(tiny_llama, wanted, rows, blocks=[], pad_id=0, batch_size=n, disk=False).nll["forget"] for n in (1, 6)
    )
    torch.testing.assert_close(one, all_, rtol=1e-5, atol=1e-5)


def test_reference_keeps_the_vocabulary_off_the_disk(rows, tiny_llama):
    reference = references(KLAscent(), tiny_llama, rows)
    assert {value.shape[-1] for value in reference.hidden["retain"].values()} == {32}


@pytest.mark.parametrize("make", [make_llama, lambda: gemma2(5.0)], ids=["llama", "gemma2 with soft cap"])
def test_rebuilt_logits_are_the_models_own_from_before(rows, make):
    model = make()
    objective = KLAscent()
    reference = references(objective, model, rows)
    tensors = pad(rows["retain"], 0)
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    before = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    batch = forward(objective, moved(model), rows, reference)
    torch.testing.assert_close(batch["retain"].reference_logits, before.detach(), rtol=1e-4, atol=1e-5)


def test_refuses_an_architecture_with_an_unknown_rule_after_the_head(rows):
    model = make_llama()
    real = model.forward

    def scaled(*args, **kwargs):
        output = real(*args, **kwargs)
        output.logits = output.logits * 3.0
        return output

    model.forward = scaled
    with pytest.raises(MethodError, match=r"changes its logits after the head.*retain_loss='nll'"):
        references(KLAscent(), model, rows)


def test_second_run_reads_the_disk_and_does_not_call_the_model(rows, passes):
    first = references(NPO(retain_loss="kl"), make_llama(), rows, disk=True)
    second = references(NPO(retain_loss="kl"), make_llama(), rows, disk=True)
    assert len(passes) == 1
    assert torch.equal(first.nll["forget"], second.nll["forget"])
    assert all(torch.equal(value, second.hidden["retain"][row]) for row, value in first.hidden["retain"].items())


def test_training_twice_computes_the_reference_once(forget, retain, tokenizer, passes):
    for _ in range(2):
        train(NPO(), make_llama(), forget, retain, tokenizer, max_steps=1)
    assert len(passes) == 1


def test_another_model_or_other_rows_are_computed_anew(rows, passes):
    references(NPO(retain_loss="none"), make_llama(0), rows, disk=True)
    references(NPO(retain_loss="none"), make_llama(1), rows, disk=True)
    references(NPO(retain_loss="none"), make_llama(0), {**rows, "forget": rows["forget"][:3]}, disk=True)
    assert len(passes) == 3


def test_cache_can_be_turned_off(forget, retain, tokenizer, passes, tmp_path):
    train(NPO(), make_llama(), forget, retain, tokenizer, max_steps=1, cache_references=False)
    assert len(passes) == 1
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_reference_leaves_model_and_its_mode_alone(rows, tiny_llama):
    before = hash_model(tiny_llama)
    tiny_llama.train()
    references(UNDIAL(), tiny_llama, rows)
    assert tiny_llama.training
    assert hash_model(tiny_llama) == before


def test_reference_is_taken_without_dropout(rows):
    model = make_llama()
    model.config.attention_dropout = 0.5
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    model.train()
    dropped = references(NPO(retain_loss="none"), model, rows)
    whole = references(NPO(retain_loss="none"), make_llama(), rows)
    assert torch.equal(dropped.nll["forget"], whole.nll["forget"])


def test_reference_hidden_states_follow_their_rows_in_any_batch(rows, tiny_llama):
    objective = RMU(layer=1)
    reference = references(objective, tiny_llama, rows)
    batch = forward(objective, tiny_llama, {"forget": rows["forget"], "retain": rows["retain"][3:1:-1]}, reference)
    part = batch["retain"]
    at = part.attention_mask.bool()
    torch.testing.assert_close(part.reference_hidden[1][at], part.hidden[1][at].detach(), rtol=1e-5, atol=1e-6)


def test_retain_rows_beyond_the_first_epochs_are_there_when_max_steps_asks_for_them(forget, retain, tokenizer):
    """Sixteen forget rows pair with twenty retain rows; max_steps goes past num_train_epochs."""
    model = make_llama()
    steps = StepCounter()
    train(KLAscent(), model, forget, retain, tokenizer, num_train_epochs=1, max_steps=5, callbacks=[steps])
    assert steps.taken == 5
