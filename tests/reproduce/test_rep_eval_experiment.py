"""Rep-eval's experiment: it runs whole on a short bed, and each check can fail for its own reason."""

from dataclasses import replace

import pytest

from unwrite.beds.budget import Budget
from unwrite.beds.images import BEDS, DIGITS, Measured, forgetting_top
from unwrite.data.images.downstream import digit_downstream
from unwrite.data.images.sets import TrainTest, digits
from unwrite.data.images.splits import split_by_class
from unwrite.reproduce import rep_eval
from unwrite.reproduce.base import HEADLINE, run
from unwrite.reproduce.checks import verdict_of


def few(seed):
    whole = digits(seed=seed)
    return TrainTest(*(part.subset(part.index[:240]) for part in (whole.train, whole.test)))


def top(data, seed):
    split = split_by_class(data.train, (3, 8), test=data.test, seed=seed)
    return replace(split, downstream=digit_downstream(data.test))


def test_it_runs_tiny(monkeypatch):
    bed = replace(forgetting_top((3, 8)), data=few, split=top, epochs=1, net={**DIGITS, "width": 4})
    monkeypatch.setitem(BEDS, "digits/top", bed)
    monkeypatch.setattr(rep_eval, "forgetting_top", lambda classes: bed)
    claim, record = run("rep-eval", Budget("tiny", (0,)))
    assert claim.verdict == "too small for a verdict"
    assert {len(row) for row in claim.rows.values()} == {len(rep_eval.COLUMNS)}
    assert {"before", "retrained", "retrained again", "head only", rep_eval.PL, rep_eval.HIGH} <= set(claim.rows)
    held = [check.holds for check in claim.checks if check.kind == "mechanism"]
    assert held[1:] == [True, True, True]
    assert rep_eval.headline(record["rows"], record["extra"]) == record["headline"]
    assert len(record["headline"]) <= HEADLINE


NAMES = ["a", rep_eval.PL, "b", "c"]


def model(agl=0.9, agr=0.7, cka_oracle=0.8, cka_before=0.97, knn=80.0, cka_forget=0.6, h_lr=0.8):
    figures = {"agl": agl, "agr": agr, "cka_oracle": cka_oracle, "cka_before": cka_before, "knn": knn}
    return Measured({**figures, "cka_forget": cka_forget, "h_lr": h_lr}, 1.0)


def found(**differs):
    models = {
        "before": model(agl=0.0, cka_before=1.0),
        "retrained": model(h_lr=1.0),
        "retrained again": model(agl=0.99, cka_forget=0.8),
        "head only": model(agl=0.98, cka_before=1.0),
        "a": model(0.99, 0.3),
        rep_eval.PL: model(0.95, 0.7),
        "b": model(0.6, 0.75),
        "c": model(0.3, 0.8),
        rep_eval.HIGH: model(0.1, 0.1, cka_oracle=0.2, knn=30.0),
    } | differs
    return rep_eval._checks({name: [one, one] for name, one in models.items()}, NAMES)


@pytest.mark.parametrize(
    ("differs", "fails"),
    [
        ({}, []),
        ({"retrained again": model(agl=0.99, cka_forget=0.5)}, ["features are nearer"]),
        ({"retrained again": model(agl=0.8, cka_forget=0.8)}, ["agrees by answers"]),
        ({"before": model(agl=0.5, cka_before=1.0)}, ["the model before does not"]),
        ({"head only": model(agl=0.5, cka_before=1.0)}, ["the head alone changed"]),
        ({"head only": model(agl=0.98, cka_before=0.99)}, ["features are those before"]),
        ({"head only": model(agl=0.98, cka_before=1.0, agr=0.71)}, ["difference"]),
        ({"retrained": model(h_lr=0.9)}, ["agrees with itself"]),
        ({"a": model(0.99, 0.9), "b": model(0.6, 0.6), "c": model(0.3, 0.5)}, ["rankings by answers", "seeds agree"]),
        ({rep_eval.PL: model(0.85, 0.7)}, ["AGL behind"]),
        ({rep_eval.PL: model(0.95, 0.7, cka_before=0.9)}, ["keep the features"]),
        ({rep_eval.PL: model(0.95, 0.7, cka_oracle=0.85)}, ["no nearer"]),
        ({rep_eval.HIGH: model(0.1, 0.1, cka_oracle=0.2, knn=85.0)}, ["wrecks"]),
        ({rep_eval.HIGH: model(0.1, 0.1, cka_oracle=0.85, knn=30.0)}, ["wrecks"]),
    ],
)
def test_each_check_fails_for_its_own_reason(differs, fails):
    checks = found(**differs)
    failed = [check.text for check in checks if check.holds is not True]
    assert len(failed) == len(fails)
    assert all(words in text for words, text in zip(fails, failed, strict=True))
    assert (verdict_of(checks) == "reproduced") == (not fails)


def test_the_control_compares_seeds_by_their_features():
    one = {"a": [0.1, 0.3], "b": [0.2, 0.2], "c": [0.3, 0.1]}
    models = {name: [model(0.9 - i / 10, agr) for agr in values] for i, (name, values) in enumerate(one.items())}
    assert rep_eval._steadiness(models, ["a", "b", "c"]) == [-1.0, -1.0]
    assert rep_eval.taus(models, ["a", "b", "c"]) == [-1.0, 1.0]


def test_downstream_figures_are_means_and_a_collapsed_model_is_like_nothing():
    values = {f"cka_{name}": 0.5 for name in rep_eval.SETS} | {f"knn_{name}": 60.0 for name in rep_eval.SETS}
    summed = rep_eval._summed(Measured(values, 1.0))
    assert (summed["cka_oracle"], summed["knn"], summed["cka_before"]) == (0.5, 60.0, 0.0)
