"""Where llama.cpp's build may crash, another process goes first: once, and only there."""

import sys

import pytest

from unwrite.decode.engine.llamacpp import context as llamacpp_context
from unwrite.decode.engine.llamacpp import runtime as llamacpp
from unwrite.decode.engine.llamacpp import trial as llamacpp_trial
from unwrite.decode.engine.llamacpp.trial import RISKY, try_apart
from unwrite.errors import ModelError


@pytest.fixture
def file(tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (unwrite[llamacpp]; it compiles)")
    from tiny_gguf import make_model, write_gguf

    return write_gguf(tmp_path / "tiny.gguf", make_model(96))


def test_a_crash_is_an_error_that_says_how_to_build(tmp_path):
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(ModelError, match=r"crashes on some\.gguf \(signal 11\).*GGML_NATIVE=OFF"):
        try_apart(tmp_path / "some.gguf", 2, "some build", dies)


@pytest.mark.parametrize(("code", "runs"), [(0, 1), (1, 2)], ids=["passed", "failed without a crash"])
def test_the_process_gets_file_and_threads_and_runs_until_it_has_passed(tmp_path, code, runs):
    """A file that can't be loaded gets its own error where it is loaded."""
    notes, file = tmp_path / "notes", tmp_path / "some.gguf"
    program = f"import sys; open({str(notes)!r}, 'a').write(' '.join(sys.argv[1:]) + ';'); sys.exit({code})"
    for _ in range(2):
        try_apart(file, 3, "some build", program)
    assert notes.read_text() == f"{file} 3;" * runs
    try_apart(file, 3, "another build", program)
    assert notes.read_text() == f"{file} 3;" * (runs + 1)


def test_the_program_decodes_a_prompt_and_a_token_of_the_file(file, monkeypatch):
    ran = []
    for name in ("prefill", "one"):
        own = getattr(llamacpp_context.NativeContext, name)

        def noted(self, *rows, own=own, name=name):
            ran.append((name, self.model.vocab))
            return own(self, *rows)

        monkeypatch.setattr(llamacpp_context.NativeContext, name, noted)
    monkeypatch.setattr(sys, "argv", ["-c", str(file), "1"])
    exec(llamacpp_trial._FORWARDS, {})
    assert ran == [("prefill", 96), ("one", 96)]


@pytest.mark.parametrize(("features", "tried"), [(f"AVX2 = 1 | {RISKY} | ", 1), ("AVX2 = 1 | AVX512 = 1 | ", 0)])
def test_only_a_build_that_may_crash_is_tried(file, monkeypatch, features, tried):
    calls = []
    monkeypatch.setattr(llamacpp_context.NativeModel, "features", features)
    monkeypatch.setattr(llamacpp, "try_apart", lambda *given: calls.append(given[:2]))
    llamacpp.LlamaCppRuntime(file, threads=1, max_nodes=1).close()
    assert calls == [(file, 1)] * tried
