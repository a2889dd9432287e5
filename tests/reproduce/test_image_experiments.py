"""The image experiments: each runs whole on a short bed, and its verdict follows from the figures."""

import json
from dataclasses import replace

import pytest
from stored import same_kinds

from unwrite.beds import images as image_bed
from unwrite.beds.budget import Budget
from unwrite.beds.images import Measured
from unwrite.data.images.sets import TrainTest, digits, digits_regression
from unwrite.reproduce import laf, regression, sparse, ssd
from unwrite.reproduce.base import run, store
from unwrite.reproduce.checks import Check, verdict_of


def few(make):
    """The first rows of a data set: enough of each class."""

    def rows(seed):
        whole = make(seed=seed)
        return TrainTest(*(part.subset(part.index[:240]) for part in (whole.train, whole.test)))

    return rows


@pytest.fixture
def short_beds(monkeypatch):
    """Beds of few rows and two epochs."""

    def short(bed):
        data = digits_regression if bed.name == "digits/range" else digits
        return replace(bed, data=few(data), epochs=2)

    for name in ("digits/class", "digits/random", "digits/range"):
        monkeypatch.setitem(image_bed.BEDS, name, short(image_bed.BEDS[name]))
    monkeypatch.setattr(ssd, "digits_at_random", lambda share: short(image_bed.digits_at_random(share)))
    tasks = {task: (short(bed), short(other), tau) for task, (bed, other, tau) in laf.TASKS.items()}
    monkeypatch.setattr(laf, "TASKS", tasks)


@pytest.mark.parametrize(
    ("slug", "control"), [("ssd", "head only"), pytest.param("sparse", "class: head only, dense", marks=pytest.mark.slow),
                          pytest.param("laf", "class: head only", marks=pytest.mark.slow), ("regression", "head only")],
)  # fmt: skip
def test_an_image_experiment_runs_whole(slug, control, short_beds, tmp_path):
    claim, record = run(slug, Budget("tiny", (0,)))
    assert any("retrained" in name for name in claim.rows)
    assert all(len(row) == len(claim.columns) for row in claim.rows.values())
    assert control in claim.rows
    assert claim.verdict == "too small for a verdict"
    assert claim.reason
    stored = json.loads(store(record, tmp_path).read_text())
    assert [Check.stored(check) for check in stored["checks"]] == list(claim.checks)
    assert stored["headline"] == claim.headline
    assert same_kinds(claim)


def one(cost=1.0, **values):
    return [Measured(values, cost)]


def test_ssd_holds_only_where_random_places_do_not():
    good = one(0.5, TA=98.0, test_forget_accuracy=0.0)
    bad = one(0.5, TA=98.0, test_forget_accuracy=90.0)
    found = {"retrained": one(TA=99.0), "fine-tuned": one(13.0)}
    assert all(held(ssd._checks(good, bad, found)))
    assert held(ssd._checks(good, good, found)) == [True, False, True]
    assert verdict_of(ssd._checks(good, good, found)) == "not reproduced"
    assert held(ssd._checks(bad, bad, found)) == [False, True, True]
    assert held(ssd._checks(one(2.0, TA=95.9, test_forget_accuracy=0.0), bad, found)) == [False, True, False]


def held(checks):
    return [check.holds for check in checks]


def nets(tuned, on_sparse, penalised):
    """What fine-tuning the dense and the sparse net, and l1-sparse, came to."""
    settings = (
        (f"{sparse.FT}, dense", tuned),
        (f"{sparse.FT}, 95% pruned", on_sparse),
        (f"{sparse.L1}, dense", penalised),
    )
    return {name: {"the same": one(UA=ua, RA=ra, avg_gap=gap)} for name, (ua, ra, gap) in settings}


def test_sparse_compares_with_fine_tuning():
    good = nets((10, 99, 40), (30, 98, 30), (60, 97, 20))
    assert all(held(sparse._checks({"class": good, "random": good})))
    checks = sparse._checks({"class": nets((10, 99, 40), (10, 98, 30), (29, 97, 20)), "random": good})
    assert held(checks) == [False, False, True]
    checks = sparse._checks({"class": good, "random": nets((10, 99, 40), (30, 98, 30), (60, 97, 40))})
    assert held(checks) == [True, True, False]


def test_l1_that_loses_retain_rows_is_no_gain():
    found = nets((10, 99, 40), (30, 98, 30), (10, 99, 39))
    found[f"{sparse.L1}, dense"]["too large"] = one(UA=100, RA=50, avg_gap=60)
    assert held(sparse._checks({"class": found, "random": found})) == [True, False, True]


def laf_found(laf_ta=95.0, repaired_ta=98.0, left=0.0, without_alignment=20.0):
    return {
        "retrained": one(TA=99.0),
        "LAF": one(TA=laf_ta, test_forget_accuracy=5.0, UA=90.0, RA=96.0),
        "LAF+R": one(TA=repaired_ta),
        "LAF without the extractor's loss": one(UA=left),
        "LAF without alignment": one(RA=without_alignment),
    }


@pytest.mark.parametrize(
    ("differs", "holds"),
    [
        ({}, [True, True, True, True]),
        ({"laf_ta": 92.0}, [False, True, True, True]),
        ({"repaired_ta": 96.0}, [True, False, True, True]),
        ({"left": 60.0}, [True, True, False, True]),
        ({"without_alignment": 95.0}, [True, True, True, False]),
    ],
)
def test_each_condition_of_laf_can_fail(differs, holds):
    assert held(laf._checks(laf_found(**differs))) == holds


def regressors(blindspot=9.0, w1=0.1, kept=0.10, again=0.8):
    def model(error, distance, unseen, ain):
        return one(forget_mae=error, wasserstein=distance, test_retain_mae=unseen, ain=ain)

    return {
        "retrained": model(10.0, 0.0, 0.10, 1.0),
        "fine-tuned": model(5.0, 0.6, 0.11, 0.4),
        "Gaussian amnesiac": model(6.0, 0.5, 0.12, 0.5),
        "Blindspot": model(blindspot, w1, kept, again),
    }


@pytest.mark.parametrize(
    ("differs", "holds"),
    [
        ({}, [True, True, True, True]),
        ({"blindspot": 15.0}, [False, True, True, True]),  # above retraining is as far as below
        ({"w1": 0.55}, [True, False, True, True]),
        ({"kept": 0.12}, [True, True, False, True]),
        ({"again": 0.4}, [True, True, True, False]),
        ({"again": float("nan")}, [True, True, True, None]),  # neither learnt it again
    ],
)
def test_each_condition_of_regression_can_fail(differs, holds):
    assert held(regression._checks(regressors(**differs))) == holds
