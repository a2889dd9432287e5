"""Each kind of damage that once ended in a traceback, in a wrong value or in no answer, with what is said of it now."""

import json
import struct
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from robustness import reading_states as states
from robustness.mutate import Pairs, Raw, _written
from unwrite.audit.images.arrays import floats
from unwrite.audit.report.report import Report
from unwrite.audit.suites.tofu import read_retain_scores
from unwrite.bench.sweep_file import opened
from unwrite.cli.fields import build, parse
from unwrite.cli.sources import RunModels
from unwrite.data import Example, Examples, read
from unwrite.data.images.images import MOST_MADE_UP, Images
from unwrite.data.images.picture_metadata import check_metadata
from unwrite.data.images.splits import read_indices
from unwrite.decode.token_recycling import RecyclingTable
from unwrite.diffusion.parts.learn2pd import Filter, Records
from unwrite.errors import DataError, MethodError, ModelError, RunError
from unwrite.models import load_state
from unwrite.models.curvature import Importances
from unwrite.runs import Run


def refused(kind, why, call, *given):
    """The call is refused in one line that says why."""
    with pytest.raises(kind, match=why) as error:
        call(*given)
    assert len(str(error.value).splitlines()) == 1


def lay(sample, folder):
    for name, content in sample.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# Rows

UNSEEN = ["\u200b", "\u00ad\u200d", "\ufeff\u2060", "\u0007\u200e", "\u2800", "\u3164 \ufe0f", "\u2028\u00a0\u200b"]


@pytest.mark.parametrize("text", UNSEEN, ids=ascii)
@pytest.mark.parametrize("column", ["question", "answer", "perturbed_answers"])
def test_a_text_without_a_visible_character_is_refused(tmp_path, text, column):
    row = {"question": "q", "answer": "a", "perturbed_answers": ["b"]}
    row[column] = [text] if column == "perturbed_answers" else text
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n" + json.dumps(row))
    refused(
        DataError,
        rf"rows\.jsonl:2: {column} (holds no visible character|is empty|must be a list of non-empty)",
        read,
        tmp_path / "rows.jsonl",
    )


def test_an_example_without_a_visible_answer_is_refused():
    refused(
        DataError,
        "rows row 0: the answer has no visible character",
        lambda: Examples([Example(answer="\u200b")], "rows"),
    )


@pytest.mark.parametrize(
    "text", ["a", "¿", "𝄞", "é", "e\u0301", "\u200bא\u200f", "क्ष", "👩\u200d🔬", "0", "-", "한"], ids=ascii
)
def test_what_can_be_seen_is_kept_as_it_is(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": text, "answer": text}))
    assert read(tmp_path / "rows.jsonl")[0].answer == text


def test_a_chat_in_a_cell_is_read_strictly(tmp_path):
    for turn, why in (
        ('{""role"": ""user"", ""role"": ""assistant"", ""content"": ""a""}', "names 'role' twice"),
        ("NaN", "holds NaN"),
    ):
        (tmp_path / "rows.csv").write_text(f'messages\n"[{turn}]"\n')
        refused(DataError, rf"rows\.csv:2: messages is not a JSON list \(it {why}", read, tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("metadata.csv", "file_name,age,age\na.png,1,2\n", "has the column 'age' twice"),
        ("metadata.jsonl", '{"file_name": "a.png", "age": 1, "age": 2}', "1: is no JSON .it names 'age' twice"),
        ("metadata.jsonl", '{"file_name": "a.png", "age": 1e999}', "1: age is inf, not a finite number"),
        ("metadata.jsonl", '{"file_name": "\\ud800", "age": 1}', "1: is no JSON .'file_name' holds a lone surrogate"),
    ],
)
def test_metadata_beside_pictures_is_read_strictly(tmp_path, name, content, why):
    (tmp_path / "a.png").touch()
    (tmp_path / name).write_text(content)
    refused(DataError, rf"{name}.*{why}", check_metadata, tmp_path, ["age"], "age")


# Numbers


@pytest.mark.parametrize(("flag", "value"), [("beta", "nan"), ("retain-weight", "-NaN")])
def test_a_flag_is_a_number(flag, value):
    refused(MethodError, rf"{flag.replace('-', '_')} is '{value}'; it must be float", build, "npo", {flag: value})


def test_a_file_of_lines_is_text(tmp_path):
    (tmp_path / "lines.txt").write_bytes(b"\xff")
    refused(
        MethodError,
        "texts is .*lines.txt', which is no UTF-8 text",
        parse,
        "texts",
        str(tmp_path / "lines.txt"),
        tuple[str, ...],
    )


