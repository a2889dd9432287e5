"""What the checks of the diffusion experiments make of figures: all hold where they should, and each can fail for its own reason."""

import numpy as np
import pytest
import torch

from unwrite.beds.denoising import Arm, Difference, gains, share
from unwrite.diffusion.parts.localleap import Settled
from unwrite.errors import DataError
from unwrite.reproduce import adablock, credit, learn2pd, localleap, parallelbench, prophet
from unwrite.reproduce.checks import verdict_of


def arm(right, nfe=(4.0, 4.0, 4.0, 4.0), work=None, name="arm"):
    nfe = np.array(nfe, dtype=float)
    return Arm(name, np.array(right, dtype=float), nfe, 88 * nfe if work is None else np.array(work, dtype=float))


def test_a_share_is_the_mean_over_pairs_with_its_interval_over_prompts():
    ours, theirs = np.array([1.0, 3.0]), np.array([2.0, 2.0])
    assert share([(ours, theirs)])[0] == 1.0
    assert share([(ours, theirs)])[1] == (0.5, 1.5)
    assert share([(ours, theirs), (theirs, 2 * theirs)])[0] == 0.75


def test_gains_are_points_by_prompt_on_average_over_pairs():
    one, none = arm([1, 1, 0, 0]), arm([0, 0, 0, 0])
    assert gains([(one, none)]).tolist() == [100, 100, 0, 0]
    assert gains([(one, none), (none, none)]).tolist() == [50, 50, 0, 0]
    with pytest.raises(DataError, match="run on 4 and 3 prompts"):
        gains([(one, arm([1, 1, 1]))])


def test_how_p_final_falls_with_distance():
    seen = np.zeros((5, 9))
    seen[2:4, 1:] = 1000
    final = seen.copy()
    final[2:4, 1:] *= np.linspace(0.9, 0.55, 8)
    slope, (low, high) = localleap._falls(Settled(torch.tensor(final), torch.tensor(seen)))
    assert slope == pytest.approx(-0.05)
    assert low < slope < high < -0.04
    assert localleap._falls(Settled(torch.zeros(5, 9), torch.zeros(5, 9)))[0] == 0.0


AHEAD, LEVEL, BEHIND = Difference(1.0, 0.5, 1.5), Difference(0.0, 0.0, 0.0), Difference(-2.0, -3.0, -1.5)


@pytest.mark.parametrize(
    ("left", "plain", "lower", "random", "falls", "verdict"),
    [
        (0.8, LEVEL, AHEAD, AHEAD, -1.0, "reproduced"),
        (1.1, LEVEL, AHEAD, AHEAD, -1.0, "not reproduced"),
        (0.8, BEHIND, AHEAD, AHEAD, -1.0, "partly"),
        (0.8, LEVEL, BEHIND, AHEAD, -1.0, "not reproduced"),
        (0.8, LEVEL, AHEAD, LEVEL, -1.0, "not reproduced"),  # random neighbours do as well
        (0.8, LEVEL, AHEAD, AHEAD, 1.0, "partly"),
    ],
)
def test_localleap_needs_its_neighbours_to_be_near(left, plain, lower, random, falls, verdict):
    ahead = {"plain": plain, "lower": lower, "random": random}
    assert verdict_of(localleap._checks((left, (left, left)), ahead, (falls, (falls, falls)))) == verdict


@pytest.mark.parametrize(
    ("left", "loss", "after", "random", "known", "verdict"),
    [
        (0.6, LEVEL, AHEAD, AHEAD, (1, 0), "reproduced"),
        (0.8, LEVEL, AHEAD, AHEAD, (1, 0), "not reproduced"),
        (0.6, BEHIND, AHEAD, AHEAD, (1, 0), "partly"),
        (0.6, LEVEL, LEVEL, AHEAD, (1, 0), "not reproduced"),
        (0.6, LEVEL, AHEAD, LEVEL, (1, 0), "not reproduced"),
        (0.6, LEVEL, AHEAD, AHEAD, (0, 0), "partly"),
        (0.6, LEVEL, AHEAD, AHEAD, (1, 1), "partly"),
    ],
)
def test_prophet_needs_more_than_a_fixed_or_random_stop(left, loss, after, random, known, verdict):
    settled = {name: [float(one)] * 20 for name, one in zip(("anchor", "no anchor"), known, strict=True)}
    assert (
        verdict_of(prophet._checks((left, (left, left)), loss, {"after": after, "random": random}, settled)) == verdict
    )


