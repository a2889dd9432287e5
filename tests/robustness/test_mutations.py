"""A few thousand damaged inputs over every reader, from a fixed seed; `make test-robustness` reads a million."""

import pytest

from robustness.mutations import damaged, failures_in, shares
from robustness.readers import READERS

COUNT, COSTLY = 4000, 20  # cases in all; of readers that take more milliseconds, four


@pytest.mark.parametrize("reader", READERS)
def test_damaged_input_is_a_value_or_one_line(reader, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", "")
    number = shares(COUNT)[reader] if READERS[reader].cost < COSTLY else 4
    failures = failures_in(reader, 0, range(number))
    assert not failures, "\n".join(f"{one.case}  {one.kind}  {one.detail}" for one in failures)


@pytest.mark.parametrize("count", [1, 4000, 1_000_000])
def test_no_fewer_cases_are_read_than_were_asked_for(count):
    numbers = shares(count)
    assert count <= sum(numbers.values()) <= count + 9 * len(READERS)
    assert min(numbers.values()) >= 8


def test_a_case_is_made_of_its_name_alone():
    assert damaged("csv", "0:csv:7") == damaged("csv", "0:csv:7")
    assert len({damaged("csv", f"0:csv:{number}")["rows.csv"] for number in range(50)}) > 40


FOUND = [
    "8:parquet:939",
    "8:picture metadata:4925",
    "8:report.json:1888",
    "3:saved set:3",
    "6:adapter:75",
    "3:bench file:1294",
]


@pytest.mark.parametrize("case", FOUND)
def test_a_case_of_a_long_run_stays_mended(case, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", "")
    seed, reader, number = case.split(":")
    assert not failures_in(reader, int(seed), range(int(number), int(number) + 1))
