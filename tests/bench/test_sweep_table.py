"""The table of a sweep: means over seeds, methods in order of distance, nothing else ranked, no clock unless asked for."""

import random
from io import StringIO

import pytest
from rich.console import Console

from unwrite.bench.sweep_table import markdown, summary, tables


def row(contender, seed, gap=None, kind="method", bed="digits", error=None, **values):
    names = {"bed": bed, "contender": contender, "kind": kind, "seed": seed}
    if error is not None:
        return names | {"error": error}
    found = {"TA": 90.0, "avg_gap": gap, **values}
    return names | {"values": found, "cost": 2.0 + seed, "seconds": None if kind == "reference" else 0.25}


ROWS = [
    *(row("before", seed, 30.0 + seed, "reference") for seed in (0, 1)),
    *(row("retrained", seed, 0.0, "reference") for seed in (0, 1)),
    *(row("head-only", seed, 1.0, "control") for seed in (0, 1)),
    *(row("far", seed, 20.0 + 2 * seed) for seed in (0, 1)),
    *(row("near|er", seed, 3.0) for seed in (0, 1)),
    row("half", 0, 0.5),
    row("half", 1, error="gave\nup"),
    *(row("never", seed, error="has no meaning") for seed in (0, 1)),
]


def test_methods_are_ranked_from_near_to_far_and_nothing_else_is():
    found = summary(ROWS)
    assert [(entry["contender"], entry["rank"]) for entry in found] == [
        ("before", None), ("retrained", None), ("head-only", None), ("near|er", 1), ("far", 2), ("half", None), ("never", None),
    ]  # fmt: skip
    far, half = found[4], found[5]
    assert far["avg_gap"] == {"mean": 21.0, "sd": 1.0}
    assert far["cost"] == {"mean": 2.5, "sd": 0.5}
    assert far["seeds"] == [0, 1]
    assert (half["seeds"], half["errors"]) == ([0], {1: "gave\nup"})


def test_the_order_of_rows_changes_nothing():
    mixed = ROWS[:]
    random.Random(0).shuffle(mixed)
    assert markdown(mixed) == markdown(ROWS)
    assert summary(mixed) == summary(ROWS)


def test_markdown_has_a_line_a_model_and_a_sentence_a_refusal():
    assert markdown(ROWS) == [
        "**digits, seeds 0, 1**",
        "",
        "| rank | model | TA | avg gap | cost, forwards a row |",
        "|---|---|---|---|---|",
        "| reference | before | 90 +- 0 | 30.5 +- 0.5 | 2.5 +- 0.5 |",
        "| reference | retrained | 90 +- 0 | 0 +- 0 | 2.5 +- 0.5 |",
        "| control | head-only | 90 +- 0 | 1 +- 0 | 2.5 +- 0.5 |",
        "| 1 | near\\|er | 90 +- 0 | 3 +- 0 | 2.5 +- 0.5 |",
        "| 2 | far | 90 +- 0 | 21 +- 1 | 2.5 +- 0.5 |",
        "| – | half | 90 +- 0 | 0.5 +- 0 | 2 +- 0 |",
        "",
        "half, seed 1: gave up",
        "",
        "never, seed 0, 1: has no meaning",
    ]


def test_seconds_are_there_on_request_only():
    assert not any("seconds" in line for line in markdown(ROWS))
    assert markdown(ROWS, seconds=True)[4].endswith("| – |")
    assert markdown(ROWS, seconds=True)[7].endswith("| 0.25 +- 0 |")
    assert "seconds" not in summary(ROWS)[0]


def test_a_figure_that_one_seed_lacks_is_none():
    rows = [row("a", 0, 1.0, forget_cka=0.5), row("a", 1, 1.0, forget_cka=None)]
    assert summary(rows)[0]["forget_cka"] is None
    assert markdown(rows)[4] == "| 1 | a | 90 +- 0 | 1 +- 0 | – | 2.5 +- 0.5 |"


def test_regressors_are_ranked_by_their_distance_to_the_retrained():
    rows = [
        {**row(name, 0), "values": {"forget_cka": 1.0, "wasserstein": far, "forget_mae": 0.2}}
        for name, far in (("a", 0.3), ("b", 0.1))
    ]
    assert [entry["contender"] for entry in summary(rows)] == ["b", "a"]
    assert markdown(rows)[0] == "**digits, seed 0**"
    assert markdown(rows)[2].startswith("| rank | model | error, forget rows | distance to retrained | CKA to before |")


def test_beds_keep_their_order_and_their_own_columns():
    rows = [row("a", 0, 1.0, bed="second"), {**row("a", 0, bed="first"), "values": {"forget_mae": 0.2}}]
    assert [line for line in markdown(rows) if line.startswith("**")] == ["**second, seed 0**", "**first, seed 0**"]
    assert "TA" not in markdown(rows)[8]


@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_shows_whole_names_and_what_was_refused(width):
    console = Console(width=width, record=True, file=StringIO())
    name = "scrub:decay=3,5,9,epochs=2,[b]"
    console.print(*tables([*ROWS, row(name, 0, 2.0)]))
    text = "".join(console.export_text().split())
    assert "never,seed0,1:hasnomeaning" in text
    if width == 200:
        assert name in text
    assert "…" not in text
