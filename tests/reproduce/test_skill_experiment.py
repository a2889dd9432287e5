"""The bed of two skills, and what the verdict on the guards of skills rests on, on made-up figures and on a model that can do nothing."""

import pytest
import torch

from helpers.tiny import make_llama
from unwrite.beds.budget import Budget
from unwrite.beds.skills import SKILLS, calls, skill_bed, sums
from unwrite.reproduce import base
from unwrite.reproduce.base import HEADLINE
from unwrite.reproduce.checks import verdict_of
from unwrite.reproduce.skill import (
    ADJUST,
    KSD,
    LOGISTIC,
    PROMPT,
    RANDOM,
    SAME,
    SELECTIVE,
    Logistic,
    SkillTable,
    _checks,
    headline,
    named,
)


def table(
    *, before=0.98, ksd=(0.95, 0.02), adjust=(0.5, 0.05), random=0.1, selective=0.3, prompt=0.0, refused=0.02, **more
):
    """Shares that each arm takes, of (the forgotten, the kept) skill."""
    made = SkillTable(**more)
    arms = {
        "nothing": (0.0, 0.0), KSD: ksd, LOGISTIC: ksd, PROMPT: (prompt, 0.0), named(ADJUST): adjust,
        named(SAME): adjust, named(RANDOM): (random, random), named(SELECTIVE): (0.6, selective),
    }  # fmt: skip
    for arm, (forgotten, kept) in arms.items():
        for skill in SKILLS:
            for seed in (0, 1):
                made.forgotten[arm, skill, seed] = before * (1 - forgotten)
                made.kept[arm, skill, seed] = before * (1 - kept)
                made.texts[arm, skill, seed] = 3.0
                made.refused[arm, skill, seed] = refused
    return made


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "reproduced"),
        ({"before": 0.8}, "bed says nothing"),
        ({"probes": False}, "untested here"),
        ({"unchanged": False}, "untested here"),
        ({"ksd": (0.7, 0.02)}, "not reproduced"),
        ({"prompt": 0.97}, "not reproduced"),
        ({"ksd": (0.95, 0.2)}, "partly"),
        ({"refused": 0.2}, "partly"),
        ({"random": 0.3}, "partly"),
        ({"selective": 0.04}, "partly"),
        ({"adjust": (0.97, 0.05)}, "partly"),
    ],
)
def test_the_verdict_follows_from_both_skills_and_the_controls(given, verdict):
    assert verdict_of(_checks(table(**given))) == verdict


def test_a_row_and_the_headline_say_what_is_lost():
    made = table()
    rows = {arm: made.row(arm) for arm in (KSD, named(ADJUST))}
    assert rows[KSD][1] == "0.95 +- 0"
    assert "KSD 0.95 and 0.02, Neuron Adjust 0.5 and 0.05" in headline(rows, {})
    longest = {arm: ["1.23e-05 +- 0.1"] * 6 for arm in rows}
    assert len(headline(longest, {})) <= HEADLINE


def test_sums_have_no_carry_and_calls_print_what_they_hold():
    for row in sums(50, 0):
        first, second = (side.split() for side in row.question.removeprefix("add ").split(" + "))
        assert [int(a) + int(b) for a, b in zip(first, second, strict=True)] == [int(c) for c in row.answer.split()]
    assert all(row.question == f"print ( {row.answer} )" for row in calls(50, 0))


def test_rows_that_are_trained_on_probed_with_and_asked_are_others():
    bed = skill_bed(train=48, probes=48, asked=8, texts=8, epochs=1)
    for skill, make in zip(SKILLS, (sums, calls), strict=True):
        parts = [make(48, 0), bed.probe_rows(skill), bed.asked_rows(skill)]
        questions = [row.question for rows in parts for row in rows]
        assert len({*questions}) == len(questions) == 48 + 48 + 8


def test_the_logistic_regression_refuses_under_the_same_rule():
    model = make_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[10:20] += 1
    forget, retain = ([[5, a, b] for a in tokens for b in tokens] for tokens in (range(10, 20), range(20, 30)))
    guard = Logistic.fit(model, forget, retain, 0)
    assert guard.rates[0] > 0.9
    assert guard.rates[1] <= 0.05
    assert sum(guard.refuses(model, forget)) > 85
    assert sum(guard.refuses(model, retain)) < 10


def test_the_experiment_runs_tiny():
    claim, record = base.run("skill", Budget("tiny"))
    assert record["verdict"] == "too small for a verdict"
    assert {*claim.rows} == {
        "nothing", KSD, LOGISTIC, PROMPT, *(named(arm) for arm in (ADJUST, SAME, SELECTIVE, RANDOM))
    }  # fmt: skip
    assert claim.holds["at alpha 1 every probe is refused"]
    assert claim.holds["weights and logits of the target are the same to the bit afterwards"]
