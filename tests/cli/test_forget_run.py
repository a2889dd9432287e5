"""unwrite forget from end to end on a tiny model: the run folder is whole, resumable, or says what it is."""

import json

import pytest
from cli_runs import command, make_files

from unwrite.cli import main
from unwrite.cli.inputs import AuditRequest, DataRequest, ForgetRequest, ModelRequest
from unwrite.models import load


@pytest.fixture
def files(tmp_path):
    return make_files(tmp_path)


def test_a_run_folder_holds_model_metrics_and_report(files, capsys):
    main(command(files))
    run = files / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert "forget_loss" in json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert "<html" in (run / "report.html").read_text().lower()
    note = json.loads((run / "model" / "unwrite.json").read_text())
    assert note["provenance"]["method"].startswith("Smooth(inner=None, by='sam'")
    load(run / "model")
    assert not (run / "checkpoints").exists()


def without_retain(files, *more):
    given = command(files, *more)
    at = given.index("--retain")
    return given[:at] + given[at + 2 :]


def test_without_rows_to_keep_the_shipped_ones_are_kept_and_the_report_says_so(files, capsys):
    main(without_retain(files, "--attacks", "none"))
    run = files / "run"
    [said] = [line for line in json.loads((run / "run.json").read_text())["notices"] if "retain" in line]
    assert said.startswith("there is no retain set, so 188 rows of general knowledge that ship with unwrite are kept")
    assert said.split(",")[0] in (run / "report.html").read_text()
    assert json.loads((run / "report.json").read_text())["rows"]["retain"] == 188


@pytest.mark.parametrize(
    ("method", "fields", "kept"),
    [
        ("npo", {}, True),
        ("rmu", {}, True),
        ("rmu", {"hold_weight": "0"}, False),
        ("uld", {}, True),
        ("ssd", {}, True),
        ("ssd", {"stored": "folder"}, False),
        ("gradient-ascent", {}, False),
        ("gradient-ascent", {"retain_loss": "kl"}, True),
    ],
)
def test_the_shipped_rows_are_for_methods_that_need_some(files, method, fields, kept):
    request = ForgetRequest(
        data=DataRequest(forget=str(files / "forget.jsonl")),
        model=ModelRequest(name=str(files / "model")),
        audit=AuditRequest(),
        method=method,
        fields=fields,
    )
    assert (request.rows().retain is not None) == kept


@pytest.mark.parametrize(("method", "shown"), [("rmu", "layer=1"), ("uld", "layers=1")])
def test_what_a_run_keeps_names_the_layers_that_the_model_gave(files, method, shown):
    request = ForgetRequest(
        data=DataRequest(forget=str(files / "forget.jsonl"), retain=str(files / "retain.jsonl")),
        model=ModelRequest(name=str(files / "model"), device="cpu"),
        audit=AuditRequest(attacks=("none",)),
        method=method,
    )
    assert shown in repr(request.ready().method)


def test_a_finished_run_is_not_overwritten(files, capsys):
    main(command(files))
    with pytest.raises(SystemExit):
        main(command(files))
    assert "finished run" in capsys.readouterr().err


def test_a_finished_run_is_replaced_when_asked(files):
    main(command(files))
    main(command(files, "--seed", "1", "--overwrite"))
    assert json.loads((files / "run" / "run.json").read_text())["arguments"]["seed"] == 1


def test_a_killed_run_says_so_and_resumes_to_the_same_model(files, capsys, monkeypatch):
    main(command(files))
    whole = load(files / "run" / "model").model.state_dict()
    (files / "run").rename(files / "first")

    from transformers import Trainer

    log = Trainer.log

    def stop(self, *args, **kwargs):
        log(self, *args, **kwargs)
        if self.state.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "log", stop)
    with pytest.raises(SystemExit) as ended:
        main(command(files))
    assert ended.value.code == 130
    assert json.loads((files / "run" / "run.json").read_text())["status"] == "stopped"
    monkeypatch.setattr(Trainer, "log", log)
    with pytest.raises(SystemExit):
        main(["chat", str(files / "run")])
    main(command(files, "--resume"))
    resumed = load(files / "run" / "model").model.state_dict()
    assert all((resumed[name] == value).all() for name, value in whole.items())


def test_a_guard_is_saved_and_chats_as_one_model(files, capsys):
    main(command(files, "--method", "uld", "--layers", "1", "--rank", "2"))
    main(["chat", str(files / "run"), "--question", "who wrote the book ?", "--max-new-tokens", "3"])
    assert "before" in capsys.readouterr().out
