"""The report: plain sentences, clean JSON, one page that holds everything and trusts nothing."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unwrite.audit import Relearn, Report, Score
from unwrite.audit.report import charts
from unwrite.audit.report.page import render
from unwrite.audit.report.parts import AttackResult, Sample
from unwrite.audit.report.summary import summarise
from unwrite.audit.report.wording import short
from unwrite.audit.suites.basic import BASIC
from unwrite.errors import RunError
from unwrite.scoring.intervals import wilson

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
METRICS = [
    {"name": "forget_rouge", "better": "lower", "about": "", "panel": "forgotten"},
    {"name": "retain_rouge", "better": "higher", "about": "", "panel": "kept"},
    {"name": "utility", "better": "higher", "about": "", "panel": "kept"},
]


def column(forget: list[float], retain: list[float]) -> dict[str, Score]:
    return {
        "forget_rouge": Score.mean("forget_rouge", forget, "lower"),
        "retain_rouge": Score.mean("retain_rouge", retain, "higher"),
        "utility": Score("utility", sum(retain) / len(retain)),
    }


def curve(*unseen: float) -> list[dict[str, float]]:
    return [{"step": float(4 * i), "shown": 0.9, "unseen": p} for i, p in enumerate(unseen)]


def relearning(curves: dict[str, list[dict[str, float]]], about: str = "") -> AttackResult:
    return AttackResult("relearning", about, "step", "steps", curves, Relearn().remark(curves, "after"))


def made(oracle: bool = True, text: str = "hello", **changes: Any) -> Report:
    columns = {
        "before": column([1, 1, 1, 0], [1, 1, 1, 1]),
        "after": column([0, 0, 1, 0], [1, 1, 1, 0]),
        "oracle": column([0, 0, 0, 0], [1, 1, 1, 1]),
    }
    curves = {"before": curve(0.9, 0.9), "after": curve(0.1, 0.5), "oracle": curve(0.1, 0.15)}
    if not oracle:
        del columns["oracle"], curves["oracle"]
    settings: dict[str, Any] = {
        "suite": "basic",
        "split": text,
        "rows": {"forget": 4, "retain": 4},
        "metrics": METRICS,
        "columns": columns,
        "samples": [Sample("forget", text, text, dict.fromkeys(columns, text))] * 14
        + [Sample("retain", text, text, dict.fromkeys(columns, ""))],
        "attacks": [relearning(curves, text)],
        "provenance": {"data": text},
    }
    report = Report(**{**settings, "axes": ("forget_rouge", "utility"), **changes})
    return replace(report, summary=summarise(report, BASIC))


def test_the_first_line_says_what_was_removed_and_kept() -> None:
    summary = made().summary
    assert summary.removed == "Removed: 2 of the 3 forget answers it could reproduce before are gone."
    assert summary.kept == "Kept: 3 of the 4 retained answers it knew are still there."
    assert (summary.removed_mark, summary.kept_mark) == ("mixed", "mixed")


def test_more_recovery_than_the_oracles_reads_as_traces() -> None:
    summary = made().summary
    assert "traces remain" in summary.sure
    assert summary.sure_mark == "bad"


def test_recovery_like_the_oracles_reads_as_gone() -> None:
    curves = {"after": curve(0.1, 0.2), "oracle": curve(0.1, 0.15)}
    summary = made(attacks=[relearning(curves)]).summary
    assert "as a retrained model would" in summary.sure
    assert summary.sure_mark == "good"


def test_without_an_oracle_the_way_back_is_measured_and_the_lack_is_said() -> None:
    sure = made(oracle=False).summary.sure
    assert "50% of the way back" in sure
    assert "no retrained model to compare with" in sure


@pytest.mark.parametrize(
    ("known", "curve_after", "words", "mark"),
    [
        (0.0001, (0.00001, 0.0056), "gave the other forget rows 0.00 before, so relearning had nothing to", "unknown"),
        (0.049, (0.01, 0.9), "had nothing to bring back", "unknown"),
        (0.05, (0.0, 0.0), "0% of the way back", "mixed"),
        (0.9, (0.87, 0.95), "they had hardly gone (from 0.90)", "bad"),
        (0.9, (0.95, 0.97), "they had hardly gone (from 0.90)", "bad"),
        (0.9, (0.1, 0.95), "move the rest from 0.10 to 0.95, all of the way back", "bad"),
        (0.9, (0.1, 0.05), "0% of the way back", "mixed"),
        (0.9, (0.1, 0.5), "50% of the way back", "bad"),
    ],
)
def test_no_share_is_taken_of_next_to_nothing(known: float, curve_after: Any, words: str, mark: str) -> None:
    curves = {"before": curve(known, known), "after": curve(*curve_after)}
    summary = made(oracle=False, attacks=[relearning(curves)]).summary
    assert words in summary.sure
    assert summary.sure_mark == mark


def test_nothing_to_bring_back_is_said_beside_an_oracle_too() -> None:
    curves = {"before": curve(0.01, 0.2), "after": curve(0.0, 0.3), "oracle": curve(0.0, 0.3)}
    sure = made(attacks=[relearning(curves)]).summary.sure
    assert "nothing to bring back" in sure


def test_attacks_stand_in_the_terminals_table() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(made().table())
    line = next(line for line in out.getvalue().splitlines() if "relearning: unseen" in line)
    assert [cell.strip() for cell in line.split("│")[3:6]] == ["0.90 > 0.90", "0.10 > 0.50", "0.10 > 0.15"]
    assert "relearning: shown" in out.getvalue()


def test_a_conversation_is_shown_with_its_history_and_as_text() -> None:
    earlier = (("user", HOSTILE), ("assistant", "before that"))
    page = made(samples=[Sample("forget", "now?", "yes", {"after": "no"}, earlier)]).html()
    assert "before that" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    report = made(samples=[Sample("forget", "now?", "yes", {"after": "no"}, earlier)])
    assert Report.from_json(json.loads(json.dumps(report.json()))).samples == report.samples


def test_notices_stand_above_the_figures() -> None:
    page = made(notices=(f"3 of 4 answers are cut {HOSTILE}",)).html()
    assert page.index("3 of 4 answers are cut") < page.index("<h2>")
    assert HOSTILE not in page
    assert "To be read with the figures" not in made().html()


def test_without_a_relearning_attack_the_report_says_so() -> None:
    assert "no relearning attack was run" in made(attacks=[]).summary.sure


def test_a_model_that_never_knew_is_not_praised() -> None:
    columns = {"before": column([0, 0], [1, 1]), "after": column([0, 0], [1, 1])}
    summary = made(columns=columns).summary
    assert "nothing to remove" in summary.removed
    assert summary.removed_mark == "unknown"


def test_no_leak_seen_is_not_no_leak_possible() -> None:
    low, high = wilson(0, 20)
    assert low == 0
    assert 0.15 < high < 0.17


def test_the_table_holds_every_metric_and_model() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(made().table())
    text = console.export_text()
    assert all(word in text for word in ("forget rouge", "utility", "before", "after", "oracle"))


def test_json_round_trips(tmp_path: Any) -> None:
    report = made()
    report.save(tmp_path / "audit")
    read = Report.load(tmp_path / "audit")
    assert read == report
    assert read.roles == ["before", "after", "oracle"]


def test_a_report_read_back_draws_the_same_curves(tmp_path: Any) -> None:
    report = made()
    drawn = re.compile(r"p\d+-")
    report.save(tmp_path)
    assert drawn.sub("", charts.attack_curve(Report.load(tmp_path).attacks[0], report.roles)) == drawn.sub(
        "", charts.attack_curve(report.attacks[0], report.roles)
    )


def test_csv_has_one_row_a_model() -> None:
    lines = made().csv().splitlines()
    assert lines[0] == "name,forget_rouge,retain_rouge,utility"
    assert lines[2] == "after,0.25,0.75,0.75"


def test_json_has_no_nan() -> None:
    broken = {"after": {"utility": Score("utility", float("nan"), [float("inf"), 1.0])}}
    text = json.dumps(made(columns=broken).json(), allow_nan=False)
    assert "NaN" not in text


class Page(HTMLParser):
    """Collects tags and everything that would load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if v and (k in ("src", "href", "xlink:href") or k.startswith("on"))]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = Page(made().html())
    assert page.loads == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("svg") == 2
    assert "url(http" not in made().html()


