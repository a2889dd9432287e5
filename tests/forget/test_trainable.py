"""Which weights a training moves: those that an objective chooses of its work, whatever the kind of data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from forgetting import weights
from peft import LoraConfig, get_peft_model
from torch import nn
from toy_works import Plain, apply, both_kinds, made, untouched
from transformers import TrainerCallback

from unwrite.errors import MethodError
from unwrite.forget import NPO, RMU
from unwrite.forget.engine.images.work import ImageWork
from unwrite.forget.engine.text.work import TextWork


def last_weight(work: Any) -> list[torch.Tensor]:
    if isinstance(work, TextWork):
        return [work.anatomy.blocks[-1].down.module.weight]
    return [work.layout.model.get_submodule(work.layout.head_linears[-1]).weight]


@both_kinds
def test_an_objective_trains_what_it_chooses_of_its_work_and_nothing_else(kind):
    model = made(kind)
    before, flags = copy.deepcopy(model), [parameter.requires_grad for parameter in model.parameters()]
    works: list[Any] = []
    apply(kind, Plain(choose=lambda work: works.append(work) or last_weight(work)), model)
    assert [type(work) for work in works] == [TextWork if kind == "text" else ImageWork]
    assert works[0].model is model
    chosen = {id(parameter) for parameter in last_weight(works[0])}
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs) == (id(ours) not in chosen)
        assert ours.grad is None
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@both_kinds
def test_what_is_frozen_stays_so_whoever_chooses_it(kind):
    model = made(kind)
    first = next(model.parameters()).requires_grad_(False)
    before = first.detach().clone()
    apply(kind, Plain(choose=lambda work: [first, *last_weight(work)]), model)
    assert torch.equal(first, before)
    assert not first.requires_grad


@both_kinds
def test_a_gradient_from_before_moves_nothing_and_none_is_left_behind(kind):
    class Break(TrainerCallback):
        def on_pre_optimizer_step(self, *_, **__):
            raise KeyboardInterrupt

    fresh, stale = made(kind), made(kind)
    for parameter in stale.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply(kind, Plain(), fresh)
    apply(kind, Plain(), stale)
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in stale.state_dict().items())
    with pytest.raises(KeyboardInterrupt):
        apply(kind, Plain(), stale, callbacks=[Break()])
    assert all(parameter.grad is None for parameter in stale.parameters())


@both_kinds
def test_nothing_to_train_is_refused(kind):
    for choose in (lambda work: [], lambda work: [nn.Parameter(torch.zeros(2))]):
        with pytest.raises(MethodError, match="Plain selects no parameter of this model to train"):
            apply(kind, Plain(choose=choose))
    frozen = made(kind).requires_grad_(False)
    for choose in (None, last_weight):
        with pytest.raises(MethodError, match="no parameter of this model is to be trained"):
            apply(kind, Plain(choose=choose), frozen)


def test_adapters_are_trained_whatever_weights_an_objective_chooses():
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = apply("text", Plain(choose=lambda work: pytest.fail("asked")), peft_config=config)
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in adapted.state_dict().items())


@pytest.mark.parametrize("objective", [Plain(), NPO()], ids=["without references", "with references"])
def test_adapters_that_were_loaded_frozen_are_trained_and_frozen_again(objective):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(made("text"), config).requires_grad_(False)
    before = weights(model)
    apply("text", objective, model)
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_whose_blocks_rmu_can_not_write_is_refused_before_it_is_asked(monkeypatch):
    monkeypatch.setattr(RMU, "steered", lambda self, parts: pytest.fail(f"looked at {len(parts.blocks)} blocks"))
    with pytest.raises(pytest.fail.Exception, match="looked at 3 blocks"):
        RMU(layer=1).check_model(untouched("text"))
