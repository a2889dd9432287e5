"""What the flags of unwrite forget reach, and what is left where a run fails."""

import errno
import json

import pytest
from cli_runs import command, make_files, record, refused, rows, write_rows

from unwrite.cli import main


@pytest.fixture
def files(tmp_path):
    return make_files(tmp_path)


@pytest.mark.parametrize("error", ["refusal", "fault"])
def test_what_fails_before_its_first_step_leaves_no_folder(capsys, files, monkeypatch, error):
    from unwrite.errors import DataError
    from unwrite.forget.engine.text.trainer import UnlearnTrainer

    raised = DataError("no such row") if error == "refusal" else ValueError("out of memory")

    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(UnlearnTrainer, "compute_loss", fail)
    with pytest.raises(SystemExit if error == "refusal" else ValueError):
        main(command(files, "--method", "npo"))
    assert not (files / "run").exists()


def test_what_fails_after_a_step_is_kept_and_says_so(capsys, files, tmp_path, monkeypatch):
    monkeypatch.setattr("unwrite.audit.evaluate", lambda *_, **__: 1 / 0)
    arguments = command(files, "--out", str(tmp_path / "run"))
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert record(tmp_path / "run")["status"] == "failed"
    assert (tmp_path / "run" / "model").exists()


FULL = {
    "a checkpoint": "unwrite.forget.engine.checkpoints.write_json",
    "the model": "unwrite.models.saving._write",
    "the report": "unwrite.audit.report.report.Report.save",
    "the record": "unwrite.cli.forget.finish",
}


@pytest.mark.parametrize("moment", FULL)
def test_on_a_full_disk_a_run_ends_with_one_line_and_goes_on_once_there_is_room(capsys, files, monkeypatch, moment):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "here")

    main(command(files, "--out", str(files / "whole")))
    with monkeypatch.context() as patch:
        patch.setattr(FULL[moment], full)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(command(files))
    assert end.value.code == 2
    assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
    assert record(files / "run")["status"] == "failed"
    main(command(files, "--resume"))
    done, whole = record(files / "run"), record(files / "whole")
    assert (done["status"], done["model"]["weights"]) == ("done", whole["model"]["weights"])
    assert "error" not in done
    assert not [path for path in (files / "run").rglob(".*") if path.name != ".lock"]


def test_a_run_is_not_resumed_on_other_rows(capsys, files, tmp_path, monkeypatch):
    moved = make_files(tmp_path)
    monkeypatch.setattr("unwrite.audit.evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(command(moved))
    write_rows(moved / "forget.jsonl", rows("letter"))
    then = record(moved / "run")["rows"]["forget"]
    capsys.readouterr()  # a slow machine shows its progress
    said = refused(capsys, command(moved, "--resume"))
    assert f"{moved / 'forget.jsonl'} has changed since this run was started (hash " in said
    assert f", then {then})" in said
    assert record(moved / "run")["rows"]["forget"] == then
    assert record(moved / "run")["status"] == "failed"


def test_a_run_is_not_resumed_on_another_model(capsys, tmp_path, monkeypatch):
    from conftest import make_llama, make_tokenizer
    from unwrite.models import save

    files = make_files(tmp_path)
    monkeypatch.setattr("unwrite.audit.evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(command(files))
    save(make_llama(seed=1), files / "model", tokenizer=make_tokenizer())
    capsys.readouterr()
    assert "model has changed since this run was started" in refused(capsys, command(files, "--resume"))


def test_the_length_reaches_training_stopping_and_audit(capsys, tmp_path, monkeypatch):
    from unwrite.forget import StopWhenForgotten
    from unwrite.forget.engine.batch import make_parts
    from unwrite.forget.engine.text.trainer import UnlearnTrainer

    files = make_files(tmp_path)
    long = [{"question": "who wrote it ?", "answer": "the old book " * 20}] * 2 + rows("book")
    write_rows(files / "forget.jsonl", long)
    lengths, stops = [], []
    loss, start = UnlearnTrainer.compute_loss, StopWhenForgotten.__post_init__

    def watch(self, model, inputs, *rest, **more):
        lengths.extend(part.labels.shape[1] for _, part in make_parts(inputs, None).present())
        return loss(self, model, inputs, *rest, **more)

    monkeypatch.setattr(UnlearnTrainer, "compute_loss", watch)
    monkeypatch.setattr(StopWhenForgotten, "__post_init__", lambda self: (stops.append(self.max_length), start(self)))
    main(command(files, "--method", "npo", "--max-length", "32", "--stop-at", "0.01"))
    assert max(lengths) == 32
    assert stops == [32]
    kept = record(files / "run")
    assert kept["max_length"] == 32
    cut = "2 of 6 answers are cut at 32 tokens"
    assert any(cut in line for line in kept["notices"])
    assert any(cut in line for line in json.loads((files / "run" / "report.json").read_text())["notices"])
    assert cut in (files / "run" / "report.html").read_text()
    said = capsys.readouterr()
    assert cut in said.err
    assert kept["stopped"] == "all epochs done"
    assert "training ended: all epochs done" in said.out


def test_columns_and_turns_reach_the_rows(files):
    turns = [
        ("user", "who wrote ann ?"),
        ("assistant", "the book ."),
        ("user", "who was bert ?"),
        ("assistant", "a song ."),
    ]
    chats = [{"talk": [{"role": role, "content": text} for role, text in turns]}]
    write_rows(files / "forget.jsonl", chats)
    main(command(files, "--turns", "last", "--columns", "messages=talk"))
    [sample] = [
        one for one in json.loads((files / "run" / "report.json").read_text())["samples"] if one["part"] == "forget"
    ]
    assert (sample["asked"], sample["reference"]) == ("who was bert ?", "a song .")


def test_a_task_vector_with_adapters_is_saved_as_the_model_it_edits(tmp_path):
    files = make_files(tmp_path)
    main(command(files, "--lora", "2", "--method", "task-vector"))
    assert record(files / "run")["status"] == "done"


def test_what_was_noticed_before_a_run_failed_is_kept_when_it_goes_on(capsys, files, monkeypatch):
    from unwrite.errors import notice

    def fail(*_, **__):
        notice("half way")
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("unwrite.audit.evaluate", fail)
        with pytest.raises(ZeroDivisionError):
            main(command(files))
    assert record(files / "run")["notices"] == ["half way"]
    main(command(files, "--resume"))
    assert record(files / "run")["notices"] == ["half way"]
    assert json.loads((files / "run" / "report.json").read_text())["notices"] == ["half way"]