def test_hostile_text_is_shown_and_not_run() -> None:
    html = made(text=HOSTILE).html()
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert "&lt;script&gt;alert(1)" in html


def test_hostile_model_names_do_not_reach_the_drawings_as_markup() -> None:
    columns = {HOSTILE: column([0, 1], [1, 1]), "x</svg><script>": column([0, 1], [1, 0])}
    page = Page(made(columns=columns, attacks=[]).html())
    assert "script" not in page.tags
    assert "img" not in page.tags


def test_the_page_shows_all_models_and_generations() -> None:
    html = made(text="a b c").html()
    assert all(f">{role}</" in html for role in ("before", "after", "oracle"))
    assert "2 more" in html
    assert "(nothing)" in html


def test_the_page_follows_the_readers_light_or_dark_setting() -> None:
    assert "prefers-color-scheme: dark" in made().html()


def test_drawings_on_one_page_share_no_ids() -> None:
    ids = re.findall(r'\bid="([^"]+)"', made().html())
    assert len(ids) == len(set(ids))


def test_refuses_a_folder_without_a_report(tmp_path: Any) -> None:
    with pytest.raises(RunError, match=r"report\.json can't be read"):
        Report.load(tmp_path)


def test_refuses_a_report_of_another_format() -> None:
    with pytest.raises(RunError, match="format: 99"):
        Report.from_json({"format": 99})


