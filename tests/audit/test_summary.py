"""The summary names no metric: a suite declares its headlines and which way is good, and may add clauses of its own."""

from __future__ import annotations

from typing import Any

import pytest

from unwrite.audit import Exhibit, Headline, Report, Score, Suite
from unwrite.audit.report.movement import same_model
from unwrite.audit.report.parts import AttackResult, Remark, Summary
from unwrite.audit.report.report import NOT_HASHED
from unwrite.audit.report.summary import summarise


def report(metrics: dict[str, str] | None = None, provenance: Any = None, **columns: dict[str, list[float]]) -> Report:
    """Columns of scores by name; `metrics` says in which panel each stands."""
    return Report(
        "mine", "s", {"forget": 4},
        [{"name": name, "better": "lower", "about": "", "panel": panel} for name, panel in (metrics or {}).items()],
        {role: {n: Score.mean(n, v, "lower") for n, v in scores.items()} for role, scores in columns.items()},
        provenance=provenance or {},
    )  # fmt: skip


def suite(gone: Headline | None = None, kept: Headline | None = None, **more: Any) -> Suite:
    return Suite("mine", [], gone=gone, kept=kept, **more)


REFUSED = {"before": {"refused": [0, 0, 0, 1]}, "after": {"refused": [1, 1, 0, 1]}}


def test_a_headline_may_be_good_for_being_high() -> None:
    """Refusals: three rows were answered before, two of them are refused now."""
    summary = summarise(report(**REFUSED), suite(Headline("refused", "higher", noun="questions")))
    assert summary.removed == "Removed: 2 of the 3 forget questions it could reproduce before are gone."
    assert summary.removed_mark == "mixed"
    turned = summarise(report(**REFUSED), suite(Headline("refused", "lower", noun="questions")))
    assert turned.removed.startswith("Removed: 0 of the 1 forget questions")
    assert turned.removed_mark == "bad"


def test_what_was_kept_may_be_good_for_being_low() -> None:
    """Wrong answers, in per cent: all four rows were right before, three are."""
    wrong = {"before": {"wrong": [0, 0, 10, 0]}, "after": {"wrong": [0, 100, 40, 0]}}
    summary = summarise(report(**wrong), suite(kept=Headline("wrong", "lower", 100.0, noun="facts")))
    assert summary.kept == "Kept: 3 of the 4 retained facts it knew are still there."
    assert summary.kept_mark == "mixed"


@pytest.mark.parametrize(
    ("better", "now", "mark"),
    [
        ("lower", 1.05, "good"), ("lower", 1.4, "mixed"), ("lower", 1.6, "bad"), ("lower", 0.2, "good"),
        ("higher", 0.95, "good"), ("higher", 0.6, "mixed"), ("higher", 0.4, "bad"), ("higher", 3.0, "good"),
        ("toward_reference", 1.6, "bad"), ("toward_reference", 0.6, "mixed"),
    ],
)  # fmt: skip
def test_without_a_scale_figures_are_compared_with_those_of_before(better: Any, now: float, mark: str) -> None:
    found = report(before={"loss": [1.0]}, after={"loss": [now]})
    headline = Headline("loss", better, None, says="its loss on {rows} is {value}", unit=" nats")
    summary = summarise(found, suite(kept=headline))
    assert summary.kept == f"Kept: its loss on retain rows is {now:.3g} nats (before 1 nats)."
    assert summary.kept_mark == mark


def test_a_figure_without_words_of_its_own_is_called_by_its_name() -> None:
    found = report(before={"mean_loss": [1.0]}, after={"mean_loss": [3.0]}, oracle={"mean_loss": [3.0]})
    summary = summarise(found, suite(Headline("mean_loss", "toward_reference", None)))
    assert "its mean loss on the forget rows is 3 (1 before), the retrained model 3" in summary.removed


