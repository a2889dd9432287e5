"""MLP Memory's experiment: it runs, its controls are what they are called, and each check can fail for its own reason."""

import pytest
import torch

from unwrite.beds.budget import Budget
from unwrite.compress import KNNLM, MixtureScores, SparseTargets, score_rows
from unwrite.reproduce import mlp_memory as experiment
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

ROWS = torch.arange(4).repeat_interleave(2)
LOSSES = {
    experiment.BASE: 5.0,
    experiment.LONGER: 4.99,
    experiment.LARGER: 4.98,
    experiment.KNN: 4.9,
    experiment.RANDOM: 4.97,
    experiment.KL: 4.93,
    experiment.CE: 4.94,
    experiment.OWN: 4.92,
}


def arm(loss):
    return experiment.MemoryArm(MixtureScores(torch.full((8,), -loss), torch.zeros(8), ROWS), 0.0, 2.0)


def figures(distance=(0.5, 0.8), planted=(0.05, 0.6), grows=0.9, flat=0.01, **differs):
    losses = LOSSES | {getattr(experiment, name): loss for name, loss in differs.items()}
    return experiment.MemoryFigures(
        {name: [arm(loss)] * 3 for name, loss in losses.items()},
        {experiment.OWN: [distance[0]] * 3, experiment.CE: [distance[1]] * 3},
        planted,
        ([grows] * 5, [flat] * 5),
        {100: (0.1, 0.2)},
    )


@pytest.mark.parametrize(
    ("differs", "fails", "verdict"),
    [
        ({}, [], "reproduced"),
        ({"KNN": 5.1}, ["neighbours themselves"], "bed says nothing"),
        ({"planted": (0.2, 0.6)}, ["planted distributions"], "untested here"),
        ({"planted": (0.1, 0.15)}, ["dealt at random"], "untested here"),
        ({"distance": (0.9, 0.8)}, ["nearer to neighbours"], "untested here"),
        ({"OWN": 4.985, "CE": 4.99, "LARGER": 4.99, "RANDOM": 4.99}, ["2 % below"], "not reproduced"),
        ({"CE": 4.91}, ["as much as the next token alone"], "partly"),
        ({"grows": 0.4}, ["takes longer in a larger store"], "partly"),
        ({"flat": 0.3}, ["a memory does not"], "partly"),
        ({"LONGER": 4.9}, ["trained longer"], "not reproduced"),
        ({"LARGER": 4.9}, ["of as many weights"], "not reproduced"),
        ({"RANDOM": 4.9}, ["random neighbours"], "not reproduced"),
    ],
)
def test_each_check_can_fail_for_its_own_reason(differs, fails, verdict):
    checks = experiment.checks_of(figures(**differs))
    failed = [check.text for check in checks if check.holds is False]
    assert len(failed) == len(fails), failed
    assert all(part in text for part, text in zip(fails, failed, strict=True))
    assert verdict_of(checks) == verdict


def test_targets_that_are_dealt_are_the_same_ones_at_other_places():
    values = torch.arange(30).view(10, 3)
    targets = SparseTargets.of(values, torch.tensor([[0.5, 0.3, 0.2]]).expand(10, 3), 30)
    dealt = experiment.dealt(targets)
    at = torch.arange(10)
    before, after = targets.dense(at), dealt.dense(at)
    assert not torch.equal(before, after)
    assert torch.equal(before, after[after.argmax(1).argsort()])


def test_planted_distributions_are_learnt_from_neighbours_and_not_from_random_ones():
    near, far = experiment.planted()
    assert near <= experiment.PLANTED
    assert far - near >= experiment.APART


def test_a_rows_loss_is_the_mean_of_its_tokens_and_below_is_in_percent_of_the_base():
    scores = MixtureScores(torch.tensor([-1.0, -3.0, -5.0]), torch.zeros(3), torch.tensor([0, 0, 1]))
    assert experiment.MemoryArm(scores, 0.0, 1.0).rows.tolist() == [2, 5]
    assert figures().below(experiment.OWN)[0] == pytest.approx(100 * (1 - 2.718281828**-0.08), abs=1e-3)


def test_it_runs_within_a_tiny_budget_and_the_larger_base_has_as_many_weights():
    claim, record = run("mlp-memory", Budget("tiny", (0,)))
    assert list(claim.rows) == list(LOSSES)
    assert all(len(row) == len(experiment.COLUMNS) for row in claim.rows.values())
    assert len(claim.headline) <= HEADLINE
    assert record["verdict"] == "too small for a verdict"
    assert float(claim.rows[experiment.LARGER][3]) == pytest.approx(float(claim.rows[experiment.OWN][3]), rel=0.02)
    assert record["extra"]["temperature of neighbours"] in experiment.TEMPERATURES


def test_what_neighbours_say_of_the_next_token_is_what_the_datastore_says_beside_the_base():
    bed = experiment.MemoryBed(experiment.SCALES["tiny"])
    beside = score_rows(bed.base, KNNLM(bed.store, bed.scale.k, 16.0), bed.texts.blocks["test"])
    ours = bed.neighbours("test", 16.0)
    assert torch.allclose(ours.memory.exp(), beside.memory.exp(), atol=1e-4)
    assert torch.allclose(ours.base, beside.base, atol=1e-5)
    assert torch.equal(ours.rows, beside.rows)


def test_the_headline_fits_with_the_longest_figures():
    rows = dict.fromkeys(LOSSES, ("1.23e-05 +- 0.1",) * 4)
    assert len(experiment.headline(rows, {})) <= HEADLINE
