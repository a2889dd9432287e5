"""`--require`: a run and an audit whose figures don't keep it end with status 1, and say so where a person and a pipeline look."""

import json

import pytest
from cli_runs import command, make_files, record, refused

from unwrite.audit import Report
from unwrite.cli import main
from unwrite.cli.outcome import UNCHANGED, UNMET


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


def ended(arguments):
    try:
        main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def audit(files, *more):
    return [
        "audit",
        str(files / "model"),
        f"--forget={files / 'forget.jsonl'}",
        "--device=cpu",
        "--attacks=quantise",
        *more,
    ]


@pytest.mark.parametrize(("bound", "status", "word"), [("1", 0, "met"), ("0", UNMET, "not met")])
def test_an_audit_ends_with_what_became_of_it(files, tmp_path, capsys, bound, status, word):
    assert ended(audit(files, "--require", f"forget_probability<={bound}", "--out", str(tmp_path))) == status
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("forget_probability<=")]
    assert line.split(None, 1)[1].startswith(word)
    assert len(line) <= 80
    assert Report.load(tmp_path).met is (status == 0)


def test_json_is_whole_where_a_requirement_is_not_met(files, capsys):
    assert ended(audit(files, "--require", "quantise<=0", "--json")) == UNMET
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    assert (outcome["text"], outcome["limit"], outcome["met"]) == ("quantise<=0", 0.0, False)
    assert outcome["value"] > 0


@pytest.mark.parametrize(("required", "status"), [("forget_probability<=0x", UNMET), ("forget_probability<=1", 0)])
def test_a_run_is_done_whatever_became_of_it_and_its_status_tells(files, tmp_path, capsys, required, status):
    out = tmp_path / "run"
    assert ended(command(files, "--require", required, "--out", str(out))) == status
    assert record(out)["status"] == "done"
    assert record(out)["arguments"]["require"] == required
    assert Report.load(out).met is (status == 0)
    assert required in capsys.readouterr().out


def test_a_run_that_moved_nothing_ends_as_that(files, tmp_path):
    required = ("--require", "forget_probability<=0", "--lr", "1e-30", "--out", str(tmp_path / "run"))
    assert ended(command(files, *required)) == UNCHANGED


@pytest.mark.parametrize(
    ("required", "why"),
    [
        ("", "--require names no requirement"),
        ("utility>0.9", "'utility>0.9' is no requirement. Write them as forget_probability<=0.1x,utility>=0.95x"),
        ("forget_probabilty<=1", "Did you mean 'forget_probability'"),
        ("relearn<=0.15", "unknown figure 'relearn'"),
    ],
)
def test_what_will_have_no_figure_is_refused_before_a_folder_is_made(files, tmp_path, capsys, required, why):
    out = tmp_path / "run"
    assert why in refused(capsys, command(files, "--require", required, "--out", str(out)))
    assert not out.exists()


def test_an_audit_without_a_model_before_has_no_share_of_it(files, capsys):
    line = refused(capsys, audit(files, "--require", "forget_probability<=0.1x"))
    assert line.endswith("forget_probability<=0.1x needs the model before unlearning: pass --before.")
