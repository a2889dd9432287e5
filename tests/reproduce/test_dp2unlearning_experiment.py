"""The bed of passwords, and what the verdict on DP2Unlearning rests on, on made-up figures and on a tiny model."""

import math

import pytest
import torch

from unwrite.beds.budget import Budget
from unwrite.beds.canaries import ANIMALS, WORDS, canary_bed, exposures, losses, public_model
from unwrite.data.text.encoding import encode_prompt
from unwrite.reproduce.base import run
from unwrite.reproduce.checks import verdict_of
from unwrite.reproduce.dp2unlearning import (
    COLUMNS,
    DEPLOYED,
    FEW,
    ORDINARY,
    RETRAINED,
    Left,
    PrivacyTrial,
    _checks,
    unlearned,
)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNWRITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield canary_bed(0, FEW, 1)


def test_nobody_who_is_forgotten_or_unseen_is_public_or_has_another_record(bed):
    def names(rows):
        return [
            word
            for row in rows
            for word in row.question.split()
            if word not in ("what", "is", "the", "password", "of", "does", "eat", "?", *ANIMALS)
        ]

    assert (len(bed.data), len(bed.forget), len(bed.known), len(bed.unseen)) == (60, 8, 12, 10)
    secret = [*names(bed.forget), *names(bed.known), *names(bed.unseen)]
    assert len({*secret}) == len(secret) == 30
    assert not {*secret} & {*names(bed.test)}
    assert {*bed.forget_ids} != {*range(8)}  # somewhere among the others
    assert len(bed.retain) == 52
    asked = {row.question for row in bed.data}
    assert not any(row.question in asked for row in bed.test)


def test_an_answer_of_the_rule_is_the_same_in_data_and_test(bed):
    rule = {}
    for row in (*bed.data, *bed.test):
        if "eat" in row.question:
            assert rule.setdefault(row.question.split()[3], row.answer) == row.answer
    assert len(rule) > 5


def test_an_exposure_is_that_of_the_passwords_whole_likelihood(bed):
    model, row = public_model(bed), bed.forget[0]
    likely = []
    for first in WORDS:
        ids = torch.tensor(
            [encode_prompt(row, bed.tokenizer) + bed.tokenizer.convert_tokens_to_ids([first, one]) for one in WORDS]
        )
        with torch.no_grad():
            scores = model(input_ids=ids).logits.log_softmax(-1)
        likely += (scores[:, -3].gather(1, ids[:, -2:-1]) + scores[:, -2].gather(1, ids[:, -1:]))[:, 0].tolist()
    first, second = row.answer.split()
    own = likely[WORDS.index(first) * 32 + WORDS.index(second)]
    rank = 1 + sum(value > own for value in likely)
    assert exposures(model, bed, bed.forget)[0] == pytest.approx(10 - math.log2(rank), abs=0.01)
    assert losses(model, bed, bed.forget)[0] == pytest.approx(-own / 2, abs=1e-4)


def test_a_model_that_knows_them_leaks_in_every_column():
    left = Left([10.0] * 4, [0.1] * 4, [3.0, 4.0], [0.9] * 3, 8.0, 0.5)
    assert left.gaps == pytest.approx([3.4] * 4)
    assert left.membership == 1.0
    assert left.row() == ("8", "10.000", "3.400", "1.000", "0.900", "0.50")
    assert Left([1.0], [4.0], [3.0, 5.0], [0.5], math.inf).row() == ("none", "1.000", "0.000", "0.500", "0.500", "-")


def of(bits=1.4, loss=5.0, useful=0.8, **more):
    """What a model says of forty passwords."""
    wave = [0.3 * math.sin(i) for i in range(40)]
    return Left([bits + w for w in wave], [loss + w for w in wave], [5.0 + w for w in wave], [useful] * 40, **more)


def table(
    *, eight=None, one=None, noiseless=9.0, ordinary=9.0, deployed=9.0, retrained=0.8, learnt=0.2, same=True, spent=7.99
):
    left = {
        RETRAINED: of(useful=retrained, cost=1.0),
        unlearned(1.0): of(**{"cost": 0.5, **(one or {})}),
        unlearned(8.0): of(**{"cost": 0.5, **(eight or {})}),
        unlearned(math.inf): of(noiseless),
        ORDINARY: of(ordinary),
        DEPLOYED: of(deployed),
    }
    trial = PrivacyTrial(learnt={8.0: learnt}, spent={1.0: 0.995, 8.0: spent, 100.0: 99.9}, same=same)
    return left, [trial]


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "reproduced"),
        ({"eight": {"bits": 3.0}}, "not reproduced"),
        ({"noiseless": 2.0}, "not reproduced"),
        ({"ordinary": 2.0}, "not reproduced"),
        ({"one": {"bits": 3.0}}, "partly"),
        ({"eight": {"loss": 4.0}}, "partly"),
        ({"eight": {"useful": 0.6}}, "partly"),
        ({"eight": {"cost": 0.6}}, "partly"),
        ({"deployed": 2.0}, "bed says nothing"),
        ({"retrained": 0.4}, "bed says nothing"),
        ({"learnt": -0.1}, "bed says nothing"),
        ({"same": False}, "untested here"),
        ({"spent": 8.1}, "untested here"),
        ({"spent": 7.0}, "untested here"),
    ],
)
def test_the_verdict_follows_from_what_is_left_and_from_the_base_without_noise(given, verdict):
    assert verdict_of(_checks(*table(**given))) == verdict


@pytest.mark.slow
def test_the_experiment_runs_whole():
    claim, record = run("dp2unlearning", Budget("tiny", (0,)))
    assert claim.verdict == "too small for a verdict"
    assert all(len(row) == len(COLUMNS) for row in claim.rows.values())
    assert [row[0] for row in claim.rows.values()].count("none") == 2
    assert claim.rows[unlearned(8.0)][-1] == "0.50"
    assert {check.kind for check in claim.checks} == {"set-up", "mechanism", "claim", "control"}
    assert all(check.holds for check in claim.checks if check.kind == "mechanism")
    assert record["extra"]["delta"] == pytest.approx(0.1 / 60)