def test_refuses_a_damaged_report() -> None:
    with pytest.raises(RunError, match="damaged"):
        Report.from_json({"format": 2, "suite": "basic"})


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.000"), (0.1234, "0.123"), (1e-23, "1.0e-23"), (56.78, "56.8"), (5215, "5215")],
)
def test_numbers_are_written_for_people(value: float | None, text: str) -> None:
    assert short(value) == text


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".report.json.0a1b2c3d4e5f").write_text("{")
    (tmp_path / ".report.html.0a1b2c3d4e5f").write_text("<")
    (tmp_path / "mine").write_text("")
    made().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "report.html", "report.json"]


def test_the_same_report_is_the_same_page() -> None:
    assert made().html() == made().html()


def test_every_figure_names_its_model_and_every_drawing_itself() -> None:
    """Where the table's head is out of sight, as on a telephone, and for who hears the page."""
    page = render(made())
    roles = re.findall(r'<td class="value[^"]*" data-role="(\w+)"', page)
    assert roles == ["before", "after", "oracle"] * len(METRICS)
    assert re.findall(r'<svg aria-label="([^"]+)"', page) == ["Forgetting against utility", "Relearning"]
    assert page.count("<svg") == 2


def test_the_page_begins_with_the_attack_where_it_undoes_what_was_removed() -> None:
    undone, held = made(), made(attacks=[relearning({"after": curve(0.1, 0.2), "oracle": curve(0.1, 0.15)})])
    for report, back in ((undone, True), (held, False)):
        (answer,) = re.findall(r'<p class="answer (\w+)">(.*?)</p>', report.html())
        assert answer[0] == ("bad" if back else "mixed")
        assert answer[1].startswith("Removed: 2 of the 3")
        assert ("Not for good: " in answer[1]) is back
        assert ("traces remain" in answer[1]) is back
        assert ("<b>How sure</b>" in report.html()) is not back


def test_the_page_does_not_say_of_what_was_never_removed_that_it_comes_back() -> None:
    columns = {"before": column([1, 1, 1, 0], [1, 1, 1, 1]), "after": column([1, 1, 1, 0], [1, 1, 1, 0])}
    assert "Not for good" not in made(columns=columns).html()
