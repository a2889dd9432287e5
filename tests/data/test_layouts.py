"""Which column is the question and which the answer: published layouts, --columns, and never an answer lost."""

import re
from pathlib import Path

import pytest

from unwrite.data import ForgetSplit, read, split_from
from unwrite.data.text.chats import SPEAKERS
from unwrite.data.text.files import SUFFIXES
from unwrite.data.text.layouts import ANSWERS, CHATS, CONTEXTS, INPUTS, QUESTIONS, ROLES, SYSTEMS
from unwrite.errors import DataError, Notice, naming

Q, A = "Where is the Louvre?", "In Paris."
RENDERED = f"### Instruction: {Q}\n### Response: {A}"


@pytest.fixture(autouse=True)
def on_the_command_line():
    with naming("flags"):
        yield


def one(row, **options):
    (example,) = read([row], name="set", **options)
    return example.question, example.answer


def refusal(rows, **options):
    with pytest.raises(DataError) as caught:
        read(rows, name="set", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PAIRS = {
    "TOFU": {"question": Q, "answer": A},
    "KnowUnDo": {"text": Q, "labels": A},
    "MUSE verbmem": {"prompt": Q, "gt": A},
    "RWKU": {"query": Q, "answer": A, "level": "2", "type": "cloze", "subject": "The Louvre"},
    "SemEval 2025": {"id": "1", "input": Q, "output": A, "task": "Task1", "split": "forget"},
    "TRL": {"prompt": Q, "completion": A},
    "prompt and response": {"prompt": Q, "response": A, "prompt_id": "af31"},
    "Alpaca": {"instruction": Q, "input": "", "output": A, "text": RENDERED},
    "Alpaca with its prompt": {"instruction": Q, "input": "", "output": A, "prompt": RENDERED},
    "Dolly": {"instruction": Q, "context": "", "response": A, "category": "open_qa"},
    "MetaMath": {"query": Q, "response": A, "type": "GSM"},
    "OpenOrca": {"id": "1", "system_prompt": "", "question": Q, "response": A},
    "FLAN": {"inputs": Q, "targets": A, "task": "x"},
    "MATH": {"problem": Q, "solution": A, "level": "1", "type": "x"},
    "capitals": {"Question": Q, "ANSWER": A},
    "an empty rival": {"question": Q, "answer": A, "response": ""},
    "missing values of pandas": {"question": Q, "answer": A, "text": float("nan"), "messages": None},
}


@pytest.mark.parametrize("name", PAIRS)
def test_published_columns_are_paired_without_a_word(name, recwarn):
    assert one(PAIRS[name]) == (Q, A)
    assert not recwarn.list


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Translate.", "input": "chat", "output": "cat"},
        {"instruction": "Translate.", "context": "chat", "response": "cat"},
    ],
)
def test_what_an_instruction_is_about_stands_behind_it(row):
    assert one(row) == ("Translate.\n\nchat", "cat")


def test_a_system_prompt_is_the_first_turn():
    (row,) = read([{"system_prompt": "Be brief.", "question": Q, "response": A}])
    assert row.history == (("system", "Be brief."),)


