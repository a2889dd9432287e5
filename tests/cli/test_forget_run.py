"""unwrite forget from end to end on a tiny model: the run folder is whole, resumable, or says what it is."""

import json

import pytest
from cli_runs import command, make_files

from unwrite.cli import main
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
    assert "NPO" in note["provenance"]["method"]
    load(run / "model")
    assert not (run / "checkpoints").exists()


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
