"""Concept poisoning's experiment: its figures decide as they should, and each check can fail for its own reason."""

import pytest

from unwrite.beds.budget import Budget
from unwrite.beds.images import Measured
from unwrite.beds.ten_authors import ten_authors_bed
from unwrite.reproduce import concept_poison as experiment
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

MODES, LABELS = ("localized", "center", "random", "full", "none"), ("targeted", "random", "keep")
PLAIN = dict.fromkeys(experiment.METRICS, 0.0) | {"TA": 98.0, "probe": 10.0}


def figures(**differs):
    """Arms in which the paper is right and localising matters, but for what differs: {arm: {metric: value}}."""
    arms = {f"{mode}, {labels}": dict(PLAIN) for mode in MODES for labels in LABELS}
    for mode in MODES:
        arms[f"{mode}, keep"]["forget_accuracy"] = 99.0
    arms["full, targeted"]["forget_accuracy"] = 90.0
    for control in ("random, targeted", "none, targeted"):
        arms[control]["forget_accuracy"] = 20.0
    for name in (experiment.BEFORE, experiment.RETRAINED, experiment.SHRINK):
        arms[name] = dict(PLAIN)
    arms[experiment.BEFORE]["forget_accuracy"] = 97.0
    for arm, values in differs.items():
        arms[arm] |= values
    return {name: [Measured(values, 1.0)] * 3 for name, values in arms.items()}


def said(**differs):
    names = {
        experiment.TARGET: 90.0,
        experiment.ORACLE: 10.0,
        experiment.GRADIENTS: 20.0,
        experiment.DRAWN: 40.0,
        experiment.FREQUENT: 30.0,
    } | differs
    return {arm: [(value, 0.0, 0.0)] * 3 for arm, value in names.items()}


OWN = experiment.OWN


@pytest.mark.parametrize(
    ("differs", "found", "texts", "fails", "verdict"),
    [
        ({}, 1.0, {}, [], "reproduced"),
        ({experiment.BEFORE: {"forget_accuracy": 60.0}}, 1.0, {}, ["knows the class"], "bed says nothing"),
        ({}, 0.5, {}, ["planted marks"], "untested here"),
        ({"full, keep": {"forget_accuracy": 50.0}}, 1.0, {}, ["kept labels"], "untested here"),
        ({OWN: {"forget_accuracy": 9.0}}, 1.0, {}, ["end the class"], "not reproduced"),
        ({OWN: {"test_forget_accuracy": 9.0}}, 1.0, {}, ["unseen rows of the class"], "partly"),
        ({OWN: {"TA": 95.0}, experiment.BEFORE: {"TA": 98.0}}, 1.0, {}, ["others lose"], "partly"),
        ({"full, targeted": {"forget_accuracy": 0.0}}, 1.0, {}, ["whole donor picture"], "partly"),
        ({}, 1.0, {experiment.GRADIENTS: 60.0, experiment.FREQUENT: 70.0}, ["random words"], "partly"),
        ({}, 1.0, {experiment.ORACLE: 80.0}, ["retrained ones do"], "partly"),
        ({"random, targeted": {"forget_accuracy": 0.0}}, 1.0, {}, ["random places"], "not reproduced"),
        ({"none, targeted": {"forget_accuracy": 0.0}}, 1.0, {}, ["label alone"], "not reproduced"),
        ({}, 1.0, {experiment.FREQUENT: 10.0}, ["most frequent words"], "not reproduced"),
        ({OWN: {"probe": 90.0}}, 1.0, {}, ["a probe"], "not reproduced"),
    ],
)
def test_each_check_can_fail_for_its_own_reason(differs, found, texts, fails, verdict):
    checks = experiment._checks(figures(**differs), [found] * 3, said(**texts))
    failed = [check.text for check in checks if check.holds is False]
    assert len(failed) == len(fails)
    assert all(part in text for part, text in zip(fails, failed, strict=True))
    assert verdict_of(checks) == verdict


def test_rates_are_chosen_on_a_seed_that_is_not_reported():
    assert experiment.CHOOSING_SEED not in Budget().seeds


def test_two_authors_are_forgotten_and_two_others_for_tuning():
    bed = ten_authors_bed(1)
    reported, tuning = bed.split(), bed.other()
    gone = [{row.entity for row in split.forget} for split in (reported, tuning)]
    assert [len(one) for one in gone] == [2, 2]
    assert not gone[0] & gone[1]
    everyone = [{row.key for row in (*split.forget, *split.retain)} for split in (reported, tuning)]
    assert everyone[0] == everyone[1]


@pytest.mark.slow
def test_the_experiment_runs_whole():
    claim, _ = run("concept-poison", Budget("tiny", (0,)))
    assert {experiment.OWN, experiment.RETRAINED, "none, keep"} <= set(claim.rows)
    assert all(len(row) == len(claim.columns) for row in claim.rows.values())
    assert len(claim.headline) <= HEADLINE
