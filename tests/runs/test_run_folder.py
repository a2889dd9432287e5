"""The run folder says what was asked and whether it is whole."""

import json

import pytest

from unwrite.errors import RunError
from unwrite.runs import Run, versions

ARGUMENTS = {"method": "npo", "beta": 0.1}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_a_new_run_is_running_and_knows_its_arguments_and_versions(folder):
    Run.start(folder, ARGUMENTS)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "running"
    assert record["arguments"] == ARGUMENTS
    assert {"python", "unwrite", "torch", "transformers"} <= set(record["versions"])


def test_updates_are_kept(folder):
    Run.start(folder, ARGUMENTS).update(status="done", data="abc")
    assert Run.open(folder).record["data"] == "abc"
    assert Run.open(folder).need_done().folder == folder


def test_log_appends_lines(folder):
    run = Run.start(folder, ARGUMENTS)
    for step in (1, 2):
        run.log({"step": step, "loss": 0.5})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_an_unfinished_run_is_not_taken_for_a_whole_one(folder):
    with pytest.raises(RunError, match=r"is running, not done. Run the same command with --resume"):
        Run.start(folder, ARGUMENTS).need_done()


def test_an_unfinished_run_resumes_with_the_same_arguments(folder):
    started = Run.start(folder, ARGUMENTS).record["started"]
    assert Run.start(folder, ARGUMENTS, resume=True).record["started"] == started


def test_refuses_an_unfinished_run_without_resume(folder):
    Run.start(folder, ARGUMENTS)
    with pytest.raises(RunError, match=r"unfinished run. Pass --resume"):
        Run.start(folder, ARGUMENTS)


def test_refuses_to_resume_with_other_arguments(folder):
    Run.start(folder, ARGUMENTS)
    with pytest.raises(RunError, match="started with other arguments"):
        Run.start(folder, {**ARGUMENTS, "beta": 0.2}, resume=True)


def test_refuses_a_finished_run(folder):
    Run.start(folder, ARGUMENTS).update(status="done")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"holds a finished run. Choose another --out"):
            Run.start(folder, ARGUMENTS, resume=resume)


def test_refuses_a_folder_with_other_files(folder):
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not empty and holds no run"):
        Run.start(folder, ARGUMENTS)


def test_refuses_to_resume_where_nothing_was_started(folder):
    with pytest.raises(RunError, match="holds no run to resume"):
        Run.start(folder, ARGUMENTS, resume=True)


def test_refuses_to_open_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"is no run folder: it has no run\.json"):
        Run.open(tmp_path)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"status": ')
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        Run.open(tmp_path)


def test_versions_are_text():
    assert all(isinstance(version, str) for version in versions().values())
