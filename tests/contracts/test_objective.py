"""What every objective keeps to on texts: a finite loss, gradients where it trains and nowhere else, the same by seed."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel
from texts import apply, made, of_kind
from transformers import TrainerCallback

from unwrite import catalog
from unwrite.errors import MethodError
from unwrite.forget import Objective, Paired
from unwrite.runs import hash_model

every_objective = pytest.mark.parametrize("slug", of_kind("objective"))


class Watch(TrainerCallback):
    """Notes every loss, and before every optimiser step which weights are trained and which have a gradient."""

    def __init__(self):
        self.losses, self.trained, self.moved = [], set(), set()

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.trained.add(name)
            if parameter.grad is not None and parameter.grad.any():
                assert parameter.grad.isfinite().all()
                self.moved.add(name)

    def on_log(self, args, state, control, logs, **_):
        self.losses += [value for name, value in logs.items() if name == "loss"]


@every_objective
def test_the_loss_is_finite_and_moves_only_what_is_trained(slug, forget, retain, tokenizer, tiny_llama):
    """Weights that get no gradient are bit-identical; an objective that names what it trains trains less than all."""
    watch, before = Watch(), copy.deepcopy(tiny_llama.state_dict())
    apply(slug, tiny_llama, forget, retain, tokenizer, {"logging_steps": 1}, callbacks=[watch])
    after = tiny_llama.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(watch.losses) == 2
    assert all(map(math.isfinite, watch.losses))
    assert changed
    assert changed <= watch.moved <= watch.trained
    chosen = getattr(made(slug), "chosen", made(slug))  # what wraps another objective trains what that one does
    names_some = type(chosen).trainable is not Objective.trainable
    assert (watch.trained < set(before)) == names_some
    assert all(parameter.requires_grad for parameter in tiny_llama.parameters())
    assert tiny_llama.config.use_cache  # transformers' trainer switches it off


@every_objective
def test_copies_are_the_same_by_seed_and_leave_the_model_bit_identical(slug, forget, retain, tokenizer, tiny_llama):
    before = hash_model(tiny_llama)
    once = apply(slug, tiny_llama, forget, retain, tokenizer, copy=True)
    torch.manual_seed(11)  # of the process, which is nobody's business
    again = apply(slug, tiny_llama, forget, retain, tokenizer, copy=True)
    assert hash_model(once) == hash_model(again) != before
    assert hash_model(tiny_llama) == before
    assert not {p.data_ptr() for p in once.parameters()} & {p.data_ptr() for p in tiny_llama.parameters()}


@every_objective
def test_it_trains_in_place_and_gives_a_model_that_generates(slug, forget, retain, tokenizer, tiny_llama):
    kind = type(tiny_llama)
    unlearned = apply(slug, tiny_llama, forget, retain, tokenizer)
    assert unlearned is tiny_llama
    assert type(unlearned) is kind
    assert not unlearned.training
    ids = torch.tensor([[3, 8, 9, 10]])
    assert unlearned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2).shape[1] > 4
    assert torch.isfinite(unlearned(input_ids=ids).logits).all()


@every_objective
def test_adapters_are_trained_in_place_of_the_weights(slug, forget, retain, tokenizer, tiny_llama):
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = apply(slug, tiny_llama, forget, retain, tokenizer, peft_config=config)
    assert isinstance(adapted, PeftModel)
    after = adapted.unload().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "slug", [slug for slug in of_kind("objective") if issubclass(catalog.method(slug).load(), Paired)]
)
@pytest.mark.parametrize("name", ["forget_weight", "retain_weight"])
def test_negative_weights_are_refused(slug, name):
    with pytest.raises(MethodError, match=f"{name} is -1.0; it must be a finite number, at least 0"):
        catalog.method(slug).load()(**{name: -1.0})
