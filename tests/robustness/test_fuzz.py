"""What is around Atheris; whether it finds anything is asked by hand."""

import sys
from importlib.util import find_spec

import pytest

from robustness import fuzz


def test_the_first_byte_of_an_input_says_which_file_the_others_replace():
    of = fuzz.places("picture metadata")
    names = sorted({name for _, name in of})
    assert names == ["a.png", "b.png", "metadata.csv", "metadata.jsonl"]
    for number, (sample, name) in enumerate(of):
        files = fuzz.sample_of("picture metadata", bytes([number]) + b"new")
        assert files == {**sample, name: b"new"}
    assert fuzz.sample_of("json", b"").values()


def test_what_a_run_reads_can_be_read_again(tmp_path, capsys, monkeypatch):
    (tmp_path / "one.input").write_bytes(b"\0" + b'[{"text": "A document."}]')
    monkeypatch.setattr(sys, "argv", ["fuzz", "--reader", "json", "--input", str(tmp_path / "one.input")])
    assert fuzz.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1"


@pytest.mark.skipif(find_spec("atheris") is not None, reason="atheris is installed")
def test_without_atheris_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz", "--reader", "json"])
    assert fuzz.main() == 2
    assert capsys.readouterr().err == "atheris is not installed. Install it with: pip install atheris\n"


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_a_second_of_fuzzing_reads_inputs():
    read, found = fuzz.fuzzed("columns", 1, seed=1)
    assert read > 100
    assert not found
