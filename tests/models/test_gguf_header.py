"""A GGUF header that promises more than the file holds is refused in no time, with the place."""

import struct
import time

import pytest
from gguf_files import write_gguf

from helpers.architectures import tiny_model
from unwrite.errors import ModelError
from unwrite.models.gguf_header import check_header
from unwrite.models.gguf_parts import opened


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "own.gguf"
    write_gguf(path, tiny_model("llama", layers=2))
    return path.read_bytes()


def at(data, offset, fmt, value):
    return data[:offset] + struct.pack(fmt, value) + data[offset + struct.calcsize(fmt) :]


def behind(data, key, more=0):
    """Where the value of a key stands: behind its name and the number of its type."""
    return data.index(key) + len(key) + 4 + more


def test_a_whole_file_passes(whole, tmp_path):
    (tmp_path / "own.gguf").write_bytes(whole)
    check_header(tmp_path / "own.gguf")
    assert len(opened([tmp_path / "own.gguf"])[0].tensors) == 21


CHANGES = {
    "entries": (lambda data: at(data, 16, "<Q", 2**62), r"4,611,686,018,427,387,904 entries at byte 24"),
    "tensors": (lambda data: at(data, 8, "<Q", 2**40), r"1,099,511,627,776 tensors at byte"),
    "a text": (lambda data: at(data, 24, "<Q", 2**63), r"9,223,372,036,854,775,808 characters of a text at byte 32"),
    "an array": (
        lambda data: at(data, behind(data, b"tokenizer.ggml.tokens", 4), "<Q", 2**40),
        "values of an array at byte",
    ),
    "a type": (lambda data: at(data, behind(data, b"llama.block_count") - 4, "<I", 77), "unknown type 77"),
    "blocks": (
        lambda data: at(data, behind(data, b"llama.block_count"), "<I", 2**31),
        r"block_count is 2,147,483,648, and 1,000",
    ),
    "more blocks than tensors": (
        lambda data: at(data, behind(data, b"llama.block_count"), "<I", 300),
        r"block_count is 300, and there are tensors of 2",
    ),
    "no number of blocks": (
        lambda data: data.replace(b"llama.block_count", b"llama.bl0ck_count"),
        "tensors of 2 blocks, and no block_count",
    ),
    "dimensions": (
        lambda data: at(data, data.index(b"output.weight") + 13, "<I", 2**31),
        "a tensor of 2,147,483,648 dimensions",
    ),
    "numbers": (
        lambda data: at(data, data.index(b"output.weight") + 17, "<Q", 2**40),
        r"a tensor of [\d,]+ numbers .* in a file",
    ),
    "a cut": (lambda data: data[:300], "bytes that are left"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_in_the_file_is_refused_at_once(whole, tmp_path, change):
    damage, why = CHANGES[change]
    (tmp_path / "own.gguf").write_bytes(damage(whole))
    began = time.monotonic()
    with pytest.raises(ModelError, match=rf"own\.gguf has a damaged header: .*{why}") as error:
        opened([tmp_path / "own.gguf"])
    assert time.monotonic() - began < 1
    assert "\n" not in str(error.value)
