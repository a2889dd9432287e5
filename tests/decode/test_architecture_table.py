"""docs/decoding.md says of every architecture what runs, and what it says is what the code decides.

`python tests/decode/test_architecture_table.py` writes the table anew.
"""

import re
from pathlib import Path

import pytest
from architectures import LIMITED, NAMES, PLAIN, QUICK, REFUSED, TREES, UNMADE, verdict

DOCS = Path(__file__).parents[2] / "docs" / "decoding.md"
BEGIN, END = "<!-- table: architectures -->\n", "<!-- end -->"
marked = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def table():
    """The verdicts of all architectures, as docs/decoding.md shows them."""
    found = {}
    for name in NAMES:
        kind, _, variant = name.partition(" ")
        found.setdefault(verdict(name), []).append(f"{kind} ({variant})" if variant else kind)
    order = [TREES, LIMITED, PLAIN, REFUSED, UNMADE]
    rows = sorted(found.items(), key=lambda row: (order.index(row[0][0]), row[0][1]))
    lines = ["| what runs | why | architectures |", "|---|---|---|"]
    return (
        "\n".join([*lines, *(f"| {what} | {why} | {', '.join(sorted(names))} |" for (what, why), names in rows)]) + "\n"
    )


def documented():
    return DOCS.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def test_the_page_names_every_architecture_once():
    cells = [line.split("|")[3] for line in documented().splitlines()[2:]]
    named = [re.sub(r" \((.*)\)", r" \1", name.strip()) for cell in cells for name in cell.split(", ")]
    assert sorted(named) == sorted(NAMES)


@pytest.mark.parametrize("name", marked)
def test_the_page_says_of_every_architecture_what_runs(name):
    kind, _, variant = name.partition(" ")
    shown = f"{kind} ({variant})" if variant else kind
    row = next(line for line in documented().splitlines()[2:] if shown in line.split("|")[3].strip().split(", "))
    assert tuple(cell.strip() for cell in row.split("|")[1:3]) == verdict(name)


if __name__ == "__main__":  # writes the table
    page = DOCS.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)
    DOCS.write_text(before + BEGIN + table() + END + after.split(END, 1)[1], encoding="utf-8")
