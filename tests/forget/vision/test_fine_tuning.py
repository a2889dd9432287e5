"""Training on the retain set alone, all of a net, its end, or from new weights; NegGrad+ and gradient ascent beside it."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trained_toys import RECIPE, accuracy, net, nll, same, split, state, targets, unlearn, work_of

from unwrite.data import Images
from unwrite.errors import DataError, MethodError, ModelError
from unwrite.forget import GradientAscent
from unwrite.forget.engine.cost import Cost
from unwrite.forget.vision.fine_tuning import CFk, EUk, FineTune, Retrain
from unwrite.forget.vision.neg_grad import NegGradPlus
from unwrite.models.image_training import fitted, image_recipe
from unwrite.nets import SmallCNN, SmallResNet

BRIEF = image_recipe(SmallCNN, epochs=2, batch_size=16, num_classes=4, width=4)
PLAIN = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "max_steps": 1, "per_device_train_batch_size": 500}


def moves(before, model):
    """How far each parameter went, one vector."""
    parameters = dict(model.named_parameters())
    return torch.cat([(parameters[name].detach() - before[name]).flatten() for name in parameters])


def gradient(model, rows, mode=True):
    model.train(mode)
    loss = F.cross_entropy(model(rows.pixels), rows.labels)
    found = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])
    model.eval()
    return found


def test_a_step_of_fine_tuning_is_the_gradient_on_the_retain_set():
    model, before = net(), state(net())
    unlearn(FineTune(), model, args=PLAIN)
    torch.testing.assert_close(moves(before, model), -0.1 * gradient(net(), split().retain), rtol=1e-4, atol=1e-7)


def test_fine_tuning_never_looks_at_forget_rows():
    other = Images(
        1 - split().forget.pixels, labels=split().forget.labels, index=split().forget.index, classes=tuple("abcd")
    )
    args = {"num_train_epochs": 1}
    changed = unlearn(FineTune(), parts=dataclasses.replace(split(), forget=other), args=args)
    assert same(unlearn(FineTune(), args=args), changed)


def test_a_step_of_a_regressor_is_the_gradient_of_the_mean_absolute_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 1))
    forget, retain = targets(split().forget), targets(split().retain)
    error = (model(retain.pixels)[:, 0] - retain.targets).abs().mean()
    wanted = [
        p.detach() - 0.1 * g
        for p, g in zip(model.parameters(), torch.autograd.grad(error, model.parameters()), strict=True)
    ]
    FineTune().apply(model, forget, retain, args=PLAIN)
    torch.testing.assert_close([p.detach() for p in model.parameters()], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_all_before_the_last_k_blocks_is_bit_identical_and_they_are_not(k):
    model, before = net(), state(net())
    last = set(work_of(CFk()).layout.last(k))
    unlearn(CFk(k=k), model, args={"num_train_epochs": 1})
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in last), name


def test_training_all_blocks_is_fine_tuning_bit_for_bit():
    args = {"num_train_epochs": 2}
    assert same(unlearn(CFk(k=5), args=args), unlearn(FineTune(), args=args))


def test_eu_k_begins_with_the_last_k_blocks_of_a_fresh_model():
    model, before = net(), state(net())
    work = work_of(EUk())
    last, fresh = set(work.layout.last(2)), work.fresh(7).state_dict()
    unlearn(EUk(k=2), model, args={"seed": 7, "max_steps": 0})
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in last else before[name]), name


def test_eu_k_forgets_what_fine_tuning_keeps():
    assert accuracy(unlearn(FineTune()), split().forget) > 0.9
    tuned = unlearn(EUk(k=2), args={"num_train_epochs": 10})
    assert accuracy(tuned, split().forget) == 0
    assert accuracy(tuned, split().retain) > 0.9


def test_retraining_is_the_recipe_on_the_retain_set_alone():
    data = split().train
    oracle = fitted(RECIPE, data, data.positions(split().retain.index).tolist(), 3)
    model = net()
    assert unlearn(Retrain(), model, args={"seed": 3}) is model
    assert same(model, oracle)
    assert not model.training
    assert accuracy(model, split().forget) == 0


def test_retraining_does_not_depend_on_what_the_forget_rows_are():
    other = dataclasses.replace(split().forget, pixels=1 - split().forget.pixels)
    changed = unlearn(Retrain(), parts=dataclasses.replace(split(), forget=other), recipe=BRIEF)
    assert same(unlearn(Retrain(), recipe=BRIEF), changed)


def test_retraining_costs_the_whole_training_also_when_it_is_found():
    for _ in range(2):
        cost = Cost()
        unlearn(Retrain(), cost=cost, recipe=BRIEF)
        assert cost.forwards == len(split().retain) * 2 * 3


@pytest.mark.parametrize("method", [Retrain(), EUk()])
def test_refuses_a_recipe_of_another_architecture_and_changes_nothing(method):
    model = net()
    other = image_recipe(SmallResNet, epochs=1, num_classes=4, width=4)
    with pytest.raises(ModelError, match="is not built like the SmallCNN"):
        unlearn(method, model, recipe=other)
    assert same(model, net())


@pytest.mark.parametrize("method", [CFk(k=6), EUk(k=6)])
def test_refuses_more_blocks_than_there_are_and_changes_nothing(method):
    model = net()
    with pytest.raises(ModelError, match="there are 5 blocks"):
        unlearn(method, model)
    assert same(model, net())


def test_refuses_what_it_can_not_do_without():
    with pytest.raises(MethodError, match="k is 0; it must be a finite number, at least 1"):
        CFk(k=0)
    for method in (Retrain(), EUk()):
        with pytest.raises(MethodError, match="Give the recipe"):
            unlearn(method, recipe=None)
    for method in (FineTune(), CFk(), EUk(), Retrain(), NegGradPlus()):
        with pytest.raises(DataError, match="needs a retain set"):
            method.apply(net(), split().forget, recipe=RECIPE)


@pytest.mark.parametrize("field", [{"forget_weight": 0.5}, {"retain_loss": "kl"}, {"retain_weight": 2.0}])
def test_has_no_weights_of_a_pairing_it_does_not_do(field):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        FineTune(**field)


def test_one_step_of_gradient_ascent_is_the_negative_of_one_of_fine_tuning_on_the_forget_set():
    swapped = dataclasses.replace(split(), forget=split().retain, retain=split().forget, test_forget=None)
    before, up, down = state(net()), net(), net()
    args = {**PLAIN, "per_device_train_batch_size": 10}
    GradientAscent().apply(up, split().forget, args=args)
    unlearn(FineTune(), down, swapped, args=args)
    assert moves(before, up).abs().max() > 1e-3
    torch.testing.assert_close(moves(before, up), -moves(before, down), rtol=0, atol=2e-7)  # the rounding of a sum


def test_neg_grad_with_alpha_one_is_fine_tuning_bit_for_bit():
    args = {"num_train_epochs": 2}
    assert same(unlearn(NegGradPlus(alpha=1.0), args=args), unlearn(FineTune(), args=args))


def test_a_step_of_neg_grad_weighs_both_gradients():
    parts = split()
    few = dataclasses.replace(parts, retain=parts.retain.subset(parts.retain.index[: len(parts.forget)]))
    model, before = net(), state(net())
    unlearn(NegGradPlus(alpha=0.7), model, few, args={**PLAIN, "mode": "eval"})
    ours = 0.7 * gradient(net(), few.retain, mode=False) - 0.3 * gradient(net(), few.forget, mode=False)
    torch.testing.assert_close(moves(before, model), -0.1 * ours, rtol=1e-4, atol=1e-7)


def test_neg_grad_forgets_and_refuses_a_weight_that_is_no_share():
    assert nll(unlearn(NegGradPlus(alpha=0.8)), split().forget) > 10 * nll(net(), split().forget)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(MethodError, match=r"alpha is .* at least 0 and at most 1"):
            NegGradPlus(alpha=alpha)
