"""The scripts of examples/ run as they stand: short, and on tiny models where they take one."""

import runpy
import sys
from pathlib import Path

import pytest

from conftest import make_llama, make_tokenizer
from unwrite.models import save

EXAMPLES = Path(__file__).parents[1] / "examples"
ROWS = '{"question": "who wrote the %s ?", "answer": "the old %s ."}\n{"question": "where is the %s ?", "answer": "near the %s ."}\n'


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(make_llama(layers=2), tmp_path / "model", tokenizer=make_tokenizer())
    for name, thing in (("forget", "book"), ("retain", "river")):
        (tmp_path / f"{name}.jsonl").write_text(ROWS % ((thing,) * 4))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("forget_and_prove", ("./model", "forget.jsonl", "retain.jsonl"), "probability of the forgotten answers: 0."),
        ("write_fast", ("./model", "who wrote the book"), "identical to plain decoding: True"),
        ("forget_a_class", ("1",), "forget_cka: "),
    ],
)
def test_an_example_runs(tiny, capsys, monkeypatch, name, arguments, said):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert said in capsys.readouterr().out


def test_every_example_is_short_and_run():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"forget_and_prove", "write_fast", "forget_a_class"}
    assert all(len(path.read_text().splitlines()) <= 40 for path in EXAMPLES.glob("*.py"))
