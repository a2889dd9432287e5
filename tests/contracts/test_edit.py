"""What every edit keeps to on texts: it rewrites weights in place, finitely and the same each time, or a copy's alone."""

import pytest
import torch
from texts import apply, of_kind

from unwrite.runs import hash_model

every_edit = pytest.mark.parametrize("slug", of_kind("edit"))


@every_edit
def test_weights_change_in_place_and_stay_finite(slug, forget, retain, tokenizer, tiny_llama):
    before, kind = hash_model(tiny_llama), type(tiny_llama)
    edited = apply(slug, tiny_llama, forget, retain, tokenizer)
    assert edited is tiny_llama
    assert type(edited) is kind
    assert hash_model(edited) != before
    assert all(parameter.isfinite().all() for parameter in edited.parameters())
    assert all(parameter.requires_grad for parameter in edited.parameters())
    assert not any(parameter.grad is not None for parameter in edited.parameters())


@every_edit
def test_what_comes_back_generates_and_is_in_evaluation_mode(slug, forget, retain, tokenizer, tiny_llama):
    edited = apply(slug, tiny_llama.train(), forget, retain, tokenizer)
    assert not any(module.training for module in edited.modules())
    ids = torch.tensor([[3, 8, 9, 10]])
    assert edited.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2).shape[1] > 4
    assert torch.isfinite(edited(input_ids=ids).logits).all()


@every_edit
def test_copies_are_the_same_and_leave_the_model_bit_identical(slug, forget, retain, tokenizer, tiny_llama):
    before = hash_model(tiny_llama)
    flags = [parameter.requires_grad for parameter in tiny_llama.parameters()]
    once = apply(slug, tiny_llama, forget, retain, tokenizer, copy=True)
    torch.manual_seed(11)  # of the process, which is nobody's business
    again = apply(slug, tiny_llama, forget, retain, tokenizer, copy=True)
    assert hash_model(once) == hash_model(again) != before
    assert hash_model(tiny_llama) == before
    assert [parameter.requires_grad for parameter in tiny_llama.parameters()] == flags
    assert not {p.data_ptr() for p in once.parameters()} & {p.data_ptr() for p in tiny_llama.parameters()}
