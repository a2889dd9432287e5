"""Equal content is an equal key; any other content is another."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch

from conftest import make_llama
from unwrite.runs import canonical_json, hash_file, hash_json, hash_model, hash_tensors, model_key


@dataclasses.dataclass(frozen=True)
class Point:
    x: int = 1


@dataclasses.dataclass(frozen=True)
class Place:
    x: int = 1


def test_order_of_keys_does_not_matter_and_values_do():
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})
    assert hash_json([1, 2]) != hash_json([2, 1])


def test_key_is_sixteen_hex_digits():
    assert len(hash_json(0)) == 16
    int(hash_json(0), 16)


def test_dataclasses_hash_by_class_and_fields():
    assert hash_json(Point()) == hash_json(Point())
    assert hash_json(Point()) != hash_json(Point(2))
    assert hash_json(Point()) != hash_json(Place())


def test_paths_sets_and_tuples_are_plain():
    assert canonical_json({"a": Path("x"), "b": {2, 1}, "c": (1,)}) == '{"a":"x","b":[1,2],"c":[1]}'


def test_what_has_no_content_is_refused():
    with pytest.raises(TypeError, match="cannot hash a object"):
        hash_json(object())


def test_equal_weights_hash_equal_and_one_bit_changes_the_key():
    one, other = make_llama(0), make_llama(0)
    assert hash_model(one) == hash_model(other)
    other.lm_head.weight.data[0, 0] += 1e-6
    assert hash_model(one) != hash_model(other)


def test_a_model_key_is_equal_for_equal_weights_and_another_for_one_bit_in_any_tensor():
    one, other = make_llama(0), make_llama(0)
    assert len(model_key(one)) == 32
    assert model_key(one) == model_key(other)
    for weight in other.state_dict().values():
        bits = weight.view(torch.int32).flatten()
        bits[-1] ^= 1
        assert model_key(other) != model_key(one)
        bits[-1] ^= 1
    assert model_key(other) == model_key(one)


def test_a_model_key_knows_names_dtypes_and_shapes():
    def module(name: str, tensor: torch.Tensor) -> torch.nn.Module:
        owner = torch.nn.Module()
        owner.register_buffer(name, tensor)
        return owner

    tensor = torch.arange(4.0)
    alike = [("a", tensor), ("b", tensor), ("a", tensor.view(2, 2)), ("a", tensor.view(torch.int32))]
    assert len({model_key(module(*one)) for one in alike}) == 4


def test_what_is_shown_of_a_model_is_sha256():
    model = torch.nn.Linear(2, 1)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|torch.float32|{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    assert hash_model(model) == digest.hexdigest()[:16]


def test_name_dtype_and_shape_are_part_of_the_key():
    tensor = torch.arange(4.0)
    keys = {
        hash_tensors({"a": tensor}),
        hash_tensors({"b": tensor}),
        hash_tensors({"a": tensor.view(2, 2)}),
        hash_tensors({"a": tensor.view(torch.int32)}),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_every_dtype_and_layout_hashes(dtype):
    tensor = torch.ones(3, 4).to(dtype)
    assert hash_tensors({"a": tensor}) == hash_tensors({"a": tensor.T.contiguous().T})


def test_scalars_and_empty_tensors_hash():
    assert hash_tensors({"a": torch.tensor(1.0)}) != hash_tensors({"a": torch.zeros(0)})


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 3_000_000)
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"abc" * 3_000_000).hexdigest()
