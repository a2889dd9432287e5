"""CUDA's experiment: each check can fail for its own reason, and arms differ in what they say they differ in."""

import numpy as np
import pytest
import torch

from unwrite.beds.budget import Budget
from unwrite.beds.protected_digits import ProtectedDigits, against_attacks, class_noise, relabelled
from unwrite.reproduce import cuda_ue
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of

GOOD = {
    cuda_ue.PLAIN: 98.0,
    cuda_ue.TIED: 24.0,
    cuda_ue.DEALT: 80.0,
    cuda_ue.ARMED: 32.0,
    cuda_ue.HALF: 80.0,
}


def trained(own=99.0, follows=15.0, **right):
    return cuda_ue.PublishedFigures(
        {**GOOD, **{getattr(cuda_ue, name): value for name, value in right.items()}}, own, follows
    )


@pytest.mark.parametrize(
    ("one", "fails"),
    [
        (trained(), []),
        (trained(PLAIN=94.0), ["as they are are learnt"]),
        (trained(own=80.0), ["filter of their class"]),
        (trained(follows=-1.0), ["followed more often"]),
        (trained(TIED=41.0, ARMED=41.0), ["under 40 %"]),
        (trained(DEALT=60.0), ["dealt at random"]),
        (trained(ARMED=70.0), ["against attacks"]),
        (trained(HALF=97.0), ["costs 10 points"]),
    ],
)
def test_each_check_fails_for_its_own_reason(one, fails):
    checks = cuda_ue.checks_of([one, one])
    failed = [check.text for check in checks if check.holds is not True]
    assert len(failed) == len(fails)
    assert all(words in text for words, text in zip(fails, failed, strict=True))
    assert (verdict_of(checks) == "reproduced") == (not fails)


def test_the_bed_is_the_cards_split_and_its_noise_is_tied_to_classes_alone():
    bed = ProtectedDigits.of(3, 1)
    assert (len(bed.train), len(bed.test)) == (1198, 599)
    noisy = class_noise(relabelled(bed.train, bed.train.target), 8, 0)
    change = torch.round(noisy.pixels * 255) - torch.round(bed.train.pixels * 255)
    inside = (bed.train.pixels > 0.1) & (bed.train.pixels < 0.9)
    assert (change[inside].abs() == 8).all()
    assert change.abs().max() == 8
    rows = (bed.train.target == 4).nonzero()[:2, 0]
    both = inside[rows].all(0)
    assert torch.equal(change[rows[0]][both].sign(), change[rows[1]][both].sign())


def test_who_trains_against_attacks_trains_on_other_pictures():
    bed = ProtectedDigits.of(0, 1)
    few = bed.train.subset(bed.train.index[:128])
    plain, armed = bed.attacker(few), bed.attacker(few, against_attacks(0.2, 2))
    other = bed.attacker(few, against_attacks(0.3, 2))
    heads = [model.head.weight.detach().numpy() for model in (plain, armed, other)]
    assert not np.allclose(heads[0], heads[1])
    assert not np.allclose(heads[1], heads[2])


def test_a_headline_fits_its_cell():
    rows = dict.fromkeys(GOOD, ("100.0 +- 10.0",))
    assert len(cuda_ue.headline(rows)) <= HEADLINE


@pytest.mark.slow
def test_it_runs_tiny():
    claim, record = run("cuda-ue", Budget("tiny", (0,)))
    assert claim.verdict == record["verdict"] == "too small for a verdict"
    assert len(claim.rows) == 16
    assert cuda_ue.headline(record["rows"]) == record["headline"]
