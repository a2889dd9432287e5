"""RMU: the control vector, what trains and what doesn't, and where the forward pass ends."""

import pytest
import torch
from forgetting import SGD, encoded, forward, references, train, value, weights

from conftest import make_llama
from unwrite.errors import DataError, MethodError
from unwrite.forget import RMU
from unwrite.forget.engine.batch import _watch
from unwrite.forget.rmu import default_layer


@pytest.fixture
def rows(forget, retain, tokenizer):
    return encoded(forget[:6], retain[:6], tokenizer)


def test_control_vector_has_the_steering_length_and_no_negative_entry():
    control = RMU(steering=6.5).control(4096)
    assert control.norm().item() == pytest.approx(6.5, rel=1e-5)
    assert control.min() >= 0


def test_control_vector_is_the_same_in_every_step_and_differs_by_seed():
    assert torch.equal(RMU().control(64), RMU().control(64))
    assert not torch.equal(RMU().control(64), RMU(control_seed=1).control(64))


def test_control_vector_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    RMU().control(64)
    assert torch.equal(torch.rand(3), expected)


def test_loss_zero_means_every_forget_state_is_the_control_vector(rows, tiny_llama):
    objective = RMU(layer=1, hold_weight=0.0)
    batch = forward(objective, tiny_llama, {"forget": rows["forget"]})
    hidden = batch["forget"].hidden[1]
    assert value(objective, batch) > 0
    batch["forget"].hidden = {1: objective.control(hidden.shape[-1]).expand_as(hidden)}
    assert value(objective, batch) == 0


def test_training_steers_forget_states_to_the_control_vector(forget, retain, tokenizer, rows):
    model = make_llama()
    objective = RMU(layer=1, hold_weight=0.0)
    before = value(objective, forward(objective, model, {"forget": rows["forget"]}))
    train(objective, model, forget, retain, tokenizer, optim="adamw_torch", learning_rate=3e-2, num_train_epochs=10)
    assert value(objective, forward(objective, model, {"forget": rows["forget"]})) < before / 2


def test_parameters_outside_the_three_are_bit_identical(forget, retain, tokenizer):
    model = make_llama(layers=5)
    before = weights(model)
    train(RMU(layer=3), model, forget, retain, tokenizer, num_train_epochs=1, learning_rate=1.0)
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)}


def test_all_parameters_are_trainable_again_afterwards(forget, retain, tokenizer, tiny_llama):
    train(RMU(layer=1), tiny_llama, forget, retain, tokenizer, max_steps=1)
    assert all(parameter.requires_grad for parameter in tiny_llama.parameters())


def test_forward_pass_ends_at_the_layer(rows):
    model = make_llama(layers=5)
    seen = []
    for i, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, i=i: seen.append(i))
    forward(RMU(layer=2), model, rows, references(RMU(layer=2), model, rows))
    assert set(seen) == {0, 1, 2}


def test_hold_term_is_zero_before_unlearning(rows, tiny_llama):
    objective = RMU(layer=1)
    batch = forward(objective, tiny_llama, rows, references(objective, tiny_llama, rows))
    without = value(objective, batch, lambda b: objective.loss(type(b)(forget=b.forget)))
    torch.testing.assert_close(value(objective, batch), without, rtol=1e-6, atol=1e-7)


def test_each_row_is_divided_by_its_own_length(rows, tiny_llama):
    """The official port divides every row's sum by every row's length."""
    objective = RMU(layer=1, hold_weight=0.0)
    short, long = sorted(rows["forget"], key=lambda row: row.targets)[:: len(rows["forget"]) - 1]
    assert short.targets != long.targets
    each = [value(objective, forward(objective, tiny_llama, {"forget": [row]})) for row in (short, long)]
    both = value(objective, forward(objective, tiny_llama, {"forget": [short, long]}))
    torch.testing.assert_close(both, torch.stack(each).mean(), rtol=1e-5, atol=1e-6)


def test_mask_attention_counts_the_prompt(rows, tiny_llama):
    batch = forward(RMU(layer=1), tiny_llama, {"forget": rows["forget"]})
    both = [value(RMU(layer=1, hold_weight=0.0, mask=mask), batch).item() for mask in ("labels", "attention")]
    assert both[0] != pytest.approx(both[1], rel=1e-4)


