"""S3T's experiment: deletions are played on kept answers as the ledger would have them, and each check can fail for its own reason."""

import pytest
import torch

from unwrite.beds.budget import Budget
from unwrite.beds.sharded_digits import ShardedDigits
from unwrite.data.images.images import Images
from unwrite.forget.sharded.orders import prefixes
from unwrite.reproduce import s3t
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

SCALE = s3t.Scale(2, 2, (1, 2), 1, 1, 200, (1e-3,))


def bed_of(rows=10):
    images = Images(torch.zeros(rows, 1, 8, 8), torch.zeros(rows, dtype=torch.long), classes=tuple("abcde"))
    return ShardedDigits(torch.nn.Identity(), images, images)


def arm_of(orders, right, whole_only=False):
    """Answers of which so many of ten are right, by the number of slices."""
    answers = {}
    for shard in (0, 1):
        for prefix in prefixes(orders):
            logits = torch.zeros(10, 5)
            logits[: right[len(prefix)], 0] = 1
            logits[right[len(prefix)] :, 1] = 1
            answers[shard, prefix] = logits
    return s3t.DeletionArm(orders, answers, whole_only, 0.0, 1.0)


def test_a_stream_is_played_until_no_shard_answers():
    stream = [(0, 1), (1, 0), (0, 1), (0, 0), (1, 1)]
    one = arm_of(((0, 1),), {1: 5, 2: 9})
    # After (0, 1) shard 0 has one slice left; the mean of 5 and 9 right is 9 or 5, by the tie of the rows between.
    path = one.play(bed_of(), stream, 2)
    assert path[0] == 90
    assert len(path) == 4  # (1, 0) kills shard 1, the fourth shard 0
    assert path[2] == path[3] == 50
    two = arm_of(((0, 1), (1, 0)), {1: 5, 2: 9})
    assert len(two.play(bed_of(), stream, 2)) == 5
    assert len(arm_of(((0, 1),), {1: 5, 2: 9}, whole_only=True).play(bed_of(), stream, 2)) == 2


def test_deletions_are_counted_as_long_as_accuracy_is_kept():
    one = s3t.Played.of(
        arm_of(((0, 1),), {1: 5, 2: 9}), bed_of(), [[(0, 0), (1, 1), (1, 0)], [(0, 1), (0, 0), (1, 0)]], 2
    )
    assert one.start == 90
    assert one.life == 2
    assert one.kept[2.0] <= one.kept[5.0] <= one.life
    assert 20 < one.mean < 90


def played(start=93.0, kept=20.0, life=37.0, mean=80.0, seconds=0.0):
    return s3t.Played(start, {2.0: kept, 5.0: kept}, life, mean, seconds, 10.0)


def found(**differs):
    parts = {
        "few": played(kept=10, life=22),
        "many": played(),
        "sisa": played(kept=10, life=22, mean=60, seconds=1.0),
        "ordinary": 94.0,
        "one slice": 60.0,
        "exact": True,
    } | differs
    measurements = {"S3T, B=1": [parts["few"]], "S3T, B=2": [parts["many"]], "SISA": [parts["sisa"]]}
    return s3t._checks(SCALE, measurements, [parts["ordinary"]], [parts["one slice"]], parts["exact"])


@pytest.mark.parametrize(
    ("differs", "fails"),
    [
        ({}, []),
        ({"many": played(kept=14)}, ["keeps within 2 points"]),
        ({"many": played(life=30)}, ["answers 1.5 times as long"]),
        ({"many": played(mean=50)}, ["better than SISA"]),
        ({"ordinary": 97.0}, ["points behind ordinary LoRA"]),
        ({"sisa": played(mean=60)}, ["where SISA trains"]),
        ({"exact": False}, ["bit for bit"]),
        ({"one slice": 92.5}, ["a first slice alone"]),
        ({"ordinary": 40.0}, ["above chance"]),
    ],
)
def test_each_check_fails_for_its_own_reason(differs, fails, monkeypatch):
    monkeypatch.setattr(s3t, "_simulated", lambda scale: (True, ([2.0, 3.0], [1.0, 1.0])))
    checks = found(**differs)
    failed = [check.text for check in checks if check.holds is not True]
    assert len(failed) == len(fails)
    assert all(words in text for words, text in zip(fails, failed, strict=True))
    assert (verdict_of(checks) == "reproduced") == (not fails)


def test_orders_drawn_at_random_die_sooner_than_rotations():
    agree, (rotated, random) = s3t._simulated(s3t.SCALES["small"])
    assert agree
    assert sum(rotated) / len(rotated) > sum(random) / len(random) + 2


def test_a_headline_fits_its_cell():
    rows = {"S3T, B=1": ("100", "123.4 +- 1"), "S3T, B=4": ("100", "123.4 +- 1")}
    assert len(s3t.headline(rows, {"budgets": [1, 4]})) <= HEADLINE


@pytest.mark.slow
def test_it_runs_tiny():
    claim, record = run("s3t", Budget("tiny", (0,)))
    assert claim.verdict == record["verdict"] == "too small for a verdict"
    assert {name: len(row) for name, row in claim.rows.items()} == dict.fromkeys(claim.rows, len(s3t.COLUMNS))
    held = {check.text: check.holds for check in claim.checks}
    assert held["trainings that differ in a deleted slice answer alike, bit for bit"]
    assert held["a deletion trains nothing, where SISA trains"]
    assert s3t.headline(record["rows"], record["extra"]) == record["headline"]
