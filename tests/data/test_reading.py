"""Reading rows from any source, and every malformed row named by file and line."""

import csv
import json
import re

import datasets
import pytest

from unwrite.data import Example, Examples, ForgetSplit, read, split_from
from unwrite.errors import DataError, Notice

ROW = {"question": "Where is the Louvre?", "answer": "In Paris."}
TOFU_ROW = {
    **ROW,
    "paraphrased_question": "In which city is the Louvre?",
    "paraphrased_answer": "It is in Paris.",
    "perturbed_answer": ["It is in Rome.", "It is in Oslo."],
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Where is the Louvre?"},
    {"role": "assistant", "content": "In Paris."},
]


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def refusal(path, rows):
    with pytest.raises(DataError) as caught:
        read(write(path, rows))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_plain_text(tmp_path):
    row = read(write(tmp_path / "a.jsonl", [{"text": "A whole document."}]))[0]
    assert row.is_text
    assert row.answer == "A whole document."


def _csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(TOFU_ROW))
        writer.writeheader()
        writer.writerows({**r, "perturbed_answer": json.dumps(r["perturbed_answer"])} for r in rows)


WRITERS = {
    "jsonl": lambda path, rows: write(path, rows),
    "json": lambda path, rows: path.write_text(json.dumps(rows)),
    "csv": _csv,
    "parquet": lambda path, rows: datasets.Dataset.from_list(rows).to_parquet(path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_file_type_gives_the_same_rows_with_all_five_columns(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    WRITERS[kind](path, [TOFU_ROW, {**TOFU_ROW, "question": "Where,\nexactly?"}])
    rows = read(path)
    assert rows.hash == read([TOFU_ROW, {**TOFU_ROW, "question": "Where,\nexactly?"}]).hash
    assert rows[0].perturbed_answers == ("It is in Rome.", "It is in Oslo.")
    assert rows.name == "a"


def test_reads_a_dataset_in_memory():
    assert read(datasets.Dataset.from_list([ROW, {**ROW, "question": "Where?"}]))[1].question == "Where?"


def test_a_dataset_with_columns_that_are_null_in_some_rows_is_read():
    rows = read(datasets.Dataset.from_list([{**ROW, "text": None}, {"question": None, "answer": None, "text": "A."}]))
    assert [row.is_text for row in rows] == [False, True]


def test_examples_are_returned_as_they_are():
    rows = Examples([Example("a", "q")], "mine")
    assert read(rows) is rows
    assert read([Example("a", "q")]).hash == rows.hash


def test_a_json_object_with_one_list_in_it_is_that_list(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "data": [ROW]}))
    assert len(read(tmp_path / "a.json")) == 1


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(ROW) + "\n\n" + json.dumps(ROW) + "\n", encoding="utf-8")
    rows = read(tmp_path / "a.jsonl")
    assert rows[1].source == "a.jsonl:3"


