"""DMM's experiment: it runs, its forget sets are what they are called, and each check can fail for its own reason."""

import numpy as np
import pytest
import torch

from unwrite.beds.budget import Budget
from unwrite.reproduce import dmm
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

ARMS = (dmm.NOTHING, dmm.FLOOR, dmm.DIRECT, dmm.OWN, dmm.HEAD, dmm.EXCHANGED, dmm.OM, dmm.GD, dmm.GA, "SCRUB")


def figures(**differs):
    high = dict.fromkeys(ARMS, 5.0) | {dmm.FLOOR: 1.0, dmm.OM: 1.5, dmm.OWN: 2.0} | differs.pop("forget", {})
    kept = dict.fromkeys(ARMS, 1.0) | differs
    arms = {
        arm: {"forget": np.full(4, high[arm]), "retain": np.full(4, kept[arm]), "test": np.full(4, kept[arm])}
        for arm in ARMS
    }
    return {"component 1": arms, "random": arms}


@pytest.mark.parametrize(
    ("differs", "score", "fails", "verdict"),
    [
        ({}, 0.9, [], "reproduced"),
        ({"forget": {dmm.FLOOR: 4.5}}, 0.9, ["above the floor"], "bed says nothing"),
        ({}, 0.4, ["planted effects"], "untested here"),
        ({"forget": {dmm.OM: 6.0}}, 0.9, ["oracle matching is nearer"], "untested here"),
        ({"forget": {dmm.GD: 1.9}}, 0.9, ["nothing, descent, ascent"], "not reproduced"),
        ({"forget": {dmm.GA: 1.9}}, 0.9, ["nothing, descent, ascent"], "not reproduced"),
        ({"forget": {dmm.OWN: 3.5}}, 0.9, ["half of the way"], "partly"),
        ({dmm.OWN: 1.3}, 0.9, ["kept and unseen rows"], "partly"),
        ({"forget": {"SCRUB": 1.0}}, 0.9, ["by SCRUB"], "partly"),
        ({"forget": {dmm.EXCHANGED: 1.0}}, 0.9, ["exchanged"], "not reproduced"),
    ],
)
def test_each_check_can_fail_for_its_own_reason(differs, score, fails, verdict):
    checks = dmm._checks(figures(**dict(differs)), score)
    failed = [check.text for check in checks if check.holds is False]
    assert len(failed) == len(fails)
    assert all(part in text for part, text in zip(fails, failed, strict=True))
    assert verdict_of(checks) == verdict


def test_planted_effects_are_predicted():
    assert dmm.planted_score() > dmm.SCORE


def test_settings_are_chosen_on_a_component_that_is_not_reported():
    assert dmm.CHOOSING not in {seed % dmm.CHOOSING for seed in range(9)}


def test_the_ends_of_a_component_are_its_smallest_and_largest_rows():
    bed = dmm.DatamodelBed(dmm.SCALES["tiny"])
    bed.components = torch.linspace(-1, 1, len(bed.data.train))[:, None].expand(-1, 4)
    names = bed.data.train.index.tolist()
    assert set(bed.ends(0)) == {*names[:2], *names[-2:]}
    assert bed.drawn(1) == bed.drawn(1) != bed.drawn(2)


def test_it_runs_within_a_tiny_budget():
    claim, record = run("dmm", Budget("tiny", (0,)))
    assert set(claim.rows) == set(ARMS)
    assert all(len(row) == len(dmm.COLUMNS) for row in claim.rows.values())
    assert len(claim.headline) <= HEADLINE
    assert record["verdict"] == "too small for a verdict"
    assert set(record["extra"]["points"]) == {dmm.OWN, dmm.HEAD, dmm.EXCHANGED, dmm.OM, dmm.GD, dmm.GA, "SCRUB"}
