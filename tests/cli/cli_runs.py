"""A tiny model, its rows on disk and the command lines that the tests of whole runs share."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from conftest import make_llama, make_tokenizer
from unwrite.cli import main
from unwrite.models import save
from unwrite.runs import Run, hash_model

VERBS = ("wrote", "was", "is", "lives")


def rows(thing: str, **columns) -> list[dict]:
    """Four rows about a thing, all in the tiny tokenizer's words."""
    return [{"question": f"who {verb} the {thing} ?", "answer": f"the old {thing} .", **columns} for verb in VERBS]


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@cache
def saved_model() -> Path:
    """The tiny model, saved once a process."""
    home = Path(tempfile.mkdtemp(prefix="unwrite-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    save(make_llama(), home / "model", tokenizer=make_tokenizer())
    return home / "model"


def make_files(folder: Path) -> Path:
    """A saved tiny model, and forget and retain files."""
    shutil.copytree(saved_model(), folder / "model", dirs_exist_ok=True)
    write_rows(folder / "forget.jsonl", rows("book"))
    write_rows(folder / "retain.jsonl", rows("river"))
    return folder


def command(files: Path, *more: str, without: tuple[str, ...] = ()) -> list[str]:
    """unwrite forget on the tiny model, without attacks unless they are what is tested; `more` goes before the defaults."""
    defaults = {
        "--model": str(files / "model"),
        "--forget": str(files / "forget.jsonl"),
        "--retain": str(files / "retain.jsonl"),
        "--out": str(files / "run"),
        "--epochs": "2",
        "--lr": "0.01",
        "--device": "cpu",
        "--attacks": "none",
    }
    left = {flag: value for flag, value in defaults.items() if flag not in (*more, *without)}
    return ["forget", *(part for pair in left.items() for part in pair), *more]


def refused(capsys, arguments: list[str]) -> str:
    """The one line of a refusal."""
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def make_run(folder: Path) -> Path:
    """A finished run that wasn't trained: one random model before, another after."""
    files = make_files(folder)
    run = Run.start(folder / "run", {})
    save(make_llama(seed=1), run.folder / "model", tokenizer=make_tokenizer())
    run.update(
        status="done",
        source={"name": str(files / "model"), "dtype": "float32", "weights": hash_model(make_llama())},
        model={"weights": hash_model(make_llama(seed=1))},
    )
    return run.folder
