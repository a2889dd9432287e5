"""The worst-case experiment: it runs whole on a short bed, and each condition can fail."""

from dataclasses import replace

import pytest
import torch

from unwrite.beds import worst_case as bed
from unwrite.beds.budget import Budget
from unwrite.beds.images import Measured
from unwrite.data.images.sets import TrainTest
from unwrite.reproduce import worst_case
from unwrite.reproduce.base import run
from unwrite.reproduce.checks import verdict_of

WHOLE = bed.noisy_digits


def few(seed):
    data = WHOLE(seed)
    return TrainTest(*(part.subset(part.index[:200]) for part in (data.train, data.test)))


@pytest.fixture
def short(monkeypatch):
    for name, like in bed._LIKE.items():
        monkeypatch.setitem(bed._LIKE, name, replace(like, data=few, epochs=1, net={**like.net, "width": 4}))
    made = bed.worst_case_bed("digits/worst-case", bed._LIKE["digits/worst-case"])
    monkeypatch.setitem(bed.BEDS, "digits/worst-case", made)


def test_it_runs_whole(short):
    claim, _ = run("worst-case", Budget("tiny", (0,)))
    names = {worst_case.WORST, worst_case.EASY, worst_case.RANDOM, worst_case.BEFORE, worst_case.UNTRAINED, "low-loss"}
    assert names <= set(claim.rows)
    assert all(len(row) == len(claim.columns) for row in claim.rows.values())
    assert claim.verdict == "too small for a verdict"
    assert len(claim.checks) == 9


def test_random_sets_of_a_seed_differ_and_share_its_holdout(short):
    like = bed.bed_named("digits/worst-case")
    one, same, other = (worst_case._split(like, torch.nn.Identity(), "random", 0, draw) for draw in (0, 0, 1))
    assert one.hash == same.hash
    assert len(one.forget) == len(other.forget)
    assert {*one.forget.index.tolist()} != {*other.forget.index.tolist()}
    assert one.holdout.hash == other.holdout.hash
    assert one.train.hash == other.train.hash


def measured(ua, noise=10.0, ta=95.0):
    return [Measured({"UA": ua, "swapped": noise, "TA": ta}, 0.0)]


def found(**differs):
    figures = {
        worst_case.RANDOM: (12.0, 9.0, 95.0), worst_case.WORST: (0.0, 1.0, 95.0), worst_case.EASY: (90.0, 80.0, 95.0),
        worst_case.UNTRAINED: (11.0, 9.0, 95.0), "low-loss": (1.0, 0.0, 95.0),
    }  # fmt: skip
    names = {"random": worst_case.RANDOM, "worst": worst_case.WORST, "easy": worst_case.EASY,
             "untrained": worst_case.UNTRAINED, "lowest": "low-loss"}  # fmt: skip
    return {
        name: measured(*one) for name, one in (figures | {names[key]: value for key, value in differs.items()}).items()
    }


@pytest.mark.parametrize(
    ("differs", "failed", "verdict"),
    [
        ({}, [], "reproduced"),
        ({"random": (4.9, 9.0, 95.0), "untrained": (4.0, 9.0, 95.0)}, [0], "bed says nothing"),
        ({"worst": (0.0, 9.0, 95.0)}, [2], "untested here"),
        ({"easy": (90.0, 9.0, 95.0)}, [3], "untested here"),
        ({"worst": (4.0, 1.0, 95.0), "lowest": (5.0, 0.0, 95.0)}, [4], "not reproduced"),
        ({"easy": (11.0, 80.0, 95.0)}, [5], "partly"),
        ({"worst": (0.0, 1.0, 93.9)}, [6], "partly"),
        ({"lowest": (0.0, 0.0, 95.0)}, [7], "partly"),
        ({"untrained": (5.9, 9.0, 95.0)}, [8], "not reproduced"),
    ],
)
def test_each_condition_can_fail(differs, failed, verdict):
    checks = worst_case._checks(found(**differs), [2.0], [1.0])
    assert [number for number, check in enumerate(checks) if check.holds is False] == failed
    assert verdict_of(checks) == verdict


def test_the_worst_set_lies_two_spreads_below_the_random_ones():
    assert worst_case._checks(found(), [5.9], [1.0])[4].holds
    assert not worst_case._checks(found(), [6.1], [1.0])[4].holds


def test_a_lower_level_that_wrecks_the_model_is_no_bed():
    checks = worst_case._checks(found(), [2.0], [2.1])
    assert [number for number, check in enumerate(checks) if check.holds is False] == [1]
    assert verdict_of(checks) == "bed says nothing"
