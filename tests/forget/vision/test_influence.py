"""Influence unlearning: the official recursion's numbers, and the textbook's against the closed form."""

import copy
import json
from pathlib import Path

import pytest
import torch
from edit_inputs import edit_net, edit_sets
from torch import nn

from unwrite.data import Images
from unwrite.errors import DataError, MethodError
from unwrite.forget.vision.influence import Influence, recursive_inverse, woodbury_inverse
from unwrite.runs import hash_model

OFFICIAL = json.loads((Path(__file__).parent / "official_edits.json").read_text())["influence"]


@pytest.mark.parametrize("case", OFFICIAL["cases"], ids=lambda case: f"{case['samples']} samples")
def test_the_recursion_gives_the_official_weights(case):
    net, (forget, retain) = edit_net(), edit_sets()
    Influence(alpha=case["alpha"], samples=case["samples"]).apply(net, forget, retain)
    for name, value in net.named_parameters():
        expected = torch.tensor(case["weights"][name]).view_as(value)
        torch.testing.assert_close(value.detach(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def gradients(rows=12, size=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64)


def test_the_textbook_inverse_is_the_inverse():
    g, v = gradients(), torch.arange(1.0, 6.0, dtype=torch.float64)
    matrix = 0.3 * torch.eye(5, dtype=torch.float64) + g.T @ g / len(g)
    torch.testing.assert_close(woodbury_inverse(v, g, 0.3), torch.linalg.solve(matrix, v), rtol=1e-10, atol=1e-12)


def test_the_textbook_inverse_is_what_woodfishers_recursion_gives():
    g, v = gradients(), torch.arange(1.0, 6.0, dtype=torch.float64)
    inverse, m = torch.eye(5, dtype=torch.float64) / 0.3, len(g)
    for row in g:
        o = inverse @ row
        inverse = inverse - torch.outer(o, o) / (m + row @ o)
    torch.testing.assert_close(woodbury_inverse(v, g, 0.3), inverse @ v, rtol=1e-10, atol=1e-12)


def test_the_official_recursion_leaves_v_alone_after_one_row():
    v = torch.arange(1.0, 6.0, dtype=torch.float64)
    assert torch.equal(recursive_inverse(v, iter(gradients()[:1, None]), 1000), v)


def regression():
    """Targets in two outputs of one row of pixels, by a linear model: a quadratic loss."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(40, 1, 1, 3, generator=generator)
    targets = pixels[:, 0, 0] @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(40, generator=generator)
    data = Images(pixels, targets=targets)
    return data.subset(range(6)), data.subset(range(6, 40))


def linear_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)).eval()


def test_the_step_of_the_textbook_is_the_closed_form_of_its_own_curvature():
    forget, retain = regression()
    net = linear_net()
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(3))
        net[2].weight.copy_(torch.tensor([[0.4, -0.7, 0.2]]))
    before = torch.cat([p.detach().flatten().double() for p in net.parameters()])
    sums, each = {}, []
    for name, rows in (("forget", forget), ("retain", retain)):
        found = []
        for i in range(len(rows)):
            net.zero_grad()
            (net(rows.pixels[i : i + 1])[0, 0] - rows.targets[i]).square().backward()
            found.append(torch.cat([p.grad.flatten().double() for p in net.parameters()]))
        sums[name] = torch.stack(found).sum(0)
        each = found
    n_f, n_r = len(forget), len(retain)
    v = sums["forget"] / (n_f + n_r) - n_f / ((n_f + n_r) * n_r) * sums["retain"]
    g = torch.stack(each)
    matrix = 0.5 * torch.eye(len(v), dtype=torch.float64) + g.T @ g / n_r
    expected = before + torch.linalg.solve(matrix, v)
    Influence(alpha=1.0, mode="woodbury", damping=0.5).apply(net, forget, retain)
    after = torch.cat([p.detach().flatten().double() for p in net.parameters()])
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)


def quadratic(residual):
    """(a linear regressor, forget, retain, Hessian on retain rows): all retain rows have that residual up to its sign.

    A row's gradient is 2 r x, so the mean of its squares is 4 r^2 mean x x^T, and the Hessian of the squared error is
    2 mean x x^T: they are one where r^2 = 1/2. The forget rows' residuals make the model the best fit to all rows.
    """
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    r = residual * torch.sign(torch.rand(40, generator=generator, dtype=torch.float64) - 0.5)
    r[:6] = torch.linalg.lstsq(x[:6].T, -x[6:].T @ r[6:]).solution
    theta = torch.tensor([0.4, -0.7, 0.2], dtype=torch.float64)
    net = linear_net()
    net[1].weight.requires_grad_(False).copy_(torch.eye(3))  # a head needs something before it
    net[2].weight.data.copy_(theta[None])
    data = Images(x.float().view(40, 1, 1, 3), targets=(x @ theta - r).float())
    return net, data.subset(range(6)), data.subset(range(6, 40)), 2 * x[6:].T @ x[6:] / 34


def test_where_the_curvature_is_the_hessian_a_whole_step_is_retraining_without_the_forget_rows():
    """The leave-k-out fit, which a Newton step of a quadratic loss reaches, by least squares on retain rows alone."""
    net, forget, retain, _ = quadratic(0.5**0.5)
    x, y = retain.pixels.view(34, 3).double(), retain.targets.double()
    before, without = net[2].weight.detach()[0].double().clone(), torch.linalg.lstsq(x, y).solution
    assert (without - before).abs().max() > 0.1
    Influence(alpha=1.0, mode="woodbury", damping=1e-6).apply(net, forget, retain)
    torch.testing.assert_close(net[2].weight.detach()[0].double(), without, rtol=0, atol=1e-4)


@pytest.mark.parametrize("damping", [0.01, 0.5, 3.0])
def test_the_step_is_minus_the_damped_hessians_inverse_times_the_gradient_that_is_left(damping):
    net, forget, retain, hessian = quadratic(0.5**0.5)
    x, y = retain.pixels.view(34, 3).double(), retain.targets.double()
    before = net[2].weight.detach()[0].double().clone()
    left = 2 * ((x @ before - y)[:, None] * x).mean(0)  # of the loss without the forget rows
    expected = -torch.linalg.solve(hessian + damping * torch.eye(3, dtype=torch.float64), left)
    Influence(alpha=0.7, mode="woodbury", damping=damping).apply(net, forget, retain)
    moved = net[2].weight.detach()[0].double() - before
    torch.testing.assert_close(moved, 0.7 * expected, rtol=1e-4, atol=1e-6)


def test_with_other_residuals_the_curvature_is_no_hessian_and_the_step_is_too_long_or_too_short():
    """So the card's identity holds for the Hessian, not for the squared gradients that stand for it: by 1 / (2 r^2)."""
    for residual in (0.25, 1.0):
        net, forget, retain, _ = quadratic(residual)
        x, y = retain.pixels.view(34, 3).double(), retain.targets.double()
        before, without = net[2].weight.detach()[0].double().clone(), torch.linalg.lstsq(x, y).solution
        Influence(alpha=1.0, mode="woodbury", damping=1e-6).apply(net, forget, retain)
        moved = net[2].weight.detach()[0].double() - before
        torch.testing.assert_close(moved, (without - before) / (2 * residual**2), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["repo", "woodbury"])
def test_alpha_zero_changes_nothing(mode):
    net = edit_net()
    before = hash_model(net)
    Influence(alpha=0.0, mode=mode).apply(net, *edit_sets())
    assert hash_model(net) == before


@pytest.mark.parametrize("mode", ["repo", "woodbury"])
def test_the_step_raises_the_loss_on_the_forget_set_more_than_on_the_retain_set(mode):
    before, sets = edit_net(), edit_sets()
    after = Influence(alpha=0.2, mode=mode).apply(copy.deepcopy(before), *sets)
    rise = [
        (
            nn.functional.cross_entropy(after(s.pixels), s.labels)
            - nn.functional.cross_entropy(before(s.pixels), s.labels)
        ).item()
        for s in sets
    ]
    assert rise[0] > 0
    assert rise[0] > rise[1]


def test_what_has_no_meaning_is_refused():
    for fields in ({"alpha": -1.0}, {"samples": 0}, {"damping": 0.0}, {"mode": "exact"}):
        with pytest.raises(MethodError, match=next(iter(fields))):
            Influence(**fields)
    with pytest.raises(DataError, match="needs a retain set"):
        Influence().apply(edit_net(), edit_sets()[0])
