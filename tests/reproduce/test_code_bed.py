"""Planted secrets in real code: where they stand, that modules don't mix, and which rate is taken."""

import pytest

from unwrite.beds.code import PER_MODULE, passages, planted
from unwrite.beds.language import small_tokenizer
from unwrite.data import Examples, detect_secrets
from unwrite.data.text.encoding import encode_all
from unwrite.reproduce.codeeraser import Erased, _checks, at_random, best, found
from unwrite.scoring import Thresholds


@pytest.fixture(scope="module")
def rows():
    from random import Random

    random = Random(1)
    return Examples([planted(text, random) for text in passages(0)[0][:6]])


def test_learnt_and_unseen_passages_share_nothing_and_are_the_same_again():
    seen, others = passages(0)
    assert len(seen) >= 160
    assert len(others) >= 300
    assert not set(seen) & set(others)
    assert passages(0) == (seen, others)
    assert PER_MODULE >= 1
    assert not any(detect_secrets(text) for text in seen[:32])


def test_a_key_and_an_address_are_planted_and_the_detector_finds_exactly_them(rows):
    assert found(rows) == 1.0
    assert all([one.tag for one in detect_secrets(row.answer)].count("KEY") == 1 for row in rows)
    assert len({row.answer[start:end] for row in rows for start, end in row.marked}) == 2 * len(rows)


def test_random_places_are_as_many_tokens_and_none_of_a_secret(rows):
    tokenizer = small_tokenizer([row.answer for row in rows], 400)
    places = at_random(rows, tokenizer, 0)
    for real, moved in zip(encode_all(rows, tokenizer), encode_all(places, tokenizer), strict=True):
        assert real.input_ids == moved.input_ids
        assert sum(real.marked) == sum(moved.marked)
        assert not any(one and other for one, other in zip(real.marked, moved.marked, strict=True))


def outcome(secret=0.0, around=0.9, nll=3.0, retained=0.9, gone=True):
    return Erased((secret,) * 4, (0.0,) * 4, (around,) * 4, (retained,) * 4, (nll,) * 4, 3, gone)


def test_the_rate_is_the_one_that_keeps_most_of_those_that_forget():
    tuned = {1e-4: outcome(0.5, 1.0, gone=False), 3e-4: outcome(0.1, 0.8), 1e-3: outcome(0.0, 0.3)}
    assert best(tuned) == 3e-4
    assert best({1e-4: outcome(0.5, gone=False), 3e-4: outcome(0.4, gone=False)}) == 3e-4


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "reproduced"),
        ({"GA": outcome(around=0.95, nll=4, retained=0.5)}, "bed says nothing"),
        ({"CodeEraser": outcome(around=0.2, nll=4, retained=0.85)}, "not reproduced"),
        ({"CodeEraser": outcome(gone=False)}, "untested here"),
        ({"CU": outcome(around=0.5, nll=2)}, "partly"),
        ({"random tokens": outcome(0.0)}, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_code_kept_secrets_gone_and_random_places(changed, verdict):
    from unwrite.reproduce.checks import verdict_of

    ruined = outcome(around=0.3, nll=5, retained=0.4)
    runs = {
        "before": outcome(1.0, 1.0, 3.0, 1.0),
        "GA": ruined,
        "CU": ruined,
        "SSGA": outcome(),
        "CodeEraser": outcome(),
    }
    runs |= {"random tokens": outcome(0.8), **changed}
    assert verdict_of(_checks(runs, Thresholds(0.3, 0.05), 1.0)) == verdict
