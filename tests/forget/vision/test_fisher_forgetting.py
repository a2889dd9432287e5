"""Fisher forgetting: the information, the variances and the means have closed forms and the official code's numbers."""

import copy
import json
from pathlib import Path

import pytest
import torch
from edit_inputs import edit_net, edit_rows, edit_sets
from torch import nn

from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.forget.engine.images.work import ImageWork
from unwrite.forget.vision.fisher_forgetting import FisherForgetting, noise
from unwrite.runs import hash_model

OFFICIAL = json.loads((Path(__file__).parent / "official_edits.json").read_text())["fisher"]
KINDS = ["rows", "class"]


def information(kind, mode):
    net = edit_net()
    forget, retain = edit_sets(whole_class=kind == "class")
    work = ImageWork(model=net, forget=forget, retain=retain)
    return net, FisherForgetting(mode=mode)._information(work)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["repo", "sample"])
def test_the_information_is_the_official_one(kind, mode):
    """Theirs over batches of 32 in mode "repo"; row by row, averaged, in mode "sample"."""
    _, found = information(kind, mode)
    for name, tensor in found.items():
        expected = torch.tensor(OFFICIAL[kind][mode][name]).view_as(tensor)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5 * float(expected.max()), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_means_and_variances_are_the_official_ones(kind):
    net, found = information(kind, "repo")
    classes = (1,) if kind == "class" else ()
    for name, theta in net.named_parameters():
        mean, variance = noise(theta, found[name], OFFICIAL[kind]["alpha"], head=name.startswith("4."), classes=classes)
        for ours, what in ((mean, "mean"), (variance, "variance")):
            expected = torch.tensor(OFFICIAL[kind][what][name]).view_as(ours)
            torch.testing.assert_close(
                ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()), msg=f"{name} {what}"
            )


def test_of_a_logistic_regression_a_logit_has_p_times_one_minus_p():
    """sum_y p_y (p - e_y)_k^2 = p_k (1 - p_k): the bias has that, and a weight that times its input squared."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    rows = Images(torch.rand(10, 1, 2, 2), labels=torch.arange(10) % 3)
    work = ImageWork(model=net, forget=rows.subset([0]), retain=rows.subset(range(1, 10)))
    found = FisherForgetting()._information(work)
    inputs = net[:3](work.retain.pixels).detach()
    p = net[3](inputs).softmax(-1).detach()
    torch.testing.assert_close(found["3.bias"], (p * (1 - p)).mean(0), rtol=1e-5, atol=1e-7)
    expected = ((p * (1 - p))[:, :, None] * inputs.square()[:, None]).mean(0)
    torch.testing.assert_close(found["3.weight"], expected, rtol=1e-5, atol=1e-7)


def test_noise_falls_where_the_information_rises_up_to_its_cap():
    theta = torch.zeros(4)
    _, variance = noise(theta, torch.tensor([0.0, 0.01, 0.1, 1.0]), 1e-6)
    assert (variance.diff() < 0).all()
    assert variance[0] == pytest.approx(10 * 1e3 * 1e-6)


def test_the_noise_has_the_variance_that_is_said():
    net, found = information("rows", "sample")
    forget, retain = edit_sets()
    draws = []
    for seed in range(200):
        after = FisherForgetting(alpha=1e-3).apply(edit_net(), forget, retain, args={"seed": seed})
        draws.append(after[1].bias.detach().clone())
    _, variance = noise(net[1].bias, found["1.bias"], 1e-3)
    spread = torch.stack(draws).var(0)
    assert (spread / variance - 1).abs().max() < 0.4  # four standard deviations of a variance of 200 draws


def test_batch_statistics_stay():
    before, sets = edit_net(), edit_sets()
    after = FisherForgetting(alpha=1e-3).apply(copy.deepcopy(before), *sets)
    assert torch.equal(after[1].running_mean, before[1].running_mean)
    assert torch.equal(after[1].running_var, before[1].running_var)


@pytest.mark.parametrize("whole", [True, False])
def test_alpha_zero_changes_nothing(whole):
    net = edit_net()
    before = hash_model(net)
    FisherForgetting(alpha=0.0).apply(net, *edit_sets(whole_class=whole))
    assert hash_model(net) == before


def test_towards_alpha_zero_the_model_is_what_it_was():
    before, sets = edit_net(), edit_sets()
    after = FisherForgetting(alpha=1e-16).apply(copy.deepcopy(before), *sets)
    pixels = edit_rows()[0]
    torch.testing.assert_close(after(pixels), before(pixels), rtol=1e-4, atol=1e-4)


def test_the_row_of_a_forgotten_class_is_drawn_anew_around_zero():
    forget, retain = edit_sets(whole_class=True)
    after = FisherForgetting(alpha=1e-12).apply(edit_net(), forget, retain)
    assert after[4].weight[1].abs().max() < 0.2  # variance 1e-3
    assert after[4].weight[1].abs().max() > 0
    torch.testing.assert_close(after[4].weight[0], edit_net()[4].weight[0], rtol=0, atol=1e-3)


def test_what_has_no_meaning_is_refused():
    with pytest.raises(MethodError, match="alpha is -1"):
        FisherForgetting(alpha=-1.0)
    with pytest.raises(MethodError, match="mode is 'exact'"):
        FisherForgetting(mode="exact")
    rows = Images(torch.rand(6, 1, 6, 6), targets=torch.arange(6.0))
    with pytest.raises(DataError):
        FisherForgetting().apply(edit_net(), rows.subset([0, 1]), rows.subset([2, 3, 4, 5]))