def test_labels_up_to_2_to_the_40_make_no_names():
    pixels = np.zeros((2, 1, 2, 2), dtype=np.float32)
    for large in (2**40, MOST_MADE_UP):
        refused(
            DataError,
            rf"labels of images reach {large} \(row 1\), and at most 1,000,000 classes",
            Images,
            pixels,
            [0, large],
        )
        with pytest.raises(DataError, match="identity of images reach"):
            Images(pixels, [0, 1], identity=[0, large])
    assert len(Images(pixels, [0, MOST_MADE_UP - 1]).classes) == MOST_MADE_UP


@pytest.mark.parametrize("given", [np.array([1j, 2]), torch.tensor([1j, 2])])
def test_complex_numbers_are_no_targets_and_no_scores(given):
    refused(
        DataError, r"targets of images are complex\d+\. Give real numbers", Images, torch.zeros(2, 1, 2, 2), None, given
    )
    refused(DataError, "scores are not an array of numbers: they are complex", floats, given, "scores")


def test_texts_are_no_numbers():
    refused(DataError, "scores are not an array of numbers: they are <U3", floats, ["1.5", "2"], "scores")
    refused(DataError, "scores are not an array of numbers", floats, [10**400], "scores")
    assert floats([True, 2, 0.5], "scores").tolist() == [1, 2, 0.5]


def npy(header, version=1):
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header


HEADERS = [
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (6442450941,), }\n",
    b'"""{\'descr\'\n',
    b"{" * 3000,
    b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n",
    b"{'descr': '<c16', 'fortran_order': False, 'shape': (1,), }\n",
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_an_array_that_is_not_what_its_header_says_is_refused(tmp_path, header):
    (tmp_path / "rows.npy").write_bytes(npy(header) + bytes(16))
    refused(DataError, r"rows\.npy (is no array of numbers|holds complex128)", read_indices, tmp_path / "rows.npy")


@pytest.mark.parametrize("text", ["9" * 5000, "--1", "\u0663", "1.0", "1_0"])
def test_an_index_is_a_whole_number(tmp_path, text):
    (tmp_path / "rows.txt").write_text(f"1\n{text}\n")
    refused(DataError, r"rows\.txt:2: .* is no index", read_indices, tmp_path / "rows.txt")


@pytest.mark.parametrize(
    ("text", "why"), [("[" + "9" * 5000 + "]", "5,000 digits"), ("[" * 5000, "100 deep"), ("[NaN]", "NaN")]
)
def test_a_list_of_indices_is_read_strictly(tmp_path, text, why):
    (tmp_path / "rows.json").write_text(text)
    refused(DataError, rf"rows\.json: .*{why}", read_indices, tmp_path / "rows.json")


# Runs


@pytest.mark.parametrize(
    ("text", "why"),
    [('{"status": "done", "status": "failed"}', "names 'status' twice"), ('{"status": "\\ud800"}', "lone surrogate"), ('{"status": "done", "x": NaN}', "NaN"), ("[" * 9999, "100 deep")],
)  # fmt: skip
def test_a_record_with_two_meanings_is_refused(tmp_path, text, why):
    (tmp_path / "run.json").write_text(text)
    refused(RunError, rf"run\.json is damaged: .*{why}", Run.open, tmp_path)


@pytest.mark.parametrize(
    "source", [None, [], "m", {}, {"name": 5}, {"name": "m", "revision": 1}, {"name": "m", "dtype": "complex64"}]
)
def test_a_record_without_its_model_is_refused(tmp_path, source):
    (tmp_path / "run.json").write_text(json.dumps({**states.RECORD, "source": source}))
    refused(RunError, r"run\.json does not say which model it was made from", RunModels(run=Run.open(tmp_path)).before)


REPORT_CHANGES = {
    "columns": 5, "metrics": [[]], "samples": [1], "roles": ["nobody"], "axes": ["a"], "rows": {"forget": "2"}, "attacks": [{"name": 1}],
    "notices": [1], "scale": "1", "suite": None, "manner": [], "summary": {"removed": 1}, "provenance": {"a": []},
}  # fmt: skip


@pytest.mark.parametrize("field", REPORT_CHANGES)
def test_a_report_of_other_types_is_refused(tmp_path, field):
    (sample,) = states._reports()
    value = json.loads(sample["report.json"])
    (tmp_path / "report.json").write_text(json.dumps(value))
    assert Report.load(tmp_path).value("forget_rouge") == 0.25
    (tmp_path / "report.json").write_text(json.dumps({**value, field: REPORT_CHANGES[field]}))
    refused(RunError, "report.*damaged", Report.load, tmp_path)


