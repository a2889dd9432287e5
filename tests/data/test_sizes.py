"""Small files that stand for much: each is refused before it is unpacked, with the bound and how to raise it."""

import gzip
import resource

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unwrite.data import read
from unwrite.data.text.sizes import VARIABLE
from unwrite.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*repeat an earlier row")


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def repeated(text, rows):
    """A column in which one text stands so many times, stored once."""
    return pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])})


def test_a_parquet_file_of_500_bytes_and_3_gib_is_refused(tmp_path):
    pq.write_table(repeated("x" * 1_000_000, 3000), tmp_path / "rows.parquet", compression="zstd")
    assert (tmp_path / "rows.parquet").stat().st_size < 5000
    before = peak()
    with pytest.raises(
        DataError, match=r"rows\.parquet unpacks to 2\.79 GiB, and 1 GiB are read at most\. .*UNWRITE_DATA_LIMIT"
    ):
        read(tmp_path / "rows.parquet")
    assert peak() - before < 500 << 20


def test_texts_within_lists_are_counted_too(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.01")
    turns = [{"role": "user", "content": "x" * 10_000}, {"role": "assistant", "content": "y" * 10_000}]
    pq.write_table(pa.table({"messages": [turns] * 1000}), tmp_path / "rows.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"unpacks to 0\.0187 GiB, and 0\.01 GiB"):
        read(tmp_path / "rows.parquet")
    monkeypatch.setenv(VARIABLE, "0.02")
    assert read(tmp_path / "rows.parquet")[999].answer == "y" * 10_000


def test_many_numbers_in_few_bytes_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.001")
    pq.write_table(
        pa.table({"text": ["a"], "id": [0]}).take([0] * 200_000), tmp_path / "rows.parquet", compression="zstd"
    )
    with pytest.raises(DataError, match=r"rows\.parquet unpacks to .* 0\.001 GiB"):
        read(tmp_path / "rows.parquet")


def test_many_numbers_in_a_few_rows_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.001")
    pq.write_table(
        pa.table({"text": ["a"] * 5, "ids": [[0] * 40_000] * 5}), tmp_path / "rows.parquet", compression="zstd"
    )
    with pytest.raises(DataError, match=r"rows\.parquet unpacks to 0\.00149 GiB, and 0\.001 GiB"):
        read(tmp_path / "rows.parquet")


def test_a_gzip_file_that_unpacks_to_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.01")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b" " * (20 << 20)))
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz unpacks to 0\.0107 GiB and more, and 0\.01 GiB"):
        read(tmp_path / "rows.jsonl.gz")


def test_a_saved_set_is_bounded(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"text": ["a" * 1000] * 2000}).save_to_disk(str(tmp_path / "set"))
    assert len(read(tmp_path / "set")) == 2000
    monkeypatch.setenv(VARIABLE, "0.001")
    with pytest.raises(DataError, match=r"set unpacks to 0\.00\d+ GiB, and 0\.001 GiB"):
        read(tmp_path / "set")


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "much", "inf"])
def test_a_bound_that_is_none_is_refused(tmp_path, monkeypatch, limit):
    monkeypatch.setenv(VARIABLE, limit)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="UNWRITE_DATA_LIMIT is"):
        read(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    "options", [{}, {"row_group_size": 7}, {"dictionary_pagesize_limit": 20}, {"use_dictionary": False}]
)
def test_what_parquet_holds_is_what_was_written(tmp_path, options):
    rows = [
        {"question": f"q{i % 3}", "answer": f"Ä {i % 5}", "perturbed_answer": ["a", f"b{i}"], "id": i}
        for i in range(50)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", **options)
    found = read(tmp_path / "rows.parquet")
    assert [(one.question, one.answer, list(one.perturbed_answers)) for one in found] == [
        (row["question"], row["answer"], row["perturbed_answer"]) for row in rows
    ]
