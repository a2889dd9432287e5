"""The run folder says what was asked and whether it is whole."""

import errno
import fcntl
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from unwrite.errors import Notice, RunError, noticing
from unwrite.runs import Run, claimed, holding, versions

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
    with pytest.raises(RunError, match=r"is running, not done. Run the same command with resume=True"):
        Run.start(folder, ARGUMENTS).need_done()


def test_an_unfinished_run_resumes_with_the_same_arguments(folder):
    started = Run.start(folder, ARGUMENTS).record["started"]
    assert Run.start(folder, ARGUMENTS, resume=True).record["started"] == started


def test_refuses_an_unfinished_run_without_resume(folder):
    Run.start(folder, ARGUMENTS)
    with pytest.raises(RunError, match=r"unfinished run. Pass resume=True"):
        Run.start(folder, ARGUMENTS)


def test_refuses_to_resume_with_other_arguments(folder):
    Run.start(folder, ARGUMENTS)
    with pytest.raises(RunError, match="started with other arguments"):
        Run.start(folder, {**ARGUMENTS, "beta": 0.2}, resume=True)


def test_refuses_a_finished_run(folder):
    Run.start(folder, ARGUMENTS).update(status="done")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"holds a finished run. Choose another folder"):
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


def finished(folder, kind="forget", status="done"):
    """A run with everything a run writes, and what a killed write leaves."""
    run = Run.start(folder, ARGUMENTS, kind=kind)
    run.log({"step": 1})
    (folder / "model").mkdir()
    (folder / "model" / "unwrite.json").write_text("{}")
    (folder / ".run.json.x1y2").touch()
    run.update(status=status)
    return run


@pytest.mark.parametrize("status", ["done", "unchanged", "failed", "stopped", "running"])
def test_overwrite_replaces_a_run_of_the_same_command(folder, status):
    finished(folder, status=status)
    Run.check(folder, {"beta": 1}, overwrite=True)
    assert (folder / "model").exists()  # a check changes nothing
    Run.start(folder, {"beta": 1}, overwrite=True)
    assert sorted(entry.name for entry in folder.iterdir()) == [".lock", "run.json"]
    assert Run.open(folder).record["arguments"] == {"beta": 1}


def test_a_run_without_a_moved_weight_is_finished_and_has_no_model_to_chat_with(folder):
    finished(folder, status="unchanged")
    with pytest.raises(RunError, match="holds a finished run"):
        Run.start(folder, ARGUMENTS, resume=True)
    with pytest.raises(RunError, match="changed nothing: its model is the one before"):
        Run.open(folder).need_done()


def test_overwrite_refuses_a_run_of_another_command(folder):
    finished(folder, kind="demo")
    with pytest.raises(RunError, match="holds a run of unwrite demo, which unwrite forget does not replace"):
        Run.start(folder, ARGUMENTS, overwrite=True)
    assert (folder / "model").exists()


def test_overwrite_refuses_a_record_that_names_no_command(folder):
    folder.mkdir()
    (folder / "run.json").write_text('{"status": "done"}')
    with pytest.raises(RunError, match="a run of an unknown command"):
        Run.start(folder, ARGUMENTS, overwrite=True)


@pytest.mark.parametrize("entry", ["thesis.tex", ".git", "models", "run.json.bak", ".run"])
def test_overwrite_refuses_a_folder_with_anything_a_run_does_not_write(folder, entry):
    finished(folder)
    (folder / entry).touch()
    with pytest.raises(RunError, match="was not written by the run in"):
        Run.start(folder, ARGUMENTS, overwrite=True)
    assert (folder / "model").exists()


def test_overwrite_refuses_a_model_folder_without_our_note(folder):
    finished(folder)
    (folder / "model" / "unwrite.json").unlink()
    with pytest.raises(RunError, match="model was not written by unwrite"):
        Run.start(folder, ARGUMENTS, overwrite=True)


