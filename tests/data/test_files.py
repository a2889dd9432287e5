"""Files and folders of every kind, and one line with file and row for whatever is wrong with them."""

import gzip
import json
import os
import re
import shutil
import struct
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from unwrite.data import read, split_from
from unwrite.errors import DataError

ROW = {"question": "Where is the Louvre?", "answer": "In Paris."}
OTHER = {"question": "Where is Big Ben?", "answer": "In London."}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def refusal(source, **options):
    with pytest.raises(DataError) as caught:
        read(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def gz(content):
    return gzip.compress(content.encode("utf-8"))


FILES = {
    "a.jsonl": lines(ROW, OTHER),
    "a.JSONL": lines(ROW, OTHER),
    "a.jsonl.gz": gz(lines(ROW, OTHER)),
    "a.json": json.dumps([ROW, OTHER]),
    "a.json.gz": gz(json.dumps({"data": [ROW, OTHER]})),
    "a.csv": "question,answer\nWhere is the Louvre?,In Paris.\nWhere is Big Ben?,In London.\n",
    "a.csv.gz": gz("question,answer\r\nWhere is the Louvre?,In Paris.\r\nWhere is Big Ben?,In London.\r\n"),
    "a.tsv": 'question\tanswer\nWhere is the Louvre?\tIn Paris.\n"Where is Big Ben?"\tIn London.\n',
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    rows = read(write(tmp_path / name, FILES[name]))
    assert rows.hash == read([ROW, OTHER]).hash
    assert rows.name == "a"
    assert split_from(tmp_path / name).name == "a"


@pytest.mark.parametrize("name", ["notes.txt", "notes.md", "notes.txt.gz"])
def test_a_text_file_is_one_document(tmp_path, name):
    text = "# A title\n\nThe Louvre is in Paris.\n"
    (row,) = read(write(tmp_path / name, gz(text) if name.endswith(".gz") else text.replace("\n", "\r\n")))
    assert (row.is_text, row.answer, row.source) == (True, text, name)


def test_a_folder_of_texts_is_read_in_the_order_of_their_names(tmp_path):
    for name in ("b.txt", "a.md", ".hidden.csv"):
        write(tmp_path / name, f"This is {name}.")
    assert [row.source for row in read(tmp_path)] == ["a.md", "b.txt"]


def test_an_object_of_several_lists_is_read_by_naming_one(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"version": 1, "train": [ROW], "val": [OTHER], "none": []}))
    assert "a.json holds 2 sets of rows (train, val). Name one: a.json@train." in refusal(path)
    (row,) = read(f"{path}@val")
    assert (row.question, row.source) == (OTHER["question"], "a.json@val row 1")
    assert "a.json: unknown part 'vall'. Did you mean 'val'?" in refusal(f"{path}@vall")


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {**ROW, "meta": [{"x": 1}]},
        {"Conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]},
    ],
)
def test_a_json_file_with_one_row_in_it_is_that_row(tmp_path, row):
    (example,) = read(write(tmp_path / "a.json", json.dumps(row)))
    assert example.question.startswith("Where")


def test_a_saved_data_set_is_read_as_it_was(tmp_path):
    wrong = [{**row, "perturbed_answer": ["In Rome.", "In Oslo."]} for row in (ROW, OTHER)]
    datasets.Dataset.from_list(wrong).with_format("numpy", columns=["question"]).save_to_disk(tmp_path / "saved")
    rows = read(tmp_path / "saved")
    assert rows.hash == read(wrong).hash == read(datasets.Dataset.from_list(wrong).with_format("numpy")).hash
    assert (rows.name, rows[1].source) == ("saved", "saved:2")
    assert "one data set without splits. Leave out @train." in refusal(f"{tmp_path / 'saved'}@train")


