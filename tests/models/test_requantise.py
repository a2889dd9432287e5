"""The same weights in another number format; what can't be converted leaves nothing behind."""

import sys

import numpy as np
import pytest

from tiny_gguf import make_model, write_gguf
from unwrite.errors import MissingExtra, ModelError
from unwrite.models.requantise import requantise

# The largest error relative to the block's largest value: half a step, and in q8_0 the scale's own rounding to 16 bits.
UNIT = {"f16": 2**-11, "q8_0": (0.5 + 127 * 2**-11) / 127}


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def file(model, tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", model)


@pytest.fixture
def wheel():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (unwrite[llamacpp]; it compiles)")


def tensors(path):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    return {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type)) for t in GGUFReader(path).tensors}


@pytest.mark.parametrize("to", ["f16", "q8_0"])
def test_every_matrix_has_the_format_and_its_weights_to_half_a_step(file, to, wheel):
    found, given = tensors(requantise(file, to)), tensors(file)
    assert found.keys() == given.keys()
    for name, (kind, weights) in found.items():
        if weights.ndim == 1:
            assert kind == "F32"
            continue
        assert kind == to.upper()
        blocks = given[name][1].reshape(-1, 32)
        largest = np.abs(blocks).max(1, keepdims=True)
        assert (np.abs(weights.reshape(-1, 32) - blocks) <= 1.001 * UNIT[to] * largest).all()


def test_the_new_file_lies_beside_the_old_one_and_says_its_format(file, wheel):
    assert requantise(file, "q8_0") == file.with_name("tiny.Q8_0.gguf")
    assert sorted(path.name for path in file.parent.glob("*gguf*")) == ["tiny.Q8_0.gguf", "tiny.gguf"]


def test_a_package_s_file_is_converted_into_the_working_folder(model, tmp_path, monkeypatch, wheel):
    inside = tmp_path / "site-packages" / "some"
    inside.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    made = requantise(write_gguf(inside / "tiny.gguf", model), "f16")
    assert made.resolve() == tmp_path / "tiny.F16.gguf"


def test_a_failed_conversion_keeps_the_old_target_and_leaves_no_other_file(tmp_path, wheel):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    (tmp_path / "out.gguf").write_text("old")
    with pytest.raises(ModelError, match="could not convert"):
        requantise(tmp_path / "broken.gguf", "q8_0", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2 + (tmp_path / "cache").exists()


def test_a_missing_wheel_names_the_extra(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingExtra, match=r"unwrite\[llamacpp\]"):
        requantise(file, "q8_0")
    assert [path.name for path in file.parent.glob("*gguf*")] == ["tiny.gguf"]


def test_refuses_an_unknown_format_and_names_the_nearest(file):
    with pytest.raises(ModelError, match="Did you mean 'q8_0'"):
        requantise(file, "q8_1")


def test_refuses_a_file_that_is_missing_or_no_gguf(tmp_path):
    with pytest.raises(ModelError, match=r"none\.gguf does not exist"):
        requantise(tmp_path / "none.gguf", "f16")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ModelError, match="not a GGUF file"):
        requantise(tmp_path / "text.gguf", "f16")


def test_refuses_to_write_over_what_it_reads(file):
    with pytest.raises(ModelError, match="file to read"):
        requantise(file, "f16", file)


def test_refuses_a_folder_that_does_not_exist(file, tmp_path):
    with pytest.raises(ModelError, match="not a folder"):
        requantise(file, "f16", tmp_path / "none" / "out.gguf")