def test_an_attacks_points_have_their_x(tmp_path):
    (sample,) = states._reports()
    value = json.loads(sample["report.json"])
    value["attacks"][0]["x"] = "other"
    (tmp_path / "report.json").write_text(json.dumps(value))
    refused(RunError, "its attacks are not what an audit writes", Report.load, tmp_path)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (["a"], "score of row 'r' is"), (True, "score of row 'r' is True"), (-1, "score of row 'r' is -1"), (10**400, "score of row 'r' is"),
        ("1", "score of row 'r' is '1'"), (Raw("NaN"), "score of row 'r' is nan"), (Raw("[" * 5000), "100 deep"),
    ],
)  # fmt: skip
def test_scores_of_a_retrained_model_are_numbers(tmp_path, value, why):
    text = _written(Pairs([("mean", "geometric"), ("scores", Pairs([("r", value)]))]))
    (tmp_path / "s.json").write_text(text)
    refused(DataError, rf"s\.json.*{why}", read_retain_scores, tmp_path / "s.json", [])
    (tmp_path / "s.json").write_text('{"mean": "geometric", "scores": {"r": 0.5}}')
    assert read_retain_scores(tmp_path / "s.json", []) == {"r": 0.5}


@pytest.mark.parametrize(
    "line", [b"1.5", b"[]", b"{}", b'{"key": 1}', b'{"key": "k1"}', b'{"key": "n", "key": "m"}', b"[[", b"\xff"]
)
def test_a_sweeps_damaged_line_is_named(tmp_path, line):
    (sample,) = states._sweep_samples()
    (tmp_path / "rows.jsonl").write_bytes(sample["rows.jsonl"] + line + b"\n")
    with (
        pytest.raises(RunError, match=r"rows\.jsonl is damaged in line 4: "),
        opened(tmp_path / "rows.jsonl", states.SWEEP_HEADER),
    ):
        pass


# States


def changed(path, metadata, **tensors):
    """Writes a state again with other tensors; None leaves one out."""
    whole = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in whole.items() if tensor is not None}, path, metadata)


def test_a_filters_depth_is_that_of_its_tensors(tmp_path):
    path = tmp_path / "own.safetensors"
    lay(states._filters()[1], tmp_path)
    assert len(Filter.load(path).layers) == 2
    source = {"format": "unwrite learn2pd filter", "size": "4"}
    began = time.monotonic()
    for depth in ("2000000", "3", "-1", "x", "9" * 5000):
        changed(path, {**source, "depth": depth})
        refused(DataError, r"own\.safetensors is damaged: it says size '4' and depth", Filter.load, path)
    assert time.monotonic() - began < 2
    changed(path, {**source, "depth": "2"}, **{"layers.1.weight": torch.ones(1, 16)})
    refused(DataError, "not of such a filter", Filter.load, path)
    changed(path, {**source, "depth": "2"}, **{"layers.1.weight": torch.ones(4, 4).int()})
    refused(DataError, "layers.1.weight is int32, not float32", Filter.load, path)
    changed(path, {**source, "depth": "2"}, **{"layers.1.weight": torch.full((4, 4), float("nan"))})
    refused(DataError, "not finite", Filter.load, path)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"right": torch.ones(4, 4).bool()}, "different numbers of records"), ({"step": torch.arange(4)}, "different numbers of records"),
        ({"confidence": torch.full((5, 4), 2.0)}, "outside 0..1"), ({"right": torch.ones(5, 4)}, "right is float32"), ({"block": None}, "lacks 'block'"),
    ],
)  # fmt: skip
def test_records_fit_each_other(tmp_path, tensors, why):
    lay(states._records()[0], tmp_path)
    assert len(Records.load(tmp_path / "own.safetensors")) == 5
    changed(tmp_path / "own.safetensors", {"format": "unwrite learn2pd records"}, **tensors)
    refused(DataError, why, Records.load, tmp_path / "own.safetensors")


def test_a_recycling_table_has_a_mark_for_each_row(tmp_path):
    lay(states._recycling()[0], tmp_path)
    changed(tmp_path / "own.safetensors", {"format": "unwrite recycling table"}, seen=torch.ones(12).bool())
    refused(DataError, "its two tensors have other lengths", RecyclingTable.load, tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("change", "why"),
    [({"names": ["a.bias"]}, "doesn't name"), ({"rows": "4"}, "another type"), ({"labels": 1}, "'labels' is missing or too much"), ({"looped": 1}, "doesn't name"), ({"batches": 0}, "another type")],
)  # fmt: skip
def test_the_note_of_importances_fits_them(tmp_path, change, why):
    lay(states._importances()[0], tmp_path)
    note = tmp_path / "own" / "importances.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), **change}))
    refused(ModelError, rf"importances\.json is damaged: .*{why}", Importances.load, tmp_path / "own")


def test_a_state_is_of_the_types_and_numbers_of_its_module(tmp_path):
    lay(states._states()[0], tmp_path)
    path = tmp_path / "own" / "model.safetensors"
    load_state(states._net(), tmp_path / "own")
    bias = load_file(path)["0.bias"]
    changed(path, None, **{"0.bias": bias.int()})
    refused(ModelError, "0.bias is int32, not float32", load_state, states._net(), tmp_path / "own")
    changed(path, None, **{"0.bias": bias * float("inf")})
    refused(ModelError, "'0.bias' holds a number that is not finite", load_state, states._net(), tmp_path / "own")