def test_a_hidden_state_in_a_tuple_is_read():
    """As decoder layers of older transformers return it."""

    class Tupled(torch.nn.Module):
        def forward(self, hidden):
            return (hidden, None)

    block, hidden = Tupled(), torch.randn(1, 3, 32)
    with _watch([block], (0,), stop=False) as seen:
        block(hidden)
    assert torch.equal(seen[0], hidden)


@pytest.mark.parametrize(
    ("depth", "layer"), [(60, 14), (32, 7), (30, 7), (12, 2), (5, 2), (4, 2), (3, 1), (2, 0), (1, 0)]
)
def test_the_default_layer_ends_the_first_quarter_and_has_two_before_it_where_there_are(depth, layer):
    assert default_layer(depth) == layer


@pytest.mark.parametrize(("depth", "trained"), [(2, (0,)), (4, (0, 1, 2)), (12, (0, 1, 2)), (16, (1, 2, 3))])
def test_the_default_trains_the_three_blocks_that_the_depth_gives(forget, retain, tokenizer, depth, trained):
    model = make_llama(layers=depth)
    before = weights(model)
    args = {**SGD, "max_steps": 1, "learning_rate": 1.0, "per_device_train_batch_size": 2}
    RMU(steering=50.0).apply(model, forget, retain, processing_class=tokenizer, args=args)
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in trained}


def test_a_layer_that_is_given_stays(tiny_llama):
    assert RMU(layer=2).fitted(tiny_llama) == RMU(layer=2)
    assert RMU(steering=6.5).fitted(tiny_llama) == RMU(layer=1, steering=6.5)


def test_without_a_model_a_layer_that_depends_on_it_is_refused():
    with pytest.raises(MethodError, match=r"layer depends on the model's depth. Give it, or ask the method that"):
        RMU().needed()


def test_a_layer_too_deep_is_refused_before_anything_else_is_done(forget, retain, tokenizer, tiny_llama, monkeypatch):
    monkeypatch.setattr("unwrite.forget.engine.text.work.encode_all", lambda *_: pytest.fail("rows were encoded"))
    with pytest.raises(MethodError, match=r"layer is 7 but the model has 3 blocks, 0 to 2. Leave it out for 1\."):
        RMU(layer=7).apply(tiny_llama, forget, retain, processing_class=tokenizer)


@pytest.mark.parametrize("adapter", [False, True])
def test_refuses_a_layer_the_model_has_not(forget, retain, tokenizer, tiny_llama, adapter):
    from peft import LoraConfig

    options = {"peft_config": LoraConfig(r=2, target_modules="all-linear")} if adapter else {}
    with pytest.raises(MethodError, match="layer is 7 but the model has 3 blocks, 0 to 2"):
        train(RMU(layer=7), tiny_llama, forget, retain, tokenizer, **options)


def test_refuses_to_hold_without_retain_rows(forget, tokenizer, tiny_llama):
    with pytest.raises(DataError, match=r"hold_weight=1.0\) but there is no retain set"):
        RMU(layer=1).apply(tiny_llama, forget, processing_class=tokenizer)


def test_trains_without_retain_rows_when_nothing_is_held(forget, tokenizer, tiny_llama):
    before = weights(tiny_llama)
    train(RMU(layer=1, hold_weight=0.0), tiny_llama, forget, None, tokenizer, max_steps=1)
    changed = {name for name, tensor in weights(tiny_llama).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".mlp.down_proj." in name for name in changed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steering": 0.0}, "steering is 0.0.*above 0"),
        ({"steering": float("nan")}, "steering is nan"),
        ({"layer": -1}, "layer is -1.*at least 0"),
        ({"hold_weight": -1.0}, "hold_weight is -1.0"),
        ({"mask": "all"}, "mask is 'all'; use 'labels' or 'attention'"),
    ],
)
def test_refuses_a_field_without_meaning(fields, message):
    with pytest.raises(MethodError, match=message):
        RMU(**fields)
