"""What every guard keeps to: the weights stay, and what comes back is a model: it writes, is saved and read back."""

from functools import cache

import pytest
import torch
from texts import apply, of_kind

from conftest import make_examples, make_llama, make_tokenizer
from unwrite.audit import TextContext
from unwrite.audit.base import Score
from unwrite.audit.fingerprint import fingerprint
from unwrite.audit.report.report import Report
from unwrite.audit.suites.removal import REMOVAL_QUICK
from unwrite.data import ForgetSplit
from unwrite.data.text.encoding import encode
from unwrite.decode import PromptLookup
from unwrite.models import load, save
from unwrite.runs import hash_model

IDS = torch.tensor([[3, 8, 9, 10]])
every_guard = pytest.mark.parametrize("slug", of_kind("guard"))


@cache
def made_once(slug):
    return apply(slug, make_llama(), make_examples("forget", 16), make_examples("retain", 20), make_tokenizer())


@pytest.fixture
def guarded(slug):
    """One guard for all tests of its kind: none changes it."""
    return made_once(slug)


def written(model, **options):
    return model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, **options)


@every_guard
@pytest.mark.parametrize("copied", [False, True])
def test_the_weights_given_stay_as_they_are(slug, copied, forget, retain, tokenizer, tiny_llama):
    before = hash_model(tiny_llama)
    guarded = apply(slug, tiny_llama, forget, retain, tokenizer, copy=copied)
    assert guarded is not tiny_llama
    assert hash_model(tiny_llama) == before
    shared = {p.data_ptr() for p in guarded.parameters()} & {p.data_ptr() for p in tiny_llama.parameters()}
    assert bool(shared) != copied


@every_guard
def test_it_writes_by_its_own_logits_in_evaluation_mode(slug, guarded):
    assert not guarded.training
    logits = guarded(input_ids=IDS).logits
    assert logits[..., 3:].isfinite().any(-1).all()
    assert not logits.isnan().any()
    tokens = written(guarded)
    assert tokens.shape[1] == 10 or tokens[0, -1] == 2
    assert torch.equal(tokens[:, :4], IDS)


@every_guard
def test_the_inference_on_a_forget_row_changes(slug, guarded, forget, tokenizer, tiny_llama):
    ids = torch.tensor([encode(forget[4], tokenizer).input_ids])
    assert not torch.allclose(guarded(input_ids=ids).logits, tiny_llama(input_ids=ids).logits)


@every_guard
def test_it_gives_the_model_inside_to_be_audited(slug, guarded, tiny_llama):
    assert hash_model(guarded.bare) == hash_model(tiny_llama)
    assert fingerprint(guarded.bare) == fingerprint(make_llama())  # nor has its configuration changed


@every_guard
def test_the_verdict_of_a_guard_is_suppression_by_construction(slug, guarded, forget, tokenizer):
    """As a sweep reads it: off the figures and what the context says of the model."""
    known = {"recovery_direct": Score("recovery_direct", 0.0, [], "lower")}
    origins = TextContext(guarded, ForgetSplit(forget), tokenizer).provenance()
    report = Report("removal-quick", "rows", {}, [], {"before": {}, "after": known}, provenance=origins)
    assert REMOVAL_QUICK.judge(report).label == "suppression by construction"


@every_guard
def test_saved_and_loaded_it_is_the_same_model(slug, guarded, tokenizer, tmp_path):
    save(guarded, tmp_path / "saved", tokenizer=tokenizer)
    again = load(tmp_path / "saved").model
    assert type(again) is type(guarded)
    assert again.fingerprint() == guarded.fingerprint()
    assert torch.equal(again(input_ids=IDS).logits, guarded(input_ids=IDS).logits)
    assert torch.equal(written(again), written(guarded))


@every_guard
def test_drafting_gives_the_guarded_models_own_text(slug, guarded):
    assert torch.equal(written(guarded, custom_generate=PromptLookup()), written(guarded))


@every_guard
def test_the_same_guard_comes_back_by_seed(slug, guarded, forget, retain, tokenizer, tiny_llama):
    torch.manual_seed(11)
    assert apply(slug, tiny_llama, forget, retain, tokenizer).fingerprint() == guarded.fingerprint()
