"""SalUn: exactly the most salient weights are trained, the others stay bit-identical, and any objective can be masked."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from trained_inputs import wave_images, wave_net
from trained_toys import accuracy, net, nll, same, split, state, targets, unlearn, work_of

from unwrite.errors import DataError, MethodError
from unwrite.forget import GradientAscent, GradientDifference
from unwrite.forget.engine.cost import Cost
from unwrite.forget.vision.bad_teacher import BadTeacher
from unwrite.forget.vision.boundary import BoundaryShrink
from unwrite.forget.vision.fine_tuning import Retrain
from unwrite.forget.vision.relabelling import RandomLabel
from unwrite.forget.vision.salun import Salient, SalUn, saliency, top_share

OFFICIAL = json.loads((Path(__file__).parent / "official_trained.json").read_text())["salun_mask"]
HARD = {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.1}


def count(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def masks_of(share, size=16):
    return top_share(saliency(net(), work_of(SalUn()).batches(split().forget, size)), share)


def check_held(before, model, masks):
    """Outside the mask not a bit has changed; inside most has."""
    changed = 0
    for name, parameter in model.named_parameters():
        mask = masks[name]
        assert torch.equal(parameter[~mask], before[name][~mask]), name
        changed += int((parameter != before[name]).sum())
    assert changed > 0.9 * count(masks)


@pytest.mark.parametrize("share", [0.0, 0.013, 0.1, 1 / 3, 0.5, 0.99, 1.0])
def test_exactly_floor_of_the_share_of_all_weights_are_marked(share):
    assert count(masks_of(share)) == math.floor(share * sum(p.numel() for p in net().parameters()))


def test_the_most_salient_of_all_tensors_together_are_marked():
    scores = saliency(net(), work_of(SalUn()).batches(split().forget, 16))
    masks = top_share(scores, 0.2)
    inside = torch.cat([scores[name][mask] for name, mask in masks.items()])
    outside = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert inside.min() >= outside.max()
    assert len({mask.float().mean().item() for mask in masks.values()}) > 2  # no quota a tensor


def test_of_equal_scores_the_first_are_marked():
    scores = {"a": torch.tensor([1.0, 0.0, 0.0]), "b": torch.tensor([[0.0, 2.0], [0.0, 0.0]])}
    masks = top_share(scores, 4.5 / 7)
    assert masks["a"].tolist() == [True, True, True]
    assert masks["b"].tolist() == [[False, True], [False, False]]


def test_two_batches_with_opposite_gradients_leave_no_saliency():
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)  # both classes have probability 1/2
    x = torch.tensor([[1.0, -2.0]])
    batches = [(x, torch.tensor([label]), torch.tensor([label])) for label in (0, 1)]
    assert saliency(model, batches)["weight"].abs().max() == 0
    assert saliency(model, batches[:1])["weight"].tolist() == [[0.5, 1.0], [0.5, 1.0]]


def test_saliency_is_the_sum_of_batch_means_read_in_evaluation_mode():
    model, rows = net().train(), split().forget
    before = state(model)
    found = saliency(model, work_of(SalUn()).batches(rows, 10))
    assert same(model, before)
    assert model.training
    model.eval()
    total = sum(
        nn.functional.cross_entropy(model(rows.pixels[at]), rows.labels[at])
        for at in (slice(0, 10), slice(10, 20), slice(20, 26))
    )
    wanted = torch.autograd.grad(total, list(model.parameters()))
    for (name, score), grad in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(score, grad.abs(), rtol=1e-4, atol=1e-6, msg=name)


def test_the_mask_is_the_official_one():
    rows, model = wave_images(), wave_net()
    size = OFFICIAL["batch"]
    batches = [tuple(rows[first : first + size]) for first in range(0, len(rows), size)]
    for share, chosen in OFFICIAL["chosen"].items():
        masks = top_share(saliency(model, batches), float(share))
        assert torch.cat([mask.flatten() for mask in masks.values()]).nonzero()[:, 0].tolist() == chosen


@pytest.mark.parametrize("optim", ["sgd", "adam"])
def test_masked_weights_are_bit_identical_after_ten_epochs_with_decay_and_momentum(optim):
    model, before = net(), state(net())
    unlearn(SalUn(share=0.3), model, args={**HARD, "optim": optim})
    check_held(before, model, masks_of(0.3))


def test_a_share_of_one_is_plain_random_labelling():
    for order in ("forget first", "shuffled"):
        args = {"num_train_epochs": 1}
        assert same(unlearn(SalUn(share=1.0, order=order), args=args), unlearn(RandomLabel(order=order), args=args))


def test_salient_alone_is_salun_bit_for_bit():
    args = {"num_train_epochs": 2}
    assert same(unlearn(Salient(share=0.4), args=args), unlearn(SalUn(share=0.4), args=args))


@pytest.mark.parametrize("method", [GradientAscent(), BoundaryShrink(runner_up=True)])
def test_any_objective_trains_under_the_mask(method):
    model, before = net(), state(net())
    unlearn(Salient(inner=method, share=0.5), model, args={**HARD, "num_train_epochs": 2})
    check_held(before, model, masks_of(0.5))


def test_the_inner_training_arguments_count():
    args = {"per_device_train_batch_size": 500, "mode": "eval", "weight_decay": 0.0, "momentum": 0.0, "max_steps": 1}
    few, more = net(), net()
    BoundaryShrink(runner_up=True).apply(few, split().forget, args=args)
    Salient(inner=BoundaryShrink(runner_up=True), share=1.0).apply(more, split().forget, args=args)
    assert same(few, more)


def test_forgets_and_keeps_the_rest():
    model = unlearn(SalUn())
    assert nll(model, split().forget) > 5 * nll(net(), split().forget)
    assert accuracy(model, split().retain) > 0.9


def test_the_mask_costs_a_pass_over_the_forget_set():
    plain, masked = Cost(), Cost()
    unlearn(RandomLabel(), args={"num_train_epochs": 1}, cost=plain)
    unlearn(SalUn(), args={"num_train_epochs": 1}, cost=masked)
    assert masked.forwards - plain.forwards == 3 * len(split().forget)


def test_refuses_shares_without_meaning():
    for kind in (SalUn, Salient):
        for share in (0.0, 1.5, float("nan")):
            with pytest.raises(MethodError, match=r"share is .* above 0 and at most 1"):
                kind(share=share)


def test_refuses_what_is_no_objective_and_what_the_inner_method_refuses():
    with pytest.raises(MethodError, match=r"inner is Retrain\(\), not an objective"):
        Salient(inner=Retrain())
    with pytest.raises(DataError, match="retain_loss='nll' but there is no retain set"):
        Salient(inner=GradientDifference()).apply(net(), split().forget)
    with pytest.raises(DataError, match="RandomRelabelling needs a retain set"):
        Salient().apply(net(), split().forget)
    with pytest.raises(MethodError, match="BadTeacher needs a fresh model"):
        Salient(inner=BadTeacher()).apply(net(), split().forget, split().retain)
    with pytest.raises(DataError, match="has regression targets"):
        SalUn().apply(net(), targets(split().forget), targets(split().retain))
