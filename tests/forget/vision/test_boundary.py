"""Boundary unlearning: where one step of FGSM leads, what the labels become, and a further output that comes and goes."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trained_inputs import wave_images, wave_net
from trained_toys import Log, accuracy, net, nll, same, split, state, targets, unlearn, work_of

from unwrite.errors import DataError, MethodError, ModelError, NotFinite
from unwrite.forget.engine.cost import Cost
from unwrite.forget.vision.boundary import BoundaryExpand, BoundaryShrink, attacked

OFFICIAL = json.loads((Path(__file__).parent / "official_trained.json").read_text())["boundary"]["attacked"]
STRONG = {"learning_rate": 0.01}


class Watched(nn.Module):
    """Two linear outputs; notes what it is given."""

    def __init__(self, weight):
        super().__init__()
        self.inner, self.given = nn.Linear(4, 2, bias=False), []
        self.inner.weight = nn.Parameter(weight)

    def forward(self, pixels):
        self.given.append(pixels.detach())
        return self.inner(pixels.flatten(1))


def test_the_attack_is_one_signed_step_within_the_pixels_range_on_multiples_of_a_255th():
    model = Watched(torch.tensor([[1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    pixels = torch.tensor([[[[0.5, 0.5], [0.05, 0.5]]]])
    attacked(model, pixels, torch.tensor([0]), 0.1)
    # Away from class 0: down where its weight is above 0, up where below, nowhere without a slope.
    expected = torch.tensor([[[[0.4, 0.6], [0.0, 0.5]]]])
    torch.testing.assert_close(model.given[-1], (expected * 255).round() / 255)
    assert model.inner.weight.grad is None


@pytest.mark.parametrize("eps", ["0.02", "0.1"])
def test_the_logits_after_the_attack_are_the_official_ones(eps):
    rows = wave_images()
    found = attacked(wave_net(), rows.pixels, rows.labels, float(eps))
    torch.testing.assert_close(found, torch.tensor(OFFICIAL[eps]["logits"]), rtol=1e-5, atol=1e-5)
    assert found.argmax(1).tolist() == OFFICIAL[eps]["labels"]


def test_labels_are_the_nearest_by_the_model_before_and_successes_are_counted():
    model, rows = net(), split().forget
    for eps in (0.02, 0.3):
        near, success = BoundaryShrink(eps=eps).relabelled(work_of(BoundaryShrink(), model))
        assert torch.equal(near.labels, attacked(model, rows.pixels, rows.labels, eps).argmax(1))
        assert success == pytest.approx((near.labels != rows.labels).float().mean().item())
        assert success == 0 if eps == 0.02 else success > 0.5
    assert same(model, net())


def test_the_runner_up_replaces_only_labels_that_the_attack_left():
    rows, found = split().forget, {}
    for runner_up in (False, True):
        method = BoundaryShrink(eps=0.12, runner_up=runner_up)
        found[runner_up], success = method.relabelled(work_of(method))
    left = found[False].labels != rows.labels
    assert 0 < success < 1
    assert success == pytest.approx(left.float().mean().item())
    assert torch.equal(found[True].labels[left], found[False].labels[left])
    assert not (found[True].labels == rows.labels).any()
    logits = attacked(net(), rows.pixels, rows.labels, 0.12)
    logits[:, 0] = -torch.inf  # all are of class 0
    assert torch.equal(found[True].labels, logits.argmax(1))


def test_shrinking_trains_on_the_relabelled_forget_set_alone():
    method, model, log = BoundaryShrink(runner_up=True), net(), Log()
    near, success = method.relabelled(work_of(method))
    args = {"learning_rate": 0.1, "momentum": 0.0, "max_steps": 1, "per_device_train_batch_size": 500, "mode": "eval"}
    method.apply(model, split().forget, args=args, callbacks=[log])
    start = net()
    loss = F.cross_entropy(start(near.pixels), near.labels)
    grads = torch.autograd.grad(loss, list(start.parameters()))
    for after, before, grad in zip(model.parameters(), start.parameters(), grads, strict=True):
        torch.testing.assert_close(after.detach(), before.detach() - 0.1 * grad, rtol=1e-4, atol=1e-6)
    assert log.lines[0]["attack_success"] == pytest.approx(success)


def test_the_attack_costs_two_forwards_and_half_a_backward_a_row():
    cost = Cost()
    unlearn(BoundaryShrink(), args={"max_steps": 0}, cost=cost)
    assert cost.forwards == 3 * len(split().forget)


def test_shrinking_forgets():
    model = unlearn(BoundaryShrink(runner_up=True), args=STRONG)
    assert accuracy(model, split().forget) == 0
    assert nll(model, split().forget) > 10 * nll(net(), split().forget)


def test_expanding_forgets_and_gives_the_same_architecture_back():
    model, before = net(), net()
    own = dict(model.named_parameters())
    assert unlearn(BoundaryExpand(), model, args=STRONG) is model
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in before.state_dict().items()
    }
    assert model.head.out_features == 4
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    assert model(split().forget.pixels).shape == (len(split().forget), 4)
    assert not model.training
    assert nll(model, split().forget) > 10 * nll(before, split().forget)
    assert not torch.equal(model.head.weight, before.head.weight)


def test_expanding_trains_towards_a_further_output_drawn_by_the_seed():
    weights = {}
    for seed in (0, 0, 1):
        model, seen = net(), []
        model.head.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.detach()))
        args = {"num_train_epochs": 20, "learning_rate": 0.02, "seed": seed}
        unlearn(BoundaryExpand(), model, args=args)
        wide = [output for output in seen if output.shape[1] == 5]
        assert (wide[-1].argmax(1) == 4).float().mean() > 0.9
        if seed in weights:
            assert same(weights[seed], model)
        weights[seed] = state(model)
    assert not same(weights[0], weights[1])


def test_without_a_step_expanding_changes_nothing():
    assert same(unlearn(BoundaryExpand(), args={"max_steps": 0}), net())


def test_a_head_without_bias_is_expanded_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 4, bias=False))
    unlearn(BoundaryExpand(), model, args=STRONG)
    assert model[3].weight.shape == (4, 6)
    assert model[3].bias is None


def test_a_training_that_breaks_leaves_a_model_of_the_same_architecture():
    model = net()
    with pytest.raises(NotFinite):
        unlearn(BoundaryExpand(), model, args={"learning_rate": 1e30})
    assert model.head.weight.shape == (4, 64)
    assert model.head.out_features == 4


def test_refuses_what_has_no_meaning():
    for eps in (0.0, 1.5):
        with pytest.raises(MethodError, match=f"eps is {eps}"):
            BoundaryShrink(eps=eps)
    with pytest.raises(MethodError, match="runner_up is 1; use True or False"):
        BoundaryShrink(runner_up=1)
    for method in (BoundaryShrink(), BoundaryExpand()):
        with pytest.raises(DataError, match="has regression targets"):
            method.apply(net(), targets(split().forget))


def test_refuses_to_expand_a_head_of_another_kind():
    class Scaled(nn.Linear):
        pass

    model = net()
    model.head.__class__ = Scaled
    with pytest.raises(ModelError, match="ends in a Scaled, to which no output can be added"):
        unlearn(BoundaryExpand(), model)
