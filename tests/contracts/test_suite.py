"""What every suite keeps to: it measures something on every model, each score as it says, and the same again."""

import math

import pytest
from audits import audit, audited, split_for, suite_of

from unwrite import catalog
from unwrite.audit import Report, Suite

SUITES = catalog.suites()
every_suite = pytest.mark.parametrize("slug", SUITES)
different = pytest.mark.parametrize("slug", {record.entry: slug for slug, record in reversed(SUITES.items())}.values())


def finite(score):
    assert score.value is None or math.isfinite(score.value)
    assert score.value is not None or score.note
    assert all(value is None or math.isfinite(value) for value in score.per_example)


@every_suite
def test_is_a_suite_of_metrics_with_names_of_their_own(slug):
    assert isinstance(SUITES[slug].load(), Suite)
    suite = suite_of(slug)
    assert slug in (suite.name, "landmarks")
    metrics = suite.for_split(split_for(slug))
    names = [metric.name for metric in metrics]
    assert names
    assert len(set(names)) == len(names)
    assert set(suite.requires) <= set(names)
    for metric in metrics:
        described = metric.described()
        assert described["about"].strip()
        assert described["better"] in ("higher", "lower", "toward_reference")
        assert described["panel"] in ("recovery", "forgotten", "kept", "fluency", "privacy")


@different
def test_every_score_of_every_model_is_finite_or_says_why_not(slug):
    report = audited(slug)
    assert {"before", "after", "oracle"} <= set(report.columns)
    names = [metric["name"] for metric in report.metrics]
    for column in report.columns.values():
        assert list(column) == names
        for score in column.values():
            finite(score)
    assert any(score.value is not None for score in report.columns["after"].values())
    assert any(score.per_example for score in report.columns["after"].values())


@different
def test_a_second_audit_gives_the_same_scores(slug):
    """From the cache, or computed again."""
    again = audit(slug)
    cached = audit(slug)
    for report in (again, cached):
        assert report.columns == audited(slug).columns


@different
def test_a_report_is_saved_and_read_back(slug, tmp_path):
    report = audited(slug)
    report.save(tmp_path)
    assert Report.load(tmp_path).columns == report.columns
    assert "<script" not in (tmp_path / "report.html").read_text(encoding="utf-8")
