"""Files of every form, damaged at random: each is read, or refused in one line that names the file."""

import gzip
import json
import random
import warnings

import datasets
import pytest

from unwrite.data import Examples, read
from unwrite.errors import DataError

ROWS = [
    {"question": "Wo steht „Big Ben“?", "answer": "In London.", "perturbed_answer": ["In Rom.", "In Oslo."]},
    {"question": "Where is the Louvre?", "answer": "In Paris.", "perturbed_answer": ["In Rome.", "In Oslo."]},
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "Here."},
]
TABLES = {
    "pairs": ROWS,
    "chats": [{"messages": CHAT}, {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
    "halves": [{"prompt": CHAT[:4], "completion": CHAT[4:]}, {"prompt": "a", "completion": "b"}],
    "texts": [{"text": "A document.", "id": 1, "meta": {"url": "u"}}, {"text": "Another.", "id": 2, "meta": None}],
    "labels": [{"text": "Where?", "labels": "Here."}, {"text": "When?", "labels": "Now."}],
}
CSV = 'question,answer,perturbed_answer\n"Where, exactly?","In\nParis.","[""In Rome.""]"\nWhen?,Now.,\n'
HUGE = "a number of 5,000 digits"
# What a value of JSON is swapped for.
VALUES = [
    None, True, 0, -1, HUGE, 1e308, float("nan"), float("inf"), "", " ", "\ud800", "\0", "[", "[1]", "x" * 300, [],
    {}, [[]], [{}], {"role": "user"}, [{"type": "image"}], [{"type": []}], [None], CHAT, "messages", ["\udfff"],
]  # fmt: skip
NAMES = [
    "text",
    "labels",
    "question",
    "answer",
    "messages",
    "from",
    "role",
    "content",
    "type",
    "",
    "Text",
    "input",
    "\ud800",
]
KINDS = ["jsonl", "json", "csv", "tsv", "txt", "parquet", "gz", "saved"]


def whole(kind, table):
    """A valid file's bytes."""
    if kind in ("csv", "tsv"):
        return CSV.replace(",", "\t" if kind == "tsv" else ",").encode()
    if kind == "txt":
        return b"The Louvre is in Paris.\n"
    text = json.dumps(table) if kind == "json" else "\n".join(map(json.dumps, table))
    return gzip.compress(text.encode(), mtime=0) if kind == "gz" else text.encode()


def damaged(data, rng):
    """Some bytes flipped, cut, repeated or put elsewhere."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(6)
        if kind == 0:
            data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 1:
            del data[i : i + rng.choice([1, 2, 30])]
        elif kind == 2:
            data[i:i] = data[i:j]
        elif kind == 3:
            data[i:i] = rng.choice([b"\0", b"\xff\xfe", b'"', b"{", b"[", b",", b"\n", b"\\ud800", b"NaN", b"[" * 5000])
        elif kind == 4:
            del data[i:]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def swapped(value, rng):
    """The value with one of its parts, at any depth, replaced, renamed, repeated or removed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        kind = rng.randrange(5)
        if kind == 0:
            return {rng.choice(NAMES) if key == name else key: part for key, part in value.items()}
        if kind == 1:
            return {key: part for key, part in value.items() if key != name}
        if kind == 2:
            return {**value, rng.choice(NAMES): rng.choice(VALUES)}
        return {**value, name: swapped(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        return [*value[:i], *[swapped(value[i], rng)] * rng.randrange(3), *value[i + 1 :]]
    return rng.choice(VALUES)


def attempt(source):
    """The examples in the source, or the message of the refusal; nothing else may come out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rows = read(source)
        except DataError as error:
            return None, str(error)
    assert isinstance(rows, Examples)
    assert rows.hash
    return rows, ""


def outcome(path, shown):
    """Asserts that the path is read, or refused in one line with its name."""
    rows, message = attempt(path)
    assert "\n" not in message
    assert rows or path.name in message, shown
    return "read" if rows else "refused"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_damaged_bytes_is_read_or_refused(tmp_path, kind):
    rng = random.Random(kind)
    outcomes = set()
    columnar = kind in ("parquet", "saved")
    for turn in range(30 if columnar else 150):
        table = TABLES[rng.choice(["pairs", "texts", "labels"] if columnar else list(TABLES))]
        if kind == "saved":
            path = tmp_path / f"set{turn}"
            datasets.Dataset.from_list(table).save_to_disk(path)
            file = rng.choice(sorted(path.iterdir()))
        else:
            file = path = tmp_path / ("a.jsonl.gz" if kind == "gz" else f"a.{kind}")
            datasets.Dataset.from_list(table).to_parquet(path) if kind == "parquet" else path.write_bytes(
                whole(kind, table)
            )
        outcomes.add(outcome(path, "whole"))
        file.write_bytes(damaged(file.read_bytes(), rng))
        outcomes.add(outcome(path, file.read_bytes()))
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_swapped_values_is_read_or_refused(tmp_path, name):
    rng = random.Random(name)
    outcomes = set()
    for turn in range(400):
        table = TABLES[name]
        for _ in range(rng.randint(1, 3)):
            table = swapped(table, rng)
        path = tmp_path / f"a.{'json' if turn % 2 else 'jsonl'}"
        rows = table if isinstance(table, list) and turn % 2 == 0 else [table]
        path.write_text("\n".join(map(json.dumps, rows)).replace(json.dumps(HUGE), "1" * 5000))
        outcomes.add(outcome(path, path.read_text()))
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("name", TABLES)
def test_rows_in_memory_with_swapped_values_are_read_or_refused(name):
    rng = random.Random(name)
    for _ in range(300):
        table = swapped(swapped(TABLES[name], rng), rng)
        table = table if isinstance(table, list) else [table]
        rows = [
            {**row, rng.choice(NAMES): 10**5000} if isinstance(row, dict) and rng.random() < 0.1 else row
            for row in table
        ]
        assert "\n" not in attempt(rows)[1]
