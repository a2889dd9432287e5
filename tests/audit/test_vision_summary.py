"""The sentences of an image report: nothing forgotten comes first, and no figure says more than its rows bear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unwrite.audit.base import Score
from unwrite.audit.report.movement import forgotten, shift
from unwrite.audit.report.report import Report
from unwrite.audit.report.summary import summarise
from unwrite.audit.suites.vision import ERROR, RIGHT, VISION, VISION_REGRESSION

FEW = "20 rows for 64 dimensions: CKA is high even for unrelated features."


def flags(right, rows=200):
    """So many per cent of rows right, the first ones."""
    return [100.0] * round(rows * right / 100) + [0.0] * (rows - round(rows * right / 100))


def report(cka=None, gaps=None, hashes=None, rows=200, note="", asked="labels", **accuracies):
    """A report with these accuracies on forget rows (or errors), CKA and gaps by role."""
    name = "forget_accuracy" if asked == "labels" else "forget_mae"
    columns = {}
    for role, given in accuracies.items():
        values = flags(given, rows) if asked == "labels" else list(given)
        scores = {name: Score.mean(name, values, "toward_reference")}
        if cka and role in cka:
            scores["forget_cka"] = Score("forget_cka", cka[role], [], "toward_reference", note)
        if gaps and role in gaps:
            scores["avg_gap"] = Score("avg_gap", gaps[role], [], "lower")
        columns[role] = scores
    made = Report(
        suite="vision",
        split="s",
        rows={"forget": rows},
        metrics=[],
        columns=columns,
        provenance={f"{role} model": value for role, value in (hashes or {}).items()},
    )
    return replace(made, summary=summarise(made, VISION if asked == "labels" else VISION_REGRESSION))


ALIKE = {"before": 1.0, "after": 1.0, "oracle": 0.6}
CASES = {
    # name: (report, state, Removed: begins with, mark, in How sure, mark)
    "nothing changed at all": (
        report(before=90, after=90, oracle=10, cka=ALIKE, hashes={"before": "a", "after": "a"}),
        "nothing", "nothing; the weights are those of before", "bad", "nothing was forgotten", "bad",
    ),
    "weights moved and answers did not": (
        report(before=90, after=90, oracle=10, cka={**ALIKE, "after": 0.999}),
        "nothing", "nothing; its answers are those of before", "bad", "nothing was forgotten", "bad",
    ),
    "one row in two hundred went": (
        report(before=90, after=89.5, oracle=10, cka=ALIKE),
        "nothing", "nothing; its answers", "bad", "nothing was forgotten", "bad",
    ),
    "three in a hundred went, of eighty": (
        report(before=90, after=87, oracle=10, cka=ALIKE),
        "nothing", "nothing; its answers", "bad", "nothing was forgotten", "bad",
    ),
    "nothing changed, where the retrained model answers as before": (
        report(before=95, after=95, oracle=95, cka=ALIKE, hashes={"before": "a", "after": "a"}),
        "nothing", "nothing; the weights are those of before", "bad", "nothing was forgotten", "bad",
    ),
    "less than half of a short way": (
        report(before=100, after=97.5, oracle=94, rows=2000, cka={**ALIKE, "after": 0.9}),
        "something", "it is right on 97.5 %", "mixed", "have changed", "good",
    ),
    "the other way": (
        report(before=80, after=85, oracle=70, cka={**ALIKE, "after": 0.9}),
        "something", "it is right on 85 %", "bad", "have changed", "good",
    ),
    "only the head": (
        report(before=90, after=10, oracle=10, cka=ALIKE),
        "something", "it is right on 10 % of the forget rows (90 % before), the retrained model 10 %", "good",
        "features of forget rows are what they were (CKA 1.000), so only the head forgot", "bad",
    ),
    "hardly more than the head": (
        report(before=90, after=10, oracle=10, cka={**ALIKE, "after": 0.995}),
        "something", "it is right on 10 %", "good", "hardly changed (CKA 0.995), so hardly more than the head", "bad",
    ),
    "the retrained model's features are alike too": (
        report(before=90, after=10, oracle=10, cka={**ALIKE, "after": 0.9995, "oracle": 0.995}),
        "something", "it is right on 10 %", "good", "so are the retrained model's (0.995), so they tell nothing", "mixed",
    ),
    "features changed": (
        report(before=90, after=10, oracle=10, cka={**ALIKE, "after": 0.7}),
        "something", "it is right on 10 %", "good", "features of forget rows have changed (CKA 0.700)", "good",
    ),
    "half of the way": (
        report(before=90, after=50, oracle=10, cka={**ALIKE, "after": 0.7}),
        "something", "it is right on 50 %", "bad", "have changed", "good",
    ),
    "most of the way": (
        report(before=90, after=25, oracle=10, cka={**ALIKE, "after": 0.7}),
        "something", "it is right on 25 %", "mixed", "have changed", "good",
    ),
    "a few rows drawn at random, forgotten as by retraining": (
        report(before=100, after=95, oracle=94, cka={**ALIKE, "after": 0.9}),
        "something", "it is right on 95 %", "good", "have changed", "good",
    ),
    "the same, and not forgotten": (
        report(before=100, after=100, oracle=94, cka={**ALIKE, "after": 0.9995}),
        "nothing", "nothing; its answers are those of before. It is right on 100 %", "bad", "nothing was forgotten", "bad",
    ),
    "no room: the retrained model answers as before": (
        report(before=95, after=95, oracle=95, cka=ALIKE),
        "no room", "its answers can't tell; the retrained model gives those of before", "unknown",
        "whether its answers on them changed is not known", "mixed",
    ),
    "worse than before where there was no room": (
        report(before=95, after=60, oracle=95, cka={**ALIKE, "after": 0.7}),
        "something", "it is right on 60 %", "bad", "have changed", "good",
    ),
    "no retrained model, nothing moved": (
        report(before=90, after=90, cka={"before": 1.0, "after": 1.0}),
        "nothing", "nothing; its answers are those of before", "unknown", "nothing was forgotten", "bad",
    ),
    "no retrained model, something moved": (
        report(before=90, after=30, cka={"before": 1.0, "after": 0.7}),
        "something", "it is right on 30 % of the forget rows (90 % before); without a retrained model", "unknown",
        "no retrained model to compare with", "mixed",
    ),
    "no model before": (
        report(after=30, oracle=30),
        "unknown", "it is right on 30 % of the forget rows, the retrained model 30 %", "good", "95% interval", "unknown",
    ),
    "two of four rows went": (
        report(before=100, after=50, oracle=0, rows=4, cka=ALIKE),
        "unclear", "it is right on 50 % of the forget rows (100 % before), the retrained model 0 %; on 4 rows", "bad",
        "whether its answers on them changed is not known", "mixed",
    ),
    "few rows, and CKA bears nothing": (
        report(before=90, after=10, oracle=10, cka={**ALIKE, "oracle": 0.995}, note=FEW),
        "something", "it is right on 10 %", "good", "too few forget rows to tell by their features (CKA 1.000)", "mixed",
    ),
    "few rows, and no retrained model": (
        report(before=90, after=10, cka={"before": 1.0, "after": 1.0}, note=FEW),
        "something", "it is right on 10 %", "unknown", "too few forget rows to tell", "mixed",
    ),
    "few rows, and the retrained model's CKA is low": (
        report(before=90, after=10, oracle=10, cka={**ALIKE, "oracle": 0.2}, note=FEW),
        "something", "it is right on 10 %", "good", "so only the head forgot", "bad",
    ),
    "few rows, and nothing moved": (
        report(before=90, after=90, oracle=10, cka={**ALIKE, "oracle": 0.995}, note=FEW),
        "nothing", "nothing", "bad", "its answers on forget rows are those of before: nothing was forgotten", "bad",
    ),
    "few rows, nothing moved, and no retrained model": (
        report(before=90, after=90, cka={"before": 1.0, "after": 1.0}, note=FEW),
        "nothing", "nothing; its answers", "unknown", "too few forget rows to tell", "mixed",
    ),
    "few rows, the same weights, and no retrained model": (
        report(before=90, after=90, cka={"before": 1.0, "after": 1.0}, note=FEW, hashes={"before": "a", "after": "a"}),
        "nothing", "nothing; the weights", "bad", "nothing was forgotten", "bad",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_sentences_follow_from_what_moved(case):
    found, state, removed, removed_mark, sure, sure_mark = CASES[case]
    summary = found.summary
    assert forgotten(found, RIGHT) == state
    assert summary.removed.startswith(f"Removed: {removed}")
    assert summary.removed_mark == removed_mark
    assert sure in summary.sure
    assert summary.sure_mark == sure_mark
    if state != "something":
        assert "head forgot" not in summary.sure


def errors(mean, rows=200):
    return np.random.default_rng(0).uniform(0.5, 1.5, rows) * mean


@pytest.mark.parametrize(
    ("after", "state", "mark"),
    [(0.1, "nothing", "bad"), (0.5, "something", "good"), (0.45, "something", "mixed"), (0.3, "something", "bad")],
)
def test_errors_of_regressors_are_judged_alike(after, state, mark):
    found = report(asked="values", before=errors(0.1), after=errors(after), oracle=errors(0.5))
    assert forgotten(found, ERROR) == state
    assert found.summary.removed_mark == mark
    assert f"its error on the forget rows is {found.value('forget_mae'):.3g}" in found.summary.removed.replace(
        "Its", "its"
    )


@pytest.mark.parametrize(("after", "state"), [(0.104, "nothing"), (0.12, "something"), (0.2, "something")])
def test_errors_without_a_retrained_model_must_move_by_a_twentieth(after, state):
    assert forgotten(report(asked="values", before=errors(0.1), after=errors(after)), ERROR) == state


@pytest.mark.parametrize(("after", "state"), [(88, "nothing"), (82, "something")])
def test_accuracies_without_a_retrained_model_must_move_by_five_points(after, state):
    assert forgotten(report(before=90, after=after, rows=2000), RIGHT) == state


@pytest.mark.parametrize(
    ("gaps", "rows", "sentence", "mark"),
    [
        ({"before": 30, "after": 1.5}, 200, "on average 1.5 points from the retrained model", "good"),
        ({"before": 2.5, "after": 1.5}, 200, "(2.5 before), though the model before was hardly farther away", "mixed"),
        ({"before": 30, "after": 1.5}, 20, "though 20 forget rows tell such figures to 22 points only", "mixed"),
        ({"before": 30, "after": 6}, 200, "on average 6 points", "mixed"),
        ({"before": 30, "after": 9}, 200, "on average 9 points", "bad"),
    ],
)
def test_a_gap_is_good_only_where_there_was_one_and_rows_enough(gaps, rows, sentence, mark):
    found = report(before=90, after=10, oracle=10, gaps=gaps, rows=rows)
    assert sentence in found.summary.sure
    assert found.summary.sure_mark == mark


def test_the_interval_is_of_the_rows():
    assert "it is right on 7% to 15% of such rows (95% interval)" in report(before=90, after=10, oracle=10).summary.sure
    assert "it is right on 2% to 40% of such rows" in report(before=90, after=10, oracle=10, rows=10).summary.sure


def test_a_shift_is_paired_by_row_and_has_an_interval():
    """The same accuracy on other rows is no shift on average, and its interval is as wide as its rows are many."""
    found = report(before=50, after=50, rows=100)
    found.columns["after"]["forget_accuracy"].per_example.reverse()
    moved = shift(found, "forget_accuracy", "after", "before")
    assert moved.value == 0
    assert moved.low == pytest.approx(-20, abs=3)
    assert moved.high == pytest.approx(20, abs=3)
    assert not moved.is_clear
    assert shift(found, "forget_accuracy", "after", "oracle") is None


def test_a_collapsed_model_is_said_to_be_one():
    found = report(before=90, after=10, oracle=10, cka={"after": None}, note="All rows alike: the model collapsed.")
    assert "all its features are the same: the model collapsed" in found.summary.sure
    assert found.summary.sure_mark == "bad"
