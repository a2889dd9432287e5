"""What private training spends: epsilon by steps and noise, the noise for a target, and what other accountants say."""

import math

import pytest

from unwrite.errors import MethodError
from unwrite.forget.private.accounting import epsilon_of, noise_for, renyi_divergence, second_opinions

# By opacus 1.6.0 (compute_rdp, get_privacy_spent at its default orders) and dp-accounting 0.6.0 (PLDAccountant): q, sigma, steps,
# delta, then the two epsilons.
OTHERS = [
    (0.01, 1.1, 1000, 1e-5, 1.7117700912203435, 1.5153702482034066),
    (0.064, 0.8, 320, 1e-4, 12.095225815294746, 10.70764411018087),
    (0.004, 0.6, 2500, 1e-6, 6.7350001992144355, 5.7436409157874175),
    (0.1, 4.0, 500, 1e-5, 2.5488368682177476, 2.340722779902029),
    (1.0, 5.0, 10, 1e-5, 2.8136532471298397, 2.5943834404506636),
    (0.064, 0.5, 320, 1e-4, 38.67933686434222, 34.32068559605611),
]
# By opacus's get_noise_multiplier (accountant "rdp", tolerance 1e-4) at q = 0.064, 320 steps, delta 1e-5.
NOISE = {1.0: 4.78759765625, 8.0: 1.0420989990234375, 100.0: 0.365721732378006}


@pytest.mark.parametrize("case", OTHERS)
def test_epsilon_is_opacuss_and_never_below_what_dp_accounting_proves(case):
    *training, opacus, tight = case
    assert epsilon_of(*training) == pytest.approx(opacus, rel=1e-6)
    assert tight <= epsilon_of(*training)


@pytest.mark.parametrize("epsilon", NOISE)
def test_a_target_is_met_within_a_percent_and_never_passed(epsilon):
    sigma = noise_for(epsilon, 1e-5, 0.064, 320)
    assert sigma == pytest.approx(NOISE[epsilon], rel=2e-3)
    assert 0.99 * epsilon <= epsilon_of(0.064, sigma, 320, 1e-5) <= epsilon


def test_epsilon_grows_with_steps_and_falls_with_noise():
    steps = [epsilon_of(0.05, 1.0, n, 1e-5) for n in (1, 10, 100, 1000)]
    assert steps == sorted(steps)
    assert len({*steps}) == 4
    noise = [epsilon_of(0.05, sigma, 100, 1e-5) for sigma in (0.3, 0.5, 1.0, 4.0)]
    assert noise == sorted(noise, reverse=True)
    assert epsilon_of(0.05, 0.0, 1, 1e-5) == math.inf
    assert epsilon_of(0.05, 1.0, 0, 1e-5) == 0.0


def test_without_sampling_the_divergence_is_the_gaussians_own():
    assert renyi_divergence(1.0, 2.0, 5.0) == pytest.approx(5 / 8)
    assert renyi_divergence(1 - 1e-12, 2.0, 5.0) == pytest.approx(5 / 8, rel=1e-6)
    assert renyi_divergence(0.0, 2.0, 5.0) == 0.0
    two = math.log(1 + 0.01 * (math.exp(1) - 1))  # of order 2 in closed form
    assert renyi_divergence(0.1, 1.0, 2.0) == pytest.approx(two, rel=1e-9)


@pytest.mark.parametrize(("q", "sigma", "steps", "delta"), [(0.1, 1.0, 1, 0.0), (0.1, 1.0, 1, 1.0), (1.1, 1.0, 1, 1e-5), (0.1, -1.0, 1, 1e-5), (0.1, 1.0, -1, 1e-5)])  # fmt: skip
def test_an_account_of_what_is_no_training_is_refused(q, sigma, steps, delta):
    with pytest.raises(MethodError):
        epsilon_of(q, sigma, steps, delta)


def test_a_second_accountant_that_says_more_is_heard(monkeypatch):
    from unwrite.forget.private import accounting

    def missing(*_):
        raise ImportError

    monkeypatch.setattr(accounting, "_opacus", missing)
    monkeypatch.setattr(accounting, "_dp_accounting", missing)
    ours = epsilon_of(0.1, 1.0, 10, 1e-5)
    assert second_opinions(0.1, 1.0, 10, 1e-5) == {"unwrite": ours}
    monkeypatch.setattr(accounting, "_dp_accounting", lambda *_: 0.9 * ours)
    assert second_opinions(0.1, 1.0, 10, 1e-5)["dp-accounting"] == 0.9 * ours
    monkeypatch.setattr(accounting, "_opacus", lambda *_: 1.1 * ours)
    with pytest.raises(MethodError, match="the accountants disagree on sigma 1"):
        second_opinions(0.1, 1.0, 10, 1e-5)


@pytest.mark.parametrize(
    ("package", "name", "least"), [("opacus", "opacus", 1 - 1e-6), ("dp_accounting", "dp-accounting", 0.8)]
)
def test_an_accountant_that_is_installed_agrees(package, name, least):
    pytest.importorskip(package, reason=f"compares with {name}")
    opinions = second_opinions(0.064, 0.8, 320, 1e-4)
    assert least < opinions[name] / opinions["unwrite"] <= 1 + 1e-6