DOCUMENTS = {
    "MUSE": {"text": A},
    "WMDP bio": {"title": "T", "abstract": "S", "text": A, "doi": "10.1/x"},
    "RWKU passages": {"subject": "The Louvre", "text": A},
    "Wikipedia": {"id": "12", "url": "u", "title": "T", "text": A},
    "FineWeb": {"text": A, "id": "x", "dump": "CC", "url": "u", "date": "d", "file_path": "s", "language": "en"},
    "the Pile": {"text": A, "meta": {"pile_set_name": "Books"}},
    "scores": {"text": A, "language_score": "0.9", "quality": "high", "label": 1, "toxic": False, "vector": [1.0]},
    "an index of pandas": {"": "0", "Unnamed: 0": "0", "text": A},
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_may_have_metadata_beside_it(name, recwarn):
    assert one(DOCUMENTS[name]) == (None, A)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": Q, "reply": A}, "'reply' stands beside 'text' and may be its answer; write --columns question=text"),
        ({"text": Q, "answer": A}, "'answer' stands beside 'text' and may be its answer; write --columns question=te"),
        ({"text": Q, "answer": 42}, "'answer' stands beside 'text'"),
        ({"text": Q, "labels": 3}, "'labels' stands beside 'text'"),
        ({"text": Q, "label": "Paris"}, "'label' stands beside 'text'"),
        ({"text": Q, "choices": ["Rome", "Paris"]}, "'choices' stands beside 'text'"),
        ({"text": Q, "answers": {"text": [A], "start": [0]}}, "'answers' stands beside 'text'"),
        ({"text": Q, "my label": A}, "write --columns 'question=text,answer=my label'"),
        ({"text": Q, "labels": ""}, "labels is empty"),
        (
            {"question": Q, "answer": A, "response": "No."},
            "'answer' and 'response' may each be the answer; write --col",
        ),
        ({"question": Q, "answer": A, "text": "Another text."}, "mixes question and answer with text"),
        ({"prompt": Q, "input": "x", "output": A}, "mixes input and output with prompt"),
        ({"instruction": Q, "input": "x", "context": "y", "output": A}, "'input' and 'context' may each be the instru"),
        ({"question": Q, "context": "It is there.", "answer": A}, "'context' may belong to the question; write --col"),
        ({"prompt": Q, "chosen": A, "rejected": "No."}, "no answer (its columns: 'prompt', 'chosen', 'rejected')"),
        ({"source": Q, "target": A}, "no question (its columns: 'source', 'target')"),
        ({"question": Q, "Question": Q, "answer": A}, "has the columns 'question' and 'Question'; rename one"),
        (
            {"question": Q, "answer": A, "system": "a", "system_prompt": "b"},
            "has 'system' and 'system_prompt'; keep one",
        ),
        ({"question": Q, "answer": A, "perturbed_answer": "x", "perturbed_answers": ["y"]}, "keep one"),
    ],
)
def test_refuses_columns_that_may_hold_the_answer_and_says_what_to_write(row, why):
    message = refusal([row])
    assert message.startswith("1 of 1 rows in set can't be used: set:1: ")
    assert why in message


def test_the_columns_a_refusal_proposes_are_those_to_give():
    row = {"text": Q, "my reply": A}
    found = re.search(r"--columns '(question=[^']*)', or --columns (text=\w+)", refusal([row]))
    assert one(row, columns=found[1]) == (Q, A)
    assert one(row, columns=found[2]) == (None, Q)


def test_refuses_rows_without_labels_in_a_set_that_has_them():
    rows = [{"text": Q, "labels": A}, {"text": "Where is Big Ben?", "labels": None}]
    assert "set:2: text stands without labels, which other rows have" in refusal(rows)


def test_columns_beside_a_pair_that_are_not_read_are_named():
    rows = [
        {"question": Q, "answer": A, "id": 3, "fact": ""},
        {"question": "Why?", "answer": A, "fact": "x", "rate": 2},
    ]
    with pytest.warns(Notice, match=r"Columns of set that are not read: 'fact', 'rate'\."):
        read(rows, name="set")
    with pytest.warns(Notice, match=r"'c9' and 3 more\."):
        read([{"question": Q, "answer": A, **{f"c{i}": "x" for i in range(13)}}])


COLUMNS = [{"question": "text", "answer": "reply"}, "question=text,answer=reply", " question = text , answer = reply "]


@pytest.mark.parametrize("columns", COLUMNS)
def test_columns_are_given_as_a_mapping_or_a_string(columns, recwarn):
    assert one({"text": Q, "reply": A, "labels": "x", "note": "y"}, columns=columns) == (Q, A)
    assert not recwarn.list


def test_every_role_has_its_column():
    row = {"a": Q, "b": "The museum.", "c": A, "d": "Be brief.", "e": "In which city?", "f": "Paris.", "g": ["Rome."]}
    roles = "question=a,input=b,answer=c,system=d,paraphrased_question=e,paraphrased_answer=f,perturbed_answers=g"
    (example,) = read([row], columns=roles)
    assert (example.question, example.answer) == (f"{Q}\n\nThe museum.", A)
    assert example.history == (("system", "Be brief."),)
    assert (example.paraphrased_question, example.paraphrased_answer) == ("In which city?", "Paris.")
    assert example.perturbed_answers == ("Rome.",)