def test_saved_splits_are_read_by_naming_one(tmp_path):
    parts = {"train": datasets.Dataset.from_list([ROW]), "test": datasets.Dataset.from_list([OTHER])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert "both holds 2 sets of rows (train, test). Name one: both@train." in refusal(tmp_path / "both")
    assert read(f"{tmp_path / 'both'}@test")[0].answer == "In London."
    assert "both: unknown part 'tests'. Did you mean 'test'?" in refusal(f"{tmp_path / 'both'}@tests")
    datasets.DatasetDict({"train": parts["train"]}).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one")[0].answer == "In Paris."


def test_a_path_with_an_at_sign_is_that_path(tmp_path):
    (tmp_path / "a").mkdir()
    assert read(write(tmp_path / "a@b.jsonl", lines(ROW))).name == "a@b"


DEEP = '{"question": "q", "answer": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
LONG = '{"question": "q", "answer": "a", "n": ' + "1" * 5000 + "}"
DOUBLE = '{"question": "q", "answer": "a", "answer": "b"}'
INNER = '{"question": "q", "answer": "a", "meta": [{"x": 1, "x": 2}]}'
SURROGATE = r'{"question": "q", "answer": "a\ud800"}'
ODD = {
    DEEP: "invalid JSON (nested too deeply)",
    LONG: "holds a number of 5000 digits",
    DOUBLE: "names 'answer' twice",
    INNER: "names 'x' twice",
    SURROGATE: "answer holds a lone surrogate (U+D800 at character 2), which is no text",
    '{"question": "q", "answer": NaN}': "no answer",
    '{"question": "q", "answer": -Infinity}': "answer is not a string but -inf",
    '{"question": "q", "answer": 1e999}': "answer is not a string but inf",
    '{"question": "q\\udfff", "answer": "a"}': "question holds a lone surrogate (U+DFFF",
    '{"question": "q", "answer": "a", "perturbed_answer": ["\\ud801"]}': "perturbed_answer holds a lone surrogate",
    '{"text": ' + "[" * 700 + "]" * 700 + "}": "text is not a string but [[[[...",
}


@pytest.mark.parametrize("row", ODD, ids=range(len(ODD)))
def test_an_odd_row_is_named_in_json_lines_and_in_json(tmp_path, row):
    assert f"a.jsonl:3: {ODD[row]}" in refusal(write(tmp_path / "a.jsonl", lines(ROW, "", row, OTHER)))
    text = f"[{json.dumps(ROW)},\n {row},\n{json.dumps(OTHER)}]"
    assert f"b.json row 2: {ODD[row]}" in refusal(write(tmp_path / "b.json", text))


def test_a_row_in_memory_with_what_python_cannot_print_is_one_line():
    assert "row:1: answer is not a string but a int" in refusal([{"question": "q", "answer": 10**5000}])
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert "'x' stands" not in refusal([{"text": deep}])


BROKEN = {
    "null.csv": (b"question,answer\nq,a\0b\n", "null.csv:2: a zero byte, so not UTF-8 text"),
    "utf16.jsonl": (lines(ROW).encode("utf-16"), "utf16.jsonl:1: a zero byte"),
    "utf16.txt": ("Paris".encode("utf-16"), "utf16.txt:1: a zero byte"),
    "latin.txt": ("Müller".encode("latin-1"), "latin.txt:1: not UTF-8 text"),
    "null.json": (b'[{"text": "a\0"}]', "null.json:1: a zero byte"),
    "empty.txt": (b" \n", "empty.txt: is empty"),
    "twice.csv": (b"question,answer,answer\nq,a,b\n", "has the column 'answer' twice"),
    "twice.tsv": (b"text\ttext \na\tb\n", "has the column 'text' twice"),
    "case.csv": (b"text,Text\na,b\n", "case.csv:2: has the columns 'text' and 'Text'; rename one"),
    "open.csv": (b'question,answer\nq,"a\n', "open.csv:2: invalid CSV (unexpected end of data)"),
    "head.csv": (b'question,"answer\n', "head.csv:1: invalid CSV"),
    "cut.jsonl.gz": (gz(lines(*[ROW] * 9))[:-9], "cut.jsonl.gz is no whole gzip file"),
    "bits.jsonl.gz": (gz(lines(ROW))[:12] + b"\xff" * 30, "bits.jsonl.gz is no whole gzip file"),
    "plain.csv.gz": (b"question,answer\nq,a", "plain.csv.gz is no whole gzip file"),
    "number.json": (b"3", "number.json: needs a list of rows, not one int"),
    "cut.json": (b'[{"text": "a"}', "cut.json:1: invalid JSON (Expecting ',' delimiter)"),
    "two.json": (b'[{"text": "a"}]\n[{"text": "b"}]', "two.json:2: invalid JSON (Extra data)"),
    "deep.json": (b"[" * 100_000, "deep.json row 1: invalid JSON (nested too deeply)"),
    "object.json": (b'{"a":' * 100_000, "object.json: invalid JSON (nested too deeply)"),
    "empty.parquet": (b"", "is not a Parquet file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name):
    content, why = BROKEN[name]
    assert why in refusal(write(tmp_path / name, content))


def test_a_very_long_cell_is_read(tmp_path):
    (row,) = read(write(tmp_path / "a.csv", f"question,answer\nq,{'a' * 300_000}\n"))
    assert len(row.answer) == 300_000


def test_refuses_a_truncated_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([ROW] * 50).to_parquet(path)
    write(path, path.read_bytes()[:-20])
    assert "a.parquet is not a Parquet file that can be read" in refusal(path)


def test_refuses_a_parquet_file_with_a_column_twice(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "has the column 'text' twice" in refusal(tmp_path / "a.parquet")


def test_refuses_a_parquet_file_whose_strings_are_no_text(tmp_path):
    column = pyarrow.array([b"\xff\xfe"]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert "a.parquet is not a Parquet file that can be read" in refusal(tmp_path / "a.parquet")


def test_refuses_a_saved_data_set_that_is_broken(tmp_path):
    datasets.Dataset.from_list([ROW] * 50).save_to_disk(tmp_path / "a")
    (arrow,) = (tmp_path / "a").glob("*.arrow")
    write(arrow, arrow.read_bytes()[:200])
    assert "can't read the saved data set" in refusal(tmp_path / "a")


def test_refuses_a_saved_data_set_whose_strings_point_beyond_their_file(tmp_path):
    datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}]).save_to_disk(tmp_path / "a")
    (arrow,) = (tmp_path / "a").glob("*.arrow")
    with pyarrow.ipc.new_stream(str(arrow), pyarrow.schema([("text", pyarrow.string())])) as file:
        file.write(pyarrow.table({"text": ["a", "b"]}))
    column = struct.pack("<4i", 0, 1, 2, 0) + b"ab"  # offsets, padding, text
    assert arrow.read_bytes().count(column) == 1
    write(arrow, arrow.read_bytes().replace(column, struct.pack("<4i", 0, 3, 2, 0) + b"ab"))
    assert re.search("can't read the saved data set .*out of bounds", refusal(tmp_path / "a"))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "is a folder, and none of texts or of a saved data set. Give a file (.jsonl, .json"),
        (["a.jsonl", "b.csv", "README.md"], "Give one of its files (a.jsonl, b.csv)."),
        (["a.txt", "b.pdf"], "holds 1 texts and 1 other entries (first: b.pdf), which would be left out"),
        (["a.txt", "more/b.txt"], "holds 1 texts and 1 other entries (first: more)"),
    ],
)
def test_refuses_a_folder_of_which_something_would_be_left_out(tmp_path, names, why):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "x")
    assert why in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"])
