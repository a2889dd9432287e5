"""The box of Key Space Detection: its closed form, its edges, and the alpha that flags most at few false alarms."""

import math
from dataclasses import replace

import pytest
import torch

from unwrite.errors import DataError
from unwrite.forget.engine.text.key_box import KeyBox, best_alpha


def vectors(n=40, width=6, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_three_vectors_have_their_closed_form():
    box = KeyBox.of_vectors(torch.tensor([[0.0, 0], [2, 2], [4, 1]]))
    assert box.mean.tolist() == [2, 1]
    assert box.spread.tolist() == [2, 1]
    assert box.k == 1.0


def test_k_is_what_bisection_comes_to_and_below_its_bound():
    probes = vectors()
    box, low, high = KeyBox.of_vectors(probes), 0.0, 1e4
    while high - low > 1e-5:
        middle = (low + high) / 2
        apart = (probes.double() - probes.double().mean(0)).abs() <= middle * probes.double().std(0)
        low, high = (low, middle) if apart.all() else (middle, high)
    assert box.k == pytest.approx(high, abs=2e-5)
    assert box.k <= (len(probes) - 1) / math.sqrt(len(probes)) + 1e-6


def test_alpha_one_takes_in_every_probe_zero_none_and_more_takes_in_more():
    probes, others = vectors(), vectors(200, seed=1) * 2
    box = KeyBox.of_vectors(probes)
    assert box.inside(probes).all()
    assert not replace(box, alpha=0.0).inside(probes).any()
    assert replace(box, alpha=0.0).inside(box.mean)
    shares = [replace(box, alpha=a).inside(others).float().mean().item() for a in (0.2, 0.5, 1.0, 2.0, 5.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.05 < 0.95 < shares[-1]


def test_one_dimension_outside_is_outside_on_either_side():
    box = replace(KeyBox.of_vectors(vectors()), alpha=1.0)
    edge = box.k * box.spread[2]
    for sign in (-1, 1):
        key = box.mean.clone()
        key[2] += sign * 1.01 * edge
        assert not box.inside(key)
        key[2] = box.mean[2] + sign * 0.99 * edge
        assert box.inside(key)


def test_a_quantile_leaves_an_outlier_out():
    probes = torch.cat([vectors(99), torch.full((1, 6), 500.0)])
    whole, robust = KeyBox.of_vectors(probes), KeyBox.of_vectors(probes, 0.99)
    assert whole.k > 5 * robust.k
    assert robust.inside(probes).sum() == 99


def test_a_dimension_that_never_moved_must_stay():
    probes = vectors()
    probes[:, 3] = 0.0
    box = KeyBox.of_vectors(probes)
    assert box.inside(probes).all()
    key = box.mean.clone()
    key[3] = 0.1
    assert not box.inside(key)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_key_that_is_not_finite_counts_as_inside(value):
    key = torch.full((6,), 1e6)
    box = KeyBox.of_vectors(vectors())
    assert not box.inside(key)
    key[1] = value
    assert box.inside(key)


def test_alpha_is_the_one_that_flags_most_of_the_skill_at_few_false_alarms():
    forget, retain = torch.linspace(0.2, 1.0, 50), torch.linspace(0.9, 3.0, 100)
    alpha, true, false = best_alpha(forget, retain)
    assert false <= 0.05
    assert true == pytest.approx((forget <= alpha).float().mean().item())
    assert true > 0.85
    assert best_alpha(torch.full((20,), 0.5), torch.full((20,), 50.0))[0] == pytest.approx(5.0, rel=0.13)  # the middle
    assert best_alpha(forget, retain, 0.5)[1] == 1.0


def test_a_box_that_can_not_tell_is_refused():
    with pytest.raises(DataError, match="the box can't tell the skill"):
        best_alpha(torch.full((20,), 3.0), torch.full((20,), 1.0))


def test_probes_that_are_all_the_same_make_no_box():
    with pytest.raises(DataError, match="all probes have the same key"):
        KeyBox.of_vectors(torch.ones(40, 3))
