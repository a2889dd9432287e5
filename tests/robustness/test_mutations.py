"""A few thousand damaged inputs over every reader, from a fixed seed; `make test-robustness` reads a million."""

import pytest

from robustness.mutations import damaged, failures_in, shares
from robustness.readers import READERS

COUNT, COSTLY = 2500, 20  # cases in all; readers of more milliseconds are left to the long run
CHEAP = [name for name, reader in READERS.items() if reader.cost < COSTLY]


@pytest.mark.parametrize("reader", CHEAP)
def test_damaged_input_is_a_value_or_one_line(reader, monkeypatch):
    monkeypatch.setenv("UNWRITE_CACHE", "")
    failures = failures_in(reader, 0, range(shares(COUNT)[reader]))
    assert not failures, "\n".join(f"{one.case}  {one.kind}  {one.detail}" for one in failures)


def test_a_case_is_made_of_its_name_alone():
    assert damaged("csv", "0:csv:7") == damaged("csv", "0:csv:7")
    assert len({damaged("csv", f"0:csv:{number}")["rows.csv"] for number in range(50)}) > 40