def test_a_headline_takes_the_first_metric_of_its_panel_that_fits() -> None:
    metrics = {"forget_rouge": "forgotten", "world_rouge": "kept", "other_rouge": "kept", "utility": "kept"}
    columns = {name: [1.0, 0.0] for name in metrics} | {"world_rouge": [1.0, 1.0]}
    found = report(metrics, before=columns, after=columns)
    assert summarise(found, suite(kept=Headline("retain_rouge|*_rouge", "higher"))).kept.startswith("Kept: 2 of the 2")
    assert summarise(found, suite(kept=Headline("utility|*_rouge", "higher"))).kept.startswith("Kept: 1 of the 1")
    assert "not measured" in summarise(found, suite(kept=Headline("retain_rouge", "higher"))).kept


def test_a_suite_without_headlines_says_that_nothing_was_measured() -> None:
    summary = summarise(report(after={"x": [1.0]}), suite())
    assert (summary.removed, summary.kept) == (Summary().removed, Summary().kept)
    assert summary.sure == "How sure: no retrained model to compare with."


def test_a_suite_adds_clauses_of_its_own() -> None:
    def leak(found: Report) -> Remark:
        return Remark(f"the leak is {found.value('leak')}", "bad")

    found = report(after={"leak": [0.5]}, oracle={"leak": [0.1]})
    summary = summarise(found, suite(evidence=(lambda _: None, leak)))
    assert summary.sure == "How sure: the leak is 0.5."
    assert summary.sure_mark == "bad"


@pytest.mark.parametrize(
    ("marks", "mark"),
    [((), "unknown"), (("",), "unknown"), (("good", ""), "good"), (("good", "mixed"), "mixed"), (("mixed", "unknown"), "unknown"),
     (("bad", "unknown"), "bad")],
)  # fmt: skip
def test_a_sentence_is_as_good_as_its_worst_clause(marks: Any, mark: str) -> None:
    clauses = tuple((lambda _, own=own: Remark("x", own)) for own in marks)
    found = report(after={"x": [1.0]}, oracle={"x": [1.0]})
    assert summarise(found, suite(evidence=clauses)).sure_mark == mark


def test_attacks_and_exhibits_have_a_clause_each_and_a_missing_attack_is_said() -> None:
    class Old(Exhibit):
        def remark(self, report: Report) -> Remark:
            return Remark("the shadows are old", "good")

    run = AttackResult("quantisation", "", "bits", "bits", {}, Remark("rounding brings nothing back", "good"))
    silent = AttackResult("relearning", "", "step", "steps", {})
    found = Report("mine", "s", {}, [], {"after": {}, "oracle": {}}, attacks=[run, silent])
    summary = summarise(found, suite(attacks=("quantisation", "relearning")), [Old()])
    assert summary.sure == (
        "How sure: rounding brings nothing back; no relearning attack was run, so hidden traces are untested; "
        "the shadows are old."
    )
    assert summary.sure_mark == "mixed"


@pytest.mark.parametrize(
    ("hashes", "same"), [(("a", "a"), True), (("a", "b"), False), ((NOT_HASHED, NOT_HASHED), False)]
)
def test_models_without_a_hash_are_not_taken_for_the_same(hashes: Any, same: bool) -> None:
    found = report(after={}, before={}, provenance=dict(zip(("after model", "before model"), hashes, strict=True)))
    assert same_model(found) is same


def test_the_interval_is_of_the_counted_rows() -> None:
    kept = report(after={"known": [1.0] * 5 + [0.0] * 15}, oracle={"known": [0.0] * 20})
    told = summarise(kept, suite(Headline("known", "lower", noun="facts"))).sure
    assert told == "How sure: between 11% and 47% of such facts may still come out (95% interval)."
    told = summarise(kept, suite(Headline("known", "higher", noun="facts"))).sure
    assert "between 53% and 89% of such facts" in told
    assert "interval" not in summarise(kept, suite(Headline("known", "toward_reference", None))).sure
