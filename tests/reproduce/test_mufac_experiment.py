"""MUFAC's experiment: it runs whole on few fonts, and each check can fail for its own reason."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from unwrite.beds.budget import Budget
from unwrite.beds.images import GLYPHS, Measured
from unwrite.beds.persons import BEDS, by_persons
from unwrite.data.images.sets import TrainTest, glyphs
from unwrite.nets import SmallCNN
from unwrite.reproduce import mufac
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of


def few(seed):
    made = glyphs("ABE", draws=10, test_draws=10, new_fonts=4, seed=0)
    others = made.evaluation["new fonts"]
    return TrainTest(made.train, others.where(others.identity < 2), {"unseen": others.where(others.identity >= 2)})


def test_it_runs_tiny(monkeypatch):
    net = {**GLYPHS, "num_classes": 3, "width": 4}
    bed = replace(BEDS["glyphs/persons"], data=few, split=partial(by_persons, 3), net=net, epochs=1)
    monkeypatch.setitem(BEDS, "glyphs/persons", bed)
    claim, record = run("mufac", Budget("tiny", (0,)))
    assert claim.verdict == "too small for a verdict"
    assert {len(row) for row in claim.rows.values()} == {len(mufac.COLUMNS)}
    assert {mufac.GUESSING, "before", "retrained", "head only", *mufac.SOFTENED, mufac.ADVANCED} <= set(claim.rows)
    assert [check.holds for check in claim.checks if check.kind == "mechanism"] == [True]
    assert mufac.headline(record["rows"], record["extra"]) == record["headline"]
    assert len(record["headline"]) <= HEADLINE


def test_softened_answers_are_the_same_predictions_with_less_confidence():
    torch.manual_seed(0)
    model, pixels = SmallCNN(**GLYPHS).eval(), torch.rand(5, 3, 32, 32)
    before = model(pixels).detach()
    soft = mufac.Softened(model, 5.0)(pixels).detach()
    torch.testing.assert_close(soft, before / 5)


NAMES = [mufac.TUNED, mufac.CF, mufac.ASCENT, mufac.ADVANCED, "SCRUB"]


def model(forgetting_score=0.2, nomus=0.6, ta=80.0):
    figures = {"forgetting_score": forgetting_score, "nomus": nomus, "TA": ta}
    return Measured(figures, 1.0)


def found(**differs):
    models = {
        "before": model(),
        "retrained": model(0.02, 0.7),
        **{name: model() for name in mufac.SOFTENED},
        mufac.TUNED: model(0.19),
        mufac.CF: model(0.21),
        mufac.ASCENT: model(0.05, 0.55, 60.0),
        mufac.ADVANCED: model(0.1, 0.68),
        "SCRUB": model(0.1, 0.69),
    } | differs
    return mufac._checks({name: [one, one] for name, one in models.items()}, NAMES)


@pytest.mark.parametrize(
    ("differs", "fails"),
    [
        ({}, []),
        ({"before": model(0.05)}, ["works on the model before", "NegGrad forgets", "by less than a fifth"]),
        ({"retrained": model(0.1, 0.7)}, ["not on the retrained"]),
        ({"before, answers / 2": model(ta=79.0)}, ["predict as before"]),
        ({mufac.TUNED: model(0.19, 0.9), "SCRUB": model(0.1, 0.8)}, ["first or second"]),
        ({mufac.ASCENT: model(0.05, 0.685, 60.0), "SCRUB": model(0.1, 0.6)}, ["beats NegGrad"]),
        ({mufac.ASCENT: model(0.3, 0.55, 60.0)}, ["NegGrad forgets"]),
        ({mufac.ASCENT: model(0.05, 0.55, 75.0)}, ["loses 10 points"]),
        ({mufac.CF: model(0.1)}, ["by less than a fifth"]),
        ({"before, answers / 5": model(nomus=0.65)}, ["gains nothing"]),
    ],
)
def test_each_check_fails_for_its_own_reason(differs, fails):
    checks = found(**differs)
    failed = [check.text for check in checks if check.holds is not True]
    assert len(failed) == len(fails)
    assert all(words in text for words, text in zip(fails, failed, strict=True))
    assert (verdict_of(checks) == "reproduced") == (not fails)