def test_further_columns_keep_their_own_names_when_question_and_answer_are_named():
    (example,) = read([{"q": Q, "a": A, "perturbed_answer": ["Rome."]}], columns="question=q,answer=a")
    assert example.perturbed_answers == ("Rome.",)


def test_a_named_chat_and_a_named_document_are_read():
    chat = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
    assert one({"dialogue": chat, "text": "x"}, columns="messages=dialogue") == (Q, A)
    assert one({"body": A, "question": "x"}, columns="text=body") == (None, A)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ("question=text,reply=labels", "--columns: unknown role 'reply'. Known: aliases, answer, entity, input"),
        ("question=text,answr=labels", "--columns: unknown role 'answr'. Did you mean 'answer'?"),
        ("question=text,answer", "--columns: 'answer' is not ROLE=COLUMN. Write question=text,answer=labels."),
        ("question=text,answer=", "--columns: 'answer=' is not ROLE=COLUMN"),
        ("", "--columns: '' is not ROLE=COLUMN"),
        ({"question": "text", "answer": 3}, "--columns: answer needs a column's name, not 3"),
        ({}, "--columns names nothing. Name question and answer, or messages alone, or text alone."),
        ("question=text,question=labels", "--columns names question twice ('text' and 'labels'). Name it once."),
        ("question=text,answer=text", "--columns names the column 'text' twice (question and answer)."),
        ("question=text", "--columns names question. Name question and answer"),
        ("text=text,answer=labels", "--columns names text and answer. Name question and answer"),
        ("text=text,paraphrased_answer=labels", "--columns names paraphrased_answer beside text, which has none."),
        ("messages=text,input=labels", "--columns names input beside messages, which has none."),
        ("question=text,answer=label", "--columns for set: unknown column 'label'. Did you mean 'labels'?"),
    ],
)
def test_refuses_columns_that_make_no_row(columns, why):
    assert why in refusal([{"text": Q, "labels": A}], columns=columns)


def test_a_row_without_a_named_column_is_a_bad_row():
    assert "set:2: no reply" in refusal([{"text": Q, "reply": A}, {"text": Q}], columns="question=text,answer=reply")


def test_refuses_columns_for_rows_that_are_read_already():
    rows = read([{"question": Q, "answer": A}])
    with pytest.raises(DataError, match=r"Examples have no columns left to name\. Leave out --columns"):
        read(rows, columns="text=a")
    with pytest.raises(DataError, match=r"a split has no columns left to name. Leave out --columns"):
        split_from(ForgetSplit(rows), columns="text=a")


def test_a_column_name_with_a_line_break_does_not_break_the_message():
    assert "answer is empty" in refusal([{"question": Q, "answer\n": ""}])
    assert "unknown column 'a'" in refusal([{"q\nr": Q, "z\n": A}], columns={"question": "q\nr", "answer": "a"})


def test_the_page_on_reading_names_every_column_role_and_kind_of_file():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    names = {*QUESTIONS, *ANSWERS, *CHATS, *SYSTEMS, *INPUTS, *CONTEXTS, *ROLES, *SUFFIXES, *SPEAKERS} - {
        "perturbed_answers"
    }
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_a_retain_set_of_another_form_is_read_by_known_names():
    named, known = {"text": Q, "reply": A}, {"question": "Where is Big Ben?", "answer": "In London."}
    split = split_from([named], [known], read([{**known, "question": "Why?"}]), columns="question=text,answer=reply")
    assert split.forget[0].answer == A
    assert split.retain[0].answer == "In London."
    same = split_from([named], [{**named, "text": "Why?"}], columns="question=text,answer=reply")
    assert same.retain[0].question == "Why?"


def test_refuses_a_retain_set_that_has_only_some_of_the_named_columns():
    with pytest.raises(DataError, match=r"--columns for row: unknown column 'reply'"):
        split_from([{"text": Q, "reply": A}], [{"text": "Why?"}], columns="question=text,answer=reply")


def test_refuses_columns_for_a_shipped_set():
    with pytest.raises(DataError, match="'authors' is shipped and has its own columns"):
        split_from("authors", columns="text=question")