def test_refuses_a_file_it_may_not_read(tmp_path, name, monkeypatch):
    def denied(*args, **options):
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / name, "x")
    monkeypatch.setattr(Path, "read_bytes", denied)
    monkeypatch.setattr(gzip, "open", denied)
    assert f"can't read {path} (Permission denied). Check its permissions." in refusal(path)


def test_refuses_a_folder_it_may_not_list(tmp_path, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    assert f"can't read {tmp_path} (Permission denied)" in refusal(tmp_path)
    assert "there is no file" in refusal(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "source", ["a\0b.jsonl", "x" * 5000 + ".jsonl", "~nobody-of-this-name/a.jsonl", "/root\udcff.csv"]
)
def test_refuses_a_path_that_no_file_can_have(source):
    assert "there is no file" in refusal(source)


def test_refuses_a_part_of_a_file_that_has_none(tmp_path):
    path = write(tmp_path / "a.csv", FILES["a.csv"])
    assert f"{path} has no parts, so 'train' means nothing. Leave out @train." in refusal(f"{path}@train")
    path = write(tmp_path / "a.json", FILES["a.json"])
    assert "a.json holds one set of rows, so 'train' means nothing" in refusal(f"{path}@train")


def test_a_local_folder_goes_before_a_hub_id_of_the_same_name(tmp_path, monkeypatch):
    datasets.DatasetDict({"train": datasets.Dataset.from_list([ROW])}).save_to_disk(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert read("org/name@train")[0].source == "name@train:1"
    shutil.rmtree(tmp_path / "org")
    assert os.path.exists(tmp_path)
    assert "can't load the data set org/name@train" in refusal("org/name@train")