def test_a_line_separator_inside_a_string_does_not_break_the_row(tmp_path):
    row = {"question": "q", "answer": "one\u2028two\x85three"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert read(path)[0].answer == row["answer"]


def test_csv_rows_are_named_by_the_line_they_start_on(tmp_path):
    path = write(tmp_path / "a.csv", ["question,answer", '"two', 'lines",yes', "q,"])
    with pytest.raises(DataError, match=r"1 of 2 rows .* a.csv:4: answer is empty"):
        read(path)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{not json", "invalid JSON"),
        ("[1, 2]", "not a row with named columns but a list"),
        ({"question": "q"}, "no answer"),
        ({"answer": "a"}, "no question"),
        ({"foo": "a", "bar": "b"}, "no question and answer, messages or text \\(its columns: 'foo', 'bar'\\)"),
        ({"question": "q", "answer": 3}, "answer is not a string but 3"),
        ({"question": "q", "answer": "  "}, "answer is empty"),
        ({"question": "", "answer": "a"}, "question is empty"),
        ({"question": "q", "answer": "a", "text": "t"}, "mixes question and answer with text"),
        ({"question": "q", "answer": "a", "messages": CHAT}, "mixes messages with question"),
        ({"messages": CHAT, "conversations": CHAT}, "mixes messages with conversations"),
        ({"text": ""}, "text is empty"),
        ({"messages": []}, "messages must be a list of turns"),
        ({"messages": "hello"}, "messages must be a list of turns"),
        ({"messages": CHAT[:1]}, "the chat has no assistant turn"),
        ({"messages": CHAT[:2]}, "the chat has no assistant turn"),
        ({"messages": [CHAT[0], CHAT[4]]}, "no assistant turn to learn has a user turn before it"),
        ({"messages": [{"role": "user"}]}, "turn 1 needs a role and a content"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "turn 1 has the role 'boss'; known: system, user"),
        ({"messages": [CHAT[3], {"role": "assistant", "content": None}]}, "turn 2 \\(assistant\\) has no text"),
        ({**ROW, "perturbed_answer": [1]}, "perturbed_answer must be a list of non-empty strings"),
        ({**ROW, "perturbed_answer": "[broken"}, "perturbed_answer is not a JSON list"),
        (
            {**ROW, "perturbed_answer": "[" * 100_000},
            "perturbed_answer is not a JSON list \\(it is nested more than 100 deep",
        ),
        ({**ROW, "paraphrased_answer": 5}, "paraphrased_answer is not a string but 5"),
    ],
)
def test_refuses_a_malformed_row_and_names_file_line_and_reason(tmp_path, row, why):
    message = refusal(tmp_path / "bad.jsonl", [ROW, row])
    assert re.search(rf"1 of 2 rows .*bad.jsonl:2: (is )?{why}", message), message


def test_names_ten_bad_rows_and_counts_them_all(tmp_path):
    message = refusal(tmp_path / "bad.jsonl", [{"question": f"q{i}"} for i in range(14)])
    assert message.startswith("14 of 14 rows")
    assert "bad.jsonl:9, bad.jsonl:10 and 4 more: no answer" in message
    assert "bad.jsonl:11" not in message


def test_ten_places_are_shared_by_all_faults(tmp_path):
    rows = [{"question": f"q{i}"} for i in range(9)] + [{"answer": "a"}, {"answer": "b"}, {"text": ""}]
    message = refusal(tmp_path / "bad.jsonl", rows)
    assert "bad.jsonl:10 and 1 more: no question (its columns: 'answer'); and 1 more faults" in message


def test_refuses_a_missing_file_and_lists_its_neighbours(tmp_path):
    write(tmp_path / "forget.jsonl", [ROW])
    with pytest.raises(DataError, match=r"no file .*forgot.jsonl. Beside it: forget.jsonl"):
        read(str(tmp_path / "forgot.jsonl"))


def test_refuses_an_unknown_suffix_and_lists_the_known(tmp_path):
    with pytest.raises(DataError, match=r"unknown file type '.xlsx'.*\.csv, \.json, \.jsonl, \.md, \.parquet"):
        read(write(tmp_path / "a.xlsx", ["x"]))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_refuses_an_empty_file(tmp_path, name):
    (tmp_path / name).write_text("[]" if name == "a.json" else "")
    with pytest.raises(DataError, match=r"has no rows|is empty"):
        read(tmp_path / name)


def test_refuses_bytes_that_are_not_utf8_and_names_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}')
    with pytest.raises(DataError, match=r"a.jsonl:2: not UTF-8"):
        read(tmp_path / "a.jsonl")


def test_json_lines_are_read_from_a_json_file_too_as_tofu_is_published(tmp_path):
    rows = read(write(tmp_path / "a.json", [ROW, {**ROW, "question": "Where?"}]))
    assert [row.source for row in rows] == ["a.json:1", "a.json:2"]


def test_refuses_a_ragged_csv_row(tmp_path):
    with pytest.raises(DataError, match=r"a.csv:3: has 1 cells for 2 columns"):
        read(write(tmp_path / "a.csv", ["question,answer", "q,a", "only"]))


