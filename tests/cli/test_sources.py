"""A run keeps what was loaded so that it means the same from every folder, and chat and audit load just that."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_runs import command, make_files, record, refused

from conftest import make_llama, make_tokenizer
from unwrite.cli import main
from unwrite.cli.outcome import Moved, moved_weights
from unwrite.cli.sources import ModelRequest, RunModels, absolute
from unwrite.models import Loaded, load, save
from unwrite.runs import Run, hash_model


@pytest.fixture
def files(tmp_path):
    return make_files(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run made from relative paths, once."""
    folder = make_files(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(command(Path(), "--out", "run"))
    return folder


@pytest.fixture
def run(made, files):
    """A copy of that run, of the model and the rows in `files`."""
    shutil.copytree(made / "run", files / "run")
    text = (files / "run" / "run.json").read_text()
    (files / "run" / "run.json").write_text(text.replace(str(made), str(files)))
    return files / "run"


def test_a_path_is_absolute_and_a_name_stays(files, monkeypatch):
    monkeypatch.chdir(files)
    assert absolute("model") == str(files / "model")
    assert absolute("./forget.jsonl") == str(files / "forget.jsonl")
    assert absolute("org/name") == "org/name"
    assert absolute("org/name:config@split") == "org/name:config@split"
    (files / "data.json").write_text('{"train": [], "val": []}')
    assert absolute("data.json@train") == f"{files / 'data.json'}@train"
    (files / "landmarks").mkdir()
    assert absolute("landmarks") == "landmarks"  # the shipped rows go before the folder


def test_a_folder_or_file_is_loaded_by_its_absolute_path(files, monkeypatch):
    monkeypatch.chdir(files)
    source = load("model").source
    assert (source["name"], source["folder"]) == (str(files / "model"), str(files / "model"))


def test_a_run_keeps_paths_hashes_and_how_many_weights_moved(made):
    kept, after = record(made / "run"), load(made / "run" / "model").model
    assert kept["source"]["name"] == str(made / "model")
    assert kept["source"]["weights"] == hash_model(make_llama())
    assert kept["model"]["weights"] == hash_model(after)
    assert kept["arguments"]["model"] == str(made / "model")
    assert kept["arguments"]["forget"] == str(made / "forget.jsonl")
    assert Moved(**kept["changed"]) == moved_weights(make_llama(), after)
    assert kept["changed"]["weights"] > 0


def test_chat_loads_both_models_from_another_folder(run, tmp_path, capsys, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    main(["chat", str(run), "--question", "who wrote the book ?", "--max-new-tokens", "3"])
    assert "before" in capsys.readouterr().out


def chat_and_audit(run):
    """The commands that load a run's models."""
    audit = ["audit", str(run), "--forget", str(run.parent / "forget.jsonl"), "--attacks", "none", "--device", "cpu"]
    return [["chat", str(run), "--question", "who ?"], audit]


@pytest.mark.parametrize("which", [0, 1], ids=["chat", "audit"])
def test_a_model_before_that_has_changed_is_refused(run, files, capsys, which):
    save(make_llama(seed=1), files / "model", tokenizer=make_tokenizer())
    line = refused(capsys, chat_and_audit(run)[which])
    assert f"{files / 'model'} is not the model of the run {run} any more" in line


@pytest.mark.parametrize("which", [0, 1], ids=["chat", "audit"])
def test_an_unlearned_model_that_has_changed_is_refused(run, capsys, which):
    save(make_llama(seed=1), run / "model", tokenizer=make_tokenizer())
    assert f"{run / 'model'} is not the model of the run {run} any more" in refused(capsys, chat_and_audit(run)[which])


@pytest.mark.parametrize("which", [0, 1], ids=["chat", "audit"])
def test_an_unfinished_run_is_refused(run, capsys, which):
    kept = record(run)
    (run / "run.json").write_text(json.dumps({**kept, "status": "stopped"}))
    assert "is stopped, not done" in refused(capsys, chat_and_audit(run)[which])


def test_audit_of_a_run_has_both_of_its_models(run, capsys):
    main([*chat_and_audit(run)[1], "--json"])
    report = json.loads(capsys.readouterr().out)
    stored = json.loads((run / "report.json").read_text())
    assert report["roles"] == ["before", "after"]
    for role in report["roles"]:
        score = report["columns"][role]["forget_probability"]["value"]
        assert score == pytest.approx(stored["columns"][role]["forget_probability"]["value"], abs=1e-6)


def test_audit_of_a_run_takes_another_model_before_by_name(run, files, capsys):
    save(make_llama(seed=1), files / "other", tokenizer=make_tokenizer())
    main([*chat_and_audit(run)[1], "--json", "--before", str(files / "other")])
    assert json.loads(capsys.readouterr().out)["roles"] == ["before", "after"]


def test_a_run_in_half_precision_is_loaded_in_it(files, capsys):
    main(command(files, "--dtype", "bfloat16", "--lr", "0.1"))
    assert record(files / "run")["source"]["dtype"] == "bfloat16"
    main(["chat", str(files / "run"), "--question", "who ?", "--max-new-tokens", "2"])


def test_a_run_with_a_guard_is_recognised_and_moved_no_weight_by_design(files):
    main(command(files, "--method", "uld", "--layers", "1", "--rank", "2"))
    assert (record(files / "run")["status"], record(files / "run")["changed"]) == ("done", None)
    main(["chat", str(files / "run"), "--question", "who ?", "--max-new-tokens", "2"])


def test_a_run_with_adapters_is_recognised(files):
    main(command(files, "--lora", "2"))
    assert record(files / "run")["changed"]["weights"] > 0
    main(["chat", str(files / "run"), "--question", "who ?", "--max-new-tokens", "2"])


def test_a_run_on_an_adapter_is_recognised(files, capsys):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(files / "model").model, LoraConfig(r=2, target_modules=["q_proj"]))
    save(model, files / "adapter", tokenizer=make_tokenizer())
    main(command(files, "--model", str(files / "adapter")))
    capsys.readouterr()
    main(["chat", str(files / "run"), "--question", "who ?", "--max-new-tokens", "2"])
    told = capsys.readouterr()
    assert told.err == ""  # neither model is said to be another than the run's
    assert "before" in told.out


def test_a_run_without_hashes_is_used_with_a_notice(run, capsys):
    kept = record(run)
    del kept["source"]["weights"], kept["model"]
    (run / "run.json").write_text(json.dumps(kept))
    main(["chat", str(run), "--question", "who ?", "--max-new-tokens", "2"])
    assert capsys.readouterr().err.count("has no hash of") == 2


def test_a_request_loads_in_its_dtype_and_notes_it(files):
    loaded = ModelRequest(name=str(files / "model"), dtype="bfloat16", device="cpu").load()
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.source["weights"] == hash_model(make_llama().to(torch.bfloat16))


def test_a_model_of_the_hub_is_loaded_at_the_revision_of_the_run(tmp_path, monkeypatch):
    asked = []

    def load_it(request):
        asked.append((request.name, request.revision))
        return Loaded(make_llama(), make_tokenizer(), {"weights": "abc"})

    monkeypatch.setattr(ModelRequest, "load", load_it)
    source = {"name": "org/name", "kind": "hub", "revision": "0123abc", "weights": "abc"}
    RunModels(run=Run(tmp_path, {"source": source})).before()
    assert asked == [("hf:org/name", "0123abc")]
