"""Where llama.cpp's build may crash, another process goes first: once, and only there."""

import subprocess

import pytest

from unwrite.decode.engine import llamacpp_trial
from unwrite.decode.engine.llamacpp_trial import try_apart
from unwrite.errors import ModelError

RISKY = "llamacpp 0 file 2 threads CPU : AVX2 = 1 | AMX_INT8 = 1 | "
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def test_a_crash_is_an_error_that_says_how_to_build(tmp_path):
    with pytest.raises(ModelError, match=r"crashes on some\.gguf \(signal 11\).*GGML_NATIVE=OFF"):
        try_apart(tmp_path / "some.gguf", 2, RISKY, DIES)


def test_the_process_gets_the_file_and_the_threads_and_runs_once(tmp_path):
    notes = tmp_path / "notes"
    program = f"import sys; open({str(notes)!r}, 'a').write(' '.join(sys.argv[1:]) + ';')"
    for _ in range(2):
        try_apart(tmp_path / "some.gguf", 3, RISKY, program)
    assert notes.read_text() == f"{tmp_path / 'some.gguf'} 3;"
    try_apart(tmp_path / "some.gguf", 3, RISKY + "another build", program)
    assert notes.read_text().count(";") == 2


def test_a_build_that_does_not_crash_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("tried"))
    try_apart(tmp_path / "some.gguf", 2, RISKY.replace("AMX_INT8 = 1", "AVX512 = 1"), DIES)


def test_what_fails_without_a_crash_is_left_to_the_caller(tmp_path):
    """A file that can't be loaded gets its own error where it is loaded, and is tried again."""
    for _ in range(2):
        try_apart(tmp_path / "some.gguf", 2, RISKY, "raise SystemExit(1)")


def test_the_program_runs_a_prompt_and_a_token(tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (unwrite[llamacpp]; it compiles)")
    from tiny_gguf import make_model, write_gguf

    file = write_gguf(tmp_path / "tiny.gguf", make_model(96))
    try_apart(file, 1, RISKY)
    with pytest.raises(ModelError):  # were it to do nothing, this would pass
        try_apart(file, 1, RISKY + "dies", llamacpp_trial._FORWARDS + DIES)