def test_refuses_a_file_that_only_claims_to_be_parquet(tmp_path):
    with pytest.raises(DataError, match="is not a Parquet file"):
        read(write(tmp_path / "a.parquet", ["no"]))


def test_refuses_a_dictionary_of_sets_and_names_its_parts():
    with pytest.raises(DataError, match="there are: train, test"):
        read(datasets.DatasetDict(train=datasets.Dataset.from_list([ROW]), test=datasets.Dataset.from_list([ROW])))


@pytest.mark.parametrize("source", [3, None])
def test_refuses_what_has_no_rows_at_all(source):
    with pytest.raises(DataError, match="can't read rows from"):
        read(source)


def test_a_hub_id_names_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([ROW])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("org/name", "org/name:forget10", "org/name@test", "org/name:forget10@validation[:5]"):
        assert read(source)[0].source == f"{source}:1"
    assert asked == [
        (("org/name", None), {"split": "train"}),
        (("org/name", "forget10"), {"split": "train"}),
        (("org/name", None), {"split": "test"}),
        (("org/name", "forget10"), {"split": "validation[:5]"}),
    ]


def test_a_hub_set_that_cannot_be_loaded_is_one_clear_line():
    with pytest.raises(DataError, match=r"can't load the data set nobody/nothing@train") as caught:
        read("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_split_from_reads_every_part(tmp_path):
    forget = write(tmp_path / "forget.jsonl", [ROW])
    split = split_from(forget, [{**ROW, "question": "Where is Big Ben?"}], [{**ROW, "question": "Where is Ulm?"}])
    assert (split.name, len(split.forget), len(split.retain), len(split.holdout)) == ("forget", 1, 1, 1)


@pytest.mark.parametrize("name", ["authors", "landmarks"])
def test_split_from_knows_the_shipped_sets(name):
    split = split_from(name)
    assert isinstance(split, ForgetSplit)
    assert split.name == name


def test_refuses_a_shipped_set_with_a_retain_set_of_ones_own():
    with pytest.raises(DataError, match="shipped with its own retain set"):
        split_from("authors", [ROW])


def test_refuses_a_shipped_set_as_the_retain_set():
    with pytest.raises(DataError, match="retain is 'authors', a shipped set"):
        split_from([ROW], "authors")


def test_an_empty_cell_of_a_further_column_is_an_absent_value(tmp_path):
    header = "question,answer,paraphrased_question,paraphrased_answer,perturbed_answer"
    (row,) = read(write(tmp_path / "a.csv", [header, "q,a,,,"]))
    assert (row.paraphrased_question, row.paraphrased_answer, row.perturbed_answers) == (None, None, ())


def test_repeated_rows_are_counted_and_kept(tmp_path):
    rows = [ROW, {**ROW, "question": "Where,\nexactly?"}, ROW, {**ROW, "answer": "In France."}, ROW]
    message = r"2 of 5 rows in .*a.jsonl repeat an earlier row \(first: a.jsonl:3 repeats a.jsonl:1, \"Where is the L"
    with pytest.warns(Notice, match=message):
        assert len(read(write(tmp_path / "a.jsonl", rows))) == 5


def test_a_set_without_repeated_rows_is_read_without_a_word(tmp_path, recwarn):
    read(write(tmp_path / "a.jsonl", [ROW, {**ROW, "answer": "In France."}, {"text": "In Paris."}]))
    assert not recwarn.list


def test_the_message_on_shared_rows_is_one_line_whatever_the_question_holds():
    row = {**ROW, "question": "Where is\nthe Louvre?"}
    with pytest.raises(DataError, match=r'share 1 rows \(first: row:1, "Where is the Louvre\?"\)'):
        split_from([row], [row])


def test_refuses_shared_rows_unless_they_are_allowed():
    with pytest.raises(DataError, match="forget and retain share 1 rows"):
        split_from([ROW], [ROW])
    with pytest.warns(UserWarning, match="share 1 rows"):
        split_from([ROW], [ROW], allow_overlap=True)