def credit_figures(forwards=3.0, right=1.0, matched=0.5, wait=1.0):
    ours = arm([right] * 4, [forwards] * 4)
    delays = {"plain": np.full(50, 2.0), "credit": np.full(50, wait)}
    return [(ours, arm([1] * 4))], [(ours, arm([matched] * 4))], delays


@pytest.mark.parametrize(
    ("differs", "verdict"),
    [
        ({}, "reproduced"),
        ({"forwards": 3.8}, "not reproduced"),
        ({"right": 0.9}, "partly"),
        ({"matched": 1.01}, "not reproduced"),
        ({"wait": 3.0}, "partly"),
    ],
)
def test_credit_needs_more_than_a_lower_threshold(differs, verdict):
    assert verdict_of(credit._checks(*credit_figures(**differs))) == verdict


def learn2pd_arms(ours=20.0, oracle=10.0, cut=15.0):
    nfe = {"one token a step": 64.0, "filter 0.96": ours, "oracle": oracle}
    nfe |= {f"threshold {bar:g}": 25.0 for bar in learn2pd.THRESHOLDS}
    arms = {name: arm([1] * 4, [count] * 4) for name, count in nfe.items()}
    return arms | {"filter 0.96, EoTP": arm([1] * 4, [cut / 2, cut / 2, cut, cut])}


SHORTER = np.array([True, True, False, False])


@pytest.mark.parametrize(
    ("differs", "loss", "matched", "shorter", "verdict"),
    [
        ({}, LEVEL, AHEAD, SHORTER, "reproduced"),
        ({"oracle": 18.0}, LEVEL, AHEAD, SHORTER, "bed says nothing"),
        ({"ours": 40.0}, LEVEL, AHEAD, SHORTER, "not reproduced"),
        ({}, BEHIND, AHEAD, SHORTER, "partly"),
        ({}, LEVEL, BEHIND, SHORTER, "not reproduced"),
        ({"cut": 30.0}, LEVEL, AHEAD, SHORTER, "partly"),
        ({}, LEVEL, AHEAD, ~SHORTER, "partly"),
    ],
)
def test_learn2pd_needs_room_below_the_threshold(differs, loss, matched, shorter, verdict):
    assert verdict_of(learn2pd._checks(learn2pd_arms(**differs), loss, matched, shorter)) == verdict


def figure(right, speed=1.0):
    return parallelbench.Figure(right, (right, right), speed)


@pytest.mark.parametrize(
    ("differs", "verdict"),
    [
        ({}, "reproduced"),
        ({"predicted": False}, "untested here"),
        ({"off": 6.0}, "not reproduced"),
        ({"flat": 94.0}, "partly"),
        ({"swapped": 6.0}, "partly"),
        ({"sure": 94.0}, "partly"),
        ({"speed": 1.2}, "partly"),
    ],
)
def test_parallelbenchs_conditions(differs, verdict):
    given = {"predicted": True, "off": 1.0, "flat": 99.0, "swapped": 0.0, "sure": 99.0, "speed": 1.0} | differs
    compared = {"in random order": [(figure(50.0 + given["off"]), figure(50.0))]}
    rest = [figure(given["flat"])], [figure(given["swapped"])], figure(given["sure"], given["speed"])
    assert verdict_of(parallelbench._checks(given["predicted"], compared, *rest)) == verdict


def ahead_of(dual, none, drawn, prompts=20):
    """Points ahead of fixed blocks on every prompt: AdaBlock's with and without a cache, drawn blocks' with either."""
    points = {("ada", "dual"): dual, ("ada", "none"): none, ("drawn", "dual"): drawn, ("drawn", "none"): drawn}
    return {key: np.full(prompts, value) for key, value in points.items()}


@pytest.mark.parametrize(
    ("points", "forwards", "verdict"),
    [
        ((3.0, 2.0, 1.0), 8.0, "reproduced"),
        ((-1.0, 2.0, -2.0), 8.0, "not reproduced"),
        ((3.0, -1.0, 0.5), 8.0, "partly"),
        ((2.0, 3.0, 1.0), 8.0, "partly"),  # less with a cache
        ((3.0, 2.0, 2.5), 8.0, "not reproduced"),  # drawn boundaries do as well
        ((3.0, 2.0, 1.0), 12.0, "partly"),
    ],
)
def test_adablock_needs_its_boundaries_to_be_where_lines_end(points, forwards, verdict):
    small = [(np.full(20, forwards), np.full(20, 10.0))]
    assert verdict_of(adablock._checks(ahead_of(*points), small)) == verdict