def test_overwrite_removes_a_link_and_not_what_it_points_to(folder, tmp_path):
    finished(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").touch()
    (folder / "checkpoints").symlink_to(elsewhere)
    Run.start(folder, ARGUMENTS, overwrite=True)
    assert (elsewhere / "weights").exists()
    assert not (folder / "checkpoints").exists()


def test_overwrite_goes_on_where_a_disk_failed_while_it_removed_the_model(folder, monkeypatch):
    finished(folder)
    remove = os.rmdir

    def fails(*given, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rmdir", fails)
    with pytest.raises(OSError, match="No space"):
        Run.start(folder, ARGUMENTS, overwrite=True)
    monkeypatch.setattr(os, "rmdir", remove)
    Run.start(folder, ARGUMENTS, overwrite=True).update(status="done")
    assert [entry.name for entry in folder.iterdir()] == ["run.json"]


def test_overwrite_of_an_absent_or_empty_folder_starts_a_run(folder):
    Run.start(folder, ARGUMENTS, overwrite=True)
    assert Run.open(folder).record["status"] == "running"


def test_overwrite_refuses_a_folder_without_a_run(folder):
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not empty and holds no run"):
        Run.start(folder, ARGUMENTS, overwrite=True)


def test_refuses_to_resume_and_to_replace_at_once(folder):
    with pytest.raises(RunError, match="Pass one of them"):
        Run.start(folder, ARGUMENTS, resume=True, overwrite=True)


def test_refuses_a_file_in_the_place_of_a_folder(folder):
    folder.touch()
    with pytest.raises(RunError, match="is a file"):
        Run.start(folder, ARGUMENTS)


def test_a_command_that_cannot_resume_does_not_offer_it(folder):
    Run.start(folder, ARGUMENTS, kind="demo")
    with pytest.raises(RunError, match=r"unfinished run\. Pass overwrite=True, or choose another folder"):
        Run.start(folder, ARGUMENTS, kind="demo", resume=None)


def test_one_command_does_not_resume_the_run_of_another(folder):
    Run.start(folder, ARGUMENTS, kind="demo")
    with pytest.raises(RunError, match="started with other arguments"):
        Run.start(folder, ARGUMENTS, resume=True)


@pytest.mark.parametrize("record", ["[]", '"done"', "{}", '{"status": 1}'])
def test_a_record_of_something_else_is_named(tmp_path, record):
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(RunError, match=r"run\.json (is no record of a run|holds a JSON)"):
        Run.open(tmp_path)


def test_a_run_that_made_nothing_can_be_discarded(folder):
    run = Run.start(folder, ARGUMENTS)
    (folder / "checkpoints").mkdir()
    assert run.discard_if_empty()
    assert not folder.exists()


@pytest.mark.parametrize("made", ["metrics.jsonl", "model", "report.html", "checkpoints/checkpoint-2", "thesis.tex"])
def test_a_run_that_made_something_is_not_discarded(folder, made):
    run = Run.start(folder, ARGUMENTS)
    (folder / made).mkdir(parents=True)
    assert not run.discard_if_empty()
    assert (folder / made).exists()


def _start(folder, ready, results):
    ready.wait()
    try:
        run = Run.start(folder, ARGUMENTS)
        results.put("started")
        time.sleep(0.5)
        run.update(status="done")
    except RunError as error:
        results.put(str(error))


def test_of_processes_that_start_at_once_one_does(folder):
    context = multiprocessing.get_context("fork")
    ready, results = context.Event(), context.Queue()
    processes = [context.Process(target=_start, args=(folder, ready, results)) for _ in range(6)]
    for process in processes:
        process.start()
    ready.set()
    said = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert said.count("started") == 1
    other = [one for one in said if one != "started"]
    assert all("is in use by process " in one or "holds" in one for one in other), other
    assert json.loads((folder / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_in_use_is_refused_with_its_process_and_host(how, folder):
    run = Run.start(folder, ARGUMENTS)
    for call in (Run.check, Run.start):
        with pytest.raises(RunError, match=f"is in use by process {os.getpid()} on {socket.gethostname()}") as refused:
            call(folder, ARGUMENTS, **how)
        assert "\n" not in str(refused.value)
    run.update(status="running", step=3)
    with pytest.raises(RunError, match="is in use"):
        Run.start(folder, ARGUMENTS, resume=True)


@pytest.mark.parametrize("status", ["failed", "stopped", "done"])
def test_a_folder_is_free_once_its_run_has_ended(status, folder):
    run = Run.start(folder, ARGUMENTS)
    run.update(status=status)
    again = Run.start(folder, ARGUMENTS, overwrite=True)
    assert again.record["status"] == "running"
    assert run.record["status"] == status


def test_a_folder_is_free_once_its_process_was_killed(folder):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=lambda: (Run.start(folder, ARGUMENTS), os.kill(os.getpid(), 9)))
    process.start()
    process.join()
    with pytest.raises(RunError, match="holds an unfinished run"):
        Run.check(folder, ARGUMENTS)
    assert Run.start(folder, ARGUMENTS, resume=True).record["status"] == "running"


def test_a_refusal_keeps_no_lock(folder):
    Run.start(folder, ARGUMENTS).update(status="failed")
    for _ in range(2):
        with pytest.raises(RunError, match="holds an unfinished run"):
            Run.start(folder, ARGUMENTS)


def test_a_file_system_without_locks_is_said(folder, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.warns(Notice, match="No locks available.*second run"):
        assert Run.start(folder, ARGUMENTS).record["status"] == "running"


def test_a_folder_with_nothing_but_a_lock_is_empty(folder):
    run = Run.start(folder, ARGUMENTS)
    run.update(status="failed")
    run.remove()
    assert Run.start(folder, ARGUMENTS).record["status"] == "running"


def test_a_run_that_goes_on_keeps_no_error(folder):
    run = Run.start(folder, ARGUMENTS)
    run.update(status="failed", error="ValueError: no")
    again = Run.start(folder, ARGUMENTS, resume=True)
    assert "error" not in json.loads((folder / "run.json").read_text())
    again.update(status="failed", error="OSError: full")
    assert Run.open(folder).record["error"] == "OSError: full"


def test_other_threads_are_said_when_a_run_goes_on(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Run.start(folder, ARGUMENTS).update(status="stopped")
    assert Run.open(folder).record["threads"]["OMP_NUM_THREADS"] == "1"
    with noticing() as said:
        Run.start(folder, ARGUMENTS, resume=True).update(status="stopped")
    assert not said
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.warns(Notice, match="last bits may differ"):
        Run.start(folder, ARGUMENTS, resume=True)


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b"\x00\x00\x00", b"7", b'"text"'])
def test_a_torn_line_swallows_no_other(torn, folder):
    run = Run.start(folder, ARGUMENTS)
    run.log({"step": 1})
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(torn)
    run.log({"step": 3})
    run.log({"step": 4})
    assert [line["step"] for line in run.logged()] == [1, 3, 4]


def test_what_is_no_finite_number_is_logged_as_null(folder):
    run = Run.start(folder, ARGUMENTS)
    run.log({"loss": float("nan"), "deep": {"a": [1.5, float("inf")]}})
    assert run.logged() == [{"loss": None, "deep": {"a": [1.5, None]}}]


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_a_run_that_another_process_writes_is_neither_resumed_nor_replaced(folder, how):
    code = (
        "import sys, time; from unwrite.runs import Run; run = Run.start(sys.argv[1], {'method': 'npo', 'beta': 0.1}); "
        "print('started', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "started\n"
        try:
            with pytest.raises(RunError, match="is in use by process"):
                Run.start(folder, ARGUMENTS, **how)
            assert (folder / "run.json").exists()
        finally:
            other.kill()
    assert Run.start(folder, ARGUMENTS, **how).record["status"] == "running"  # a killed one has let go


def test_a_run_that_has_ended_lets_go_of_its_folder(folder):
    run = Run.start(folder, ARGUMENTS)
    with pytest.raises(RunError, match="is in use by process"):
        Run.start(folder, ARGUMENTS, resume=True)
    run.update(status="stopped")
    assert Run.start(folder, ARGUMENTS, resume=True).record["status"] == "running"


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_killed_write_left_blocks_no_run_and_is_removed(resume, folder):
    if resume:
        Run.start(folder, ARGUMENTS).update(status="stopped")
    folder.mkdir(exist_ok=True)
    (folder / ".run.json.0a1b2c3d4e5f").write_text("{")
    (folder / ".model.0a1b2c3d4e5f").mkdir()
    (folder / ".model.0a1b2c3d4e5f" / "half").write_text("")
    Run.start(folder, ARGUMENTS, resume=resume).update(status="done")
    assert [entry.name for entry in folder.iterdir()] == ["run.json"]


def test_checkpoints_that_cannot_be_removed_are_tried_twice_and_said(folder, monkeypatch):
    run = Run.start(folder, ARGUMENTS)
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "state").write_text("")
    remove, failed = os.unlink, []

    def fails_once(*given, **options):
        if not failed:
            failed.append(given)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return remove(*given, **options)

    monkeypatch.setattr(os, "unlink", fails_once)
    with noticing() as said:
        run.drop_checkpoints()
    assert failed
    assert not (folder / "checkpoints").exists()
    assert not said
    (folder / "checkpoints").mkdir()
    monkeypatch.setattr(os, "rmdir", lambda *_, **__: fails_once(failed.clear()))
    with pytest.warns(Notice, match="checkpoints.* could not be removed"):
        run.drop_checkpoints()


def test_a_kill_while_checkpoints_are_removed_leaves_none_to_go_on_from(folder, monkeypatch):
    run = Run.start(folder, ARGUMENTS)
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unwrite.runs.folder.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run.drop_checkpoints()
    assert not (folder / "checkpoints").exists()
    run.update(status="failed")
    Run.start(folder, ARGUMENTS, resume=True).update(status="done")
    assert [entry.name for entry in folder.iterdir()] == ["run.json"]


def test_a_holder_that_has_not_signed_yet_is_waited_for(folder):
    run = Run.start(folder, ARGUMENTS)
    signed = (folder / ".lock").read_text()
    (folder / ".lock").write_text("")
    later = threading.Timer(0.05, (folder / ".lock").write_text, [signed])
    later.start()
    with pytest.raises(RunError, match=f"is in use by process {os.getpid()} on "):
        Run.start(folder, ARGUMENTS)
    later.join()
    run.update(status="done")


def test_a_claimed_folder_is_nobody_elses_and_goes_when_nothing_was_written(folder):
    with claimed(folder):
        assert (folder / ".lock").exists()
        with pytest.raises(RunError, match=f"is in use by process {os.getpid()} on "), claimed(folder):
            pass
    assert not folder.exists()
    folder.mkdir()
    with claimed(folder):
        pass
    assert folder.exists()
    with claimed(folder):
        (folder / "report.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["report.json"]


def test_a_folder_that_its_last_holder_removes_meanwhile_is_made_again(folder, monkeypatch):
    own, removed = holding.hold, []

    def hold(path):
        if len(removed) < 3:
            path.rmdir()
            removed.append(path)
        return own(path)

    monkeypatch.setattr(holding, "hold", hold)
    Run.start(folder, ARGUMENTS).update(status="done")
    assert len(removed) == 3
