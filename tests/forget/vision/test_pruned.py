"""Pruned: whatever unlearns afterwards, what was pruned is exactly 0, and only that is held."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from small_toys import small_sets
from torch import nn
from transformers import TrainerCallback

from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import NPO, Edit, GradientAscent, Objective
from unwrite.forget.engine.images.batch import add_losses
from unwrite.forget.engine.phase import Phase
from unwrite.forget.vision.pruned import Pruned
from unwrite.models.pruning import apply_masks, magnitude_masks, zero_masks
from unwrite.nets import SmallCNN
from unwrite.runs import hash_model

HARD = {
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.1,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
}
N = 2052  # weights of the convolutions


@dataclass(frozen=True, kw_only=True)
class OnRetain(Objective):
    """Training on the retain set, the tests' own."""

    forgets: ClassVar = ("images",)

    def loss(self, batch):
        return add_losses(batch)

    def phases(self, work):
        return [Phase("retain", self.loss)]


@dataclass(frozen=True, kw_only=True)
class Noise(Edit):
    """Adds to every weight."""

    forgets: ClassVar = ("images",)

    def _apply(self, work):
        with torch.no_grad():
            for parameter in work.model.parameters():
                parameter.add_(0.1)
        return work.model.eval()


@pytest.fixture(scope="module")
def sets():
    return small_sets()


@pytest.fixture
def net():
    """With weights of one size in all layers: of the usual start, pruning at 0.95 would leave nothing of the later ones."""
    torch.manual_seed(1)
    made = SmallCNN(num_classes=4, width=4)
    for value in convolutions(made).values():
        nn.init.normal_(value, std=0.3)
    return made.eval()


def convolutions(model):
    return {name: value for name, value in model.named_parameters() if "conv" in name}


def zeros_of(model):
    return sum(int((value == 0).sum()) for value in convolutions(model).values())


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("method", [None, OnRetain(), NPO(), GradientAscent()])
def test_zeros_stay_exactly_zero_under_momentum_and_weight_decay(net, sets, method, optim):
    forget, retain = sets
    masks = magnitude_masks(net, 0.95)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    rate = {"learning_rate": 0.1 if optim == "sgd" and not isinstance(method, GradientAscent) else 0.003}
    after_steps = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            after_steps.append(zeros_of(model))

    args = {**HARD, **rate, "optim": optim}
    Pruned(inner=method).apply(net, forget, retain, args=args, callbacks=[Watch()])
    assert set(after_steps) == {round(0.95 * N)}  # not only in the end
    assert zeros_of(net) == round(0.95 * N)
    after = dict(net.named_parameters())
    assert all((after[name][~mask] == 0).all() for name, mask in masks.items())
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert any(not torch.equal(after[name][mask], before[name][mask]) for name, mask in masks.items())


def test_warns_where_a_layer_loses_all_its_weights(net, sets):
    with torch.no_grad():
        net.blocks[2].conv.weight.mul_(1e-3)
    with pytest.warns(UserWarning, match=r"every weight of blocks\.2\.conv\.weight is pruned"):
        Pruned(rate=0.5).apply(net, *sets, args={"max_steps": 0})


def test_what_survives_is_trained_as_if_gradients_elsewhere_were_zero(net, sets):
    """One step of plain SGD: the weights are those of the pruned model less the rate times the masked gradient."""
    forget, retain = sets
    args = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "num_train_epochs": 1}
    args |= {"per_device_train_batch_size": 64, "mode": "eval"}
    masks = magnitude_masks(net, 0.9)
    expected = SmallCNN(num_classes=4, width=4).eval()
    expected.load_state_dict(net.state_dict())
    apply_masks(expected, masks)
    nn.functional.cross_entropy(expected(retain.pixels), retain.labels).backward()
    Pruned(rate=0.9).apply(net, forget, retain, args=args)
    for (name, ours), theirs in zip(net.named_parameters(), expected.parameters(), strict=True):
        gradient = theirs.grad * masks[name] if name in masks else theirs.grad
        torch.testing.assert_close(ours, theirs - 0.1 * gradient, rtol=1e-5, atol=1e-6)


def test_rate_zero_is_the_wrapped_method_bit_for_bit(net, sets):
    forget, retain = sets
    ours = Pruned(inner=OnRetain(), rate=0.0).apply(net, forget, retain, args=HARD, copy=True)
    theirs = OnRetain().apply(net, forget, retain, args=HARD, copy=True)
    assert hash_model(ours) == hash_model(theirs)


def test_a_model_that_is_pruned_already_keeps_its_own_zeros(net, sets):
    masks = magnitude_masks(net, 0.7)
    apply_masks(net, masks)
    Pruned(rate=None).apply(net, *sets, args=HARD)
    found = zero_masks(net)
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_pruning_again_at_the_same_rate_changes_no_mask(net, sets):
    masks = magnitude_masks(net, 0.7)
    apply_masks(net, masks)
    Pruned(rate=0.7).apply(net, *sets, args={**HARD, "learning_rate": 0.0})
    found = zero_masks(net)
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_an_edit_is_masked_after_it(net, sets):
    head = net.head.weight.detach().clone()
    Pruned(inner=Noise(), rate=0.5).apply(net, *sets)
    assert zeros_of(net) == round(0.5 * N)
    torch.testing.assert_close(net.head.weight, head + 0.1)


def test_scope_weights_holds_linear_layers_too(net, sets):
    with pytest.warns(UserWarning, match="every weight of"):
        Pruned(rate=0.9, scope="weights").apply(net, *sets, args=HARD)
    held = [*convolutions(net).values(), net.head.weight]
    assert sum(int((value == 0).sum()) for value in held) == round(0.9 * sum(value.numel() for value in held))


def test_the_reference_of_a_wrapped_method_is_the_pruned_model(net, sets):
    """NPO's log ratio at the first step is 0 only against the model that is trained."""
    lines = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            lines.append(dict(logs))

    args = {**HARD, "max_steps": 1, "mode": "eval"}
    Pruned(inner=NPO(), rate=0.9).apply(net, *sets, args=args, callbacks=[Keep()])
    assert lines[0]["log_ratio"] == pytest.approx(0, abs=1e-5)


def test_the_wrapped_methods_training_arguments_count(sets):
    torch.manual_seed(1)
    net = SmallCNN(num_classes=4, width=4).eval()
    steps = []

    @dataclass(frozen=True, kw_only=True)
    class Once(OnRetain):
        training: ClassVar = {"num_train_epochs": 1, "per_device_train_batch_size": 16}

        def loss(self, batch):
            steps.append(len(batch["retain"].index))
            return super().loss(batch)

    Pruned(inner=Once()).apply(net, *sets)
    assert steps == [16, 16]


def test_refuses_what_has_no_meaning(net, sets):
    forget, retain = sets
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(MethodError, match=r"rate is .*; it must be a finite number, at least 0 and below 1"):
            Pruned(rate=rate)
    with pytest.raises(MethodError, match="unknown scope 'all'"):
        Pruned(scope="all")
    with pytest.raises(MethodError, match=r"inner is 3\. Give an objective or an edit"):
        Pruned(inner=3)
    with pytest.raises(MethodError, match="Give an objective or an edit"):
        Pruned(inner=Pruned())
    with pytest.raises(DataError, match="needs a retain set"):
        Pruned().apply(net, forget)
    before = hash_model(net)
    with pytest.raises(ModelError, match="isn't pruned"):
        Pruned(rate=None).apply(net, forget, retain)
    assert hash_model(net) == before
    with pytest.raises(ModelError, match="no convolutions to prune"):
        Pruned().apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4)), forget, retain)
