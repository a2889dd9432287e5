"""No command replaces or removes what exists unless it is asked to by name, and then only what it wrote itself."""

import json
import struct

import pytest

from conftest import make_llama, make_tokenizer
from unwrite.cli import demo, main
from unwrite.models import save
from unwrite.runs import Run


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def model(tmp_path):
    return str(save(make_llama(), tmp_path / "tiny", tokenizer=make_tokenizer()))


@pytest.fixture
def ran(monkeypatch):
    """The run folders `unwrite demo` got as far as training in; training itself is left out."""
    folders = []

    def stop(run, loaded, by, seed):
        folders.append((run.folder, [entry.name for entry in run.folder.iterdir() if entry.name != ".lock"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_unlearn_and_audit", stop)
    return folders


def finished_run(folder, kind):
    run = Run.start(folder, {}, kind=kind)
    run.log({"step": 1})
    run.update(status="done")


@pytest.mark.parametrize("kind", ["demo", "forget"])
def test_demo_does_not_touch_a_finished_run(capsys, tmp_path, model, ran, kind):
    finished_run(tmp_path / "run", kind)
    assert "finished run" in refused(capsys, "demo", "--out", str(tmp_path / "run"), "--model", model)
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert not ran


def test_demo_replaces_a_demo_when_asked(tmp_path, model, ran):
    finished_run(tmp_path / "run", "demo")
    with pytest.raises(SystemExit):
        main(["demo", "--out", str(tmp_path / "run"), "--model", model, "--overwrite"])
    assert ran == [(tmp_path / "run", ["run.json"])]


def test_demo_replaces_no_other_run_even_when_asked(capsys, tmp_path, model, ran):
    finished_run(tmp_path / "run", "forget")
    line = refused(capsys, "demo", "--out", str(tmp_path / "run"), "--model", model, "--overwrite")
    assert "a run of unwrite forget" in line
    assert (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("kind", "replaced"), [("demo", True), ("forget", False)])
def test_the_demos_own_folder_is_replaced_if_a_demo_is_in_it(capsys, tmp_path, model, ran, monkeypatch, kind, replaced):
    monkeypatch.chdir(tmp_path)
    finished_run(demo.OUT, kind)
    with pytest.raises(SystemExit):
        main(["demo", "--model", model])
    assert bool(ran) == replaced
    assert (demo.OUT / "metrics.jsonl").exists() != replaced


def test_demo_keeps_the_earlier_demo_when_the_model_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished_run(demo.OUT, "demo")
    line = refused(capsys, "demo", "--model", "smolm2-135m")
    assert "smollm2-135m" in line
    assert (demo.OUT / "metrics.jsonl").exists()


def test_demo_looks_at_the_folder_before_the_model(capsys, tmp_path):
    finished_run(tmp_path / "run", "demo")
    assert "finished run" in refused(capsys, "demo", "--out", str(tmp_path / "run"), "--model", "smolm2-135m")


def test_demo_keeps_the_earlier_demo_when_the_rows_do_not_fit_the_model(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = make_llama()
    small.config.max_position_embeddings = 8
    save(small, tmp_path / "small", tokenizer=make_tokenizer())
    finished_run(demo.OUT, "demo")
    assert "leaves no room for the answer within 8" in refused(capsys, "demo", "--model", "small")
    assert (demo.OUT / "metrics.jsonl").exists()


def test_demo_keeps_the_earlier_demo_when_a_foreign_file_lies_beside_it(capsys, tmp_path, model, monkeypatch, ran):
    monkeypatch.chdir(tmp_path)
    finished_run(demo.OUT, "demo")
    (demo.OUT / "notes.md").touch()
    assert "notes.md" in refused(capsys, "demo", "--model", model)
    assert (demo.OUT / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_audit_replaces_a_report_only_when_asked(capsys, tmp_path, name):
    (tmp_path / name).touch()
    command = ["audit", "m", "--forget", "f.jsonl", "--out", str(tmp_path)]
    assert f"{name} exists" in refused(capsys, *command)
    assert "f.jsonl" in refused(capsys, *command, "--overwrite")  # past that check, to the next


def test_requantise_replaces_a_file_only_when_asked(capsys, tmp_path):
    (tmp_path / "a.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    (tmp_path / "b.gguf").write_bytes(b"mine")
    command = ["models", "requantise", str(tmp_path / "a.gguf"), "--to", "f16", "--out", str(tmp_path / "b.gguf")]
    assert "b.gguf exists" in refused(capsys, *command)
    assert (tmp_path / "b.gguf").read_bytes() == b"mine"


def test_requantise_does_not_replace_the_file_it_would_name_itself(capsys, tmp_path):
    (tmp_path / "a.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    (tmp_path / "a.F16.gguf").write_bytes(b"mine")
    assert "a.F16.gguf exists" in refused(capsys, "models", "requantise", str(tmp_path / "a.gguf"), "--to", "f16")


def test_reproduce_replaces_a_stored_result_only_when_asked(capsys, tmp_path):
    (tmp_path / "npo.json").write_text("{}")
    command = ["reproduce", "npo", "--budget", "tiny", "--out", str(tmp_path)]
    assert "npo.json exists" in refused(capsys, *command)


@pytest.mark.parametrize("what", ["decode", "diffusion", "importance", "prompt", "unlearn-step"])
@pytest.mark.parametrize("content", ["my notes", "[]", '{"cases": 3}', '{"cases": [], "complete": true}'])
def test_bench_replaces_a_file_only_when_asked(capsys, tmp_path, what, content):
    (tmp_path / "notes.json").write_text(content)
    assert "notes.json exists" in refused(capsys, "bench", what, "--out", str(tmp_path / "notes.json"))
    assert (tmp_path / "notes.json").read_text() == content


@pytest.mark.parametrize("ending", [".html", ".svg", ".png"])
def test_bench_diffusion_replaces_no_picture_beside_its_figures(capsys, tmp_path, ending):
    (tmp_path / f"figures{ending}").touch()
    line = refused(capsys, "bench", "diffusion", "--out", str(tmp_path / "figures.json"))
    assert f"figures{ending} exists" in line


def test_bench_goes_on_from_its_own_stopped_run(tmp_path):
    from unwrite.cli.timings import stopped

    case = {"batch": 4, "pairs": 9, "method": "npo"}
    (tmp_path / "step.json").write_text(json.dumps({"cases": [case], "complete": False, "commit": "abc"}))
    assert stopped(tmp_path / "step.json", {"commit": "abc"}, 4, 9) == [case]


def test_docs_writes_nothing_outside_the_repository(capsys, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "demo.svg").write_text("mine")
    (tmp_path / "README.md").write_text("my project")
    assert "has no table" in refused(capsys, "docs", "--root", str(tmp_path))
    assert (tmp_path / "docs" / "demo.svg").read_text() == "mine"


def test_sweep_refuses_a_file_that_is_no_sweeps(capsys, tmp_path):
    (tmp_path / "notes.jsonl").write_text("my notes\n")
    out = str(tmp_path / "notes.jsonl")
    line = refused(capsys, "sweep", "--methods", "fine-tune", "--beds", "digits/class", "--out", out, "--seeds", "1")
    assert "holds no sweep" in line
    assert (tmp_path / "notes.jsonl").read_text() == "my notes\n"
