"""unwrite forget from end to end on a tiny model: the run folder is whole, resumable, or says what it is."""

import json

import pytest

from conftest import make_llama, make_tokenizer
from unwrite.cli import main
from unwrite.models import load, save


@pytest.fixture
def files(tmp_path):
    """A saved tiny model, and forget and retain files."""
    save(make_llama(), tmp_path / "model", tokenizer=make_tokenizer())
    for name, thing in (("forget", "book"), ("retain", "river")):
        rows = [
            {"question": f"who {n} the {thing} ?", "answer": f"the old {thing} ."}
            for n in ("wrote", "was", "is", "lives")
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def command(files, *more: str) -> list[str]:
    return [
        "forget", "--model", str(files / "model"), "--forget", str(files / "forget.jsonl"), "--retain",
        str(files / "retain.jsonl"), "--out", str(files / "run"), "--epochs", "2", "--lr", "0.01", "--device", "cpu", *more,
    ]  # fmt: skip


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
