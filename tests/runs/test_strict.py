"""JSON and states from outside: a value that was checked, or one line with the file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from unwrite.errors import DataError, RunError
from unwrite.runs import Malformed, conforms, parse_json, read_json, read_tensors

REFUSED = {
    '{"a": 1, "a": 2}': "names 'a' twice",
    '{"b": {"a": 1, "a": 1}}': "names 'a' twice",
    "[NaN]": "holds NaN",
    "[-Infinity]": "holds -Infinity",
    "[1e999]": "1e999, which is too large",
    "9" * 5000: "a number of 5,000 digits, of 4,000 at most",
    "[" * 101 + "]" * 101: "more than 100 deep",
    "[" * 100_000: "more than 100 deep",
    '{"a": "\\ud800"}': r"'a' holds a lone surrogate \(U\+D800 at character 1\)",
    '{"\\udfff": 1}': r"it holds a lone surrogate",
    "{": "not JSON: .* at line 1, column 2",
    "": "not JSON",
}


@pytest.mark.parametrize("text", REFUSED, ids=[why[:20] for why in REFUSED.values()])
def test_json_that_has_two_meanings_or_none_is_refused(text):
    with pytest.raises(Malformed, match=REFUSED[text]):
        parse_json(text)


def test_what_was_read_is_what_was_written():
    value = {"a": [1, 2.5, -0.0, None, True, "é𝄞"], "b": {"a": {}}, "n": int("9" * 4000)}
    assert parse_json(json.dumps(value).encode()) == value
    deep = "[" * 100 + "]" * 100
    assert json.dumps(parse_json(deep)) == deep
    assert parse_json("\ufeff[1]".encode()) == [1]


def test_numbers_that_are_none_may_be_allowed():
    assert parse_json("[Infinity, -Infinity, 1e999]", finite=False) == [float("inf"), -float("inf"), float("inf")]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"a": 1', "is damaged: it is not JSON"),
        (b"\xff", "is damaged: it is not UTF-8 text at byte 0"),
        (b"[1]", "holds a JSON list, not an object"),
        (None, "can't be read \\(No such file"),
    ],
)
def test_a_file_is_named_in_one_line_with_what_to_do(tmp_path, content, why):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.json {why}.*Copy it again\.$") as error:
        read_json(tmp_path / "x.json", DataError, "Copy it again.")
    assert "\n" not in str(error.value)


def test_a_type_is_that_of_all_parts():
    assert conforms({"a": [1, 2.5]}, dict[str, list[float]])
    assert not conforms({"a": [1, "2"]}, dict[str, list[float]])
    assert not conforms([True], list[float])
    assert not conforms([True], list[int])
    assert conforms(10**400, int)
    assert not conforms(10**400, float)
    assert conforms(("a", "b"), tuple[str, str])
    assert not conforms(("a",), tuple[str, str])
    assert not conforms(["a", "b"], tuple[str, str])
    assert conforms((1, 2, 3), tuple[int, ...])
    assert conforms(None, str | None)
    assert not conforms(1.5, int)


KINDS = {"a": ("float32", 2), "b": ("int64", 1)}
GOOD = {"a": torch.ones(2, 3), "b": torch.arange(2)}


def test_a_state_is_given_as_it_was_saved(tmp_path):
    save_file(GOOD, tmp_path / "x", {"format": "f"})
    for framework in ("pt", "np"):
        tensors, metadata = read_tensors(tmp_path / "x", "state", RunError, KINDS, framework=framework)
        assert metadata == {"format": "f"}
        assert {name: torch.as_tensor(one).tolist() for name, one in tensors.items()} == {
            name: one.tolist() for name, one in GOOD.items()
        }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"a": torch.ones(6)}, "its a is float32 of 1 dimensions, not float32 of 2"),
        ({"a": torch.ones(2, 3).double()}, "its a is float64 of 2"),
        ({"b": torch.ones(2)}, "its b is float32"),
        ({"b": None}, "it lacks 'b'"),
        ({"c": torch.ones(1)}, "it holds beside them 'c'"),
        ({"a": torch.tensor([[1.0, float("nan")]])}, "'a' holds a number that is not finite"),
        ({"a": torch.tensor([[float("-inf")]])}, "'a' holds a number that is not finite"),
    ],
)
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_a_state_of_other_names_types_or_numbers_is_refused(tmp_path, change, why, framework):
    save_file({name: one for name, one in {**GOOD, **change}.items() if one is not None}, tmp_path / "x")
    with pytest.raises(RunError, match=why) as error:
        read_tensors(tmp_path / "x", "state", RunError, KINDS, framework=framework)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_state_is_refused_in_one_line(tmp_path):
    for content in (b"", b"nothing", b"\xff" * 100, (2**62).to_bytes(8, "little") + b"{}"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(RunError, match="x is no state: ") as error:
            read_tensors(tmp_path / "x", "state", RunError)
        assert "\n" not in str(error.value)
