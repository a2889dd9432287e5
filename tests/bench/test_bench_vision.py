"""The vision benchmark: twelve named methods, what is over the limit is told, settings from no reported seed."""

from sweeping import TINY

from unwrite.beds.images import BEDS
from unwrite.bench.vision import BED_NAMES, CONTENDERS, TUNED_ON, over_limit, run
from unwrite.cli.sweep import contenders_of


def test_twelve_methods_of_different_names_on_a_class_rows_and_a_font():
    assert len({one.name for one in CONTENDERS}) == 12
    assert all(one.kind == "method" for one in CONTENDERS)
    assert [name.split("/")[1] for name in BED_NAMES] == ["class", "random", "identity"]
    assert set(BED_NAMES) <= set(BEDS)
    assert TUNED_ON not in range(3)


def test_a_sweep_knows_the_twelve_by_one_word():
    assert contenders_of("vision, scrub:gamma=0.5") == [*CONTENDERS, *contenders_of("scrub:gamma=0.5")]


def test_rows_have_references_the_control_and_the_time_of_each_method(tmp_path):
    rows, trained = run(tmp_path / "rows.jsonl", beds=[TINY], contenders=CONTENDERS[:2])
    assert [row["contender"] for row in rows] == ["before", "retrained", "head-only", "fine-tune", "cf-k"]
    assert all(row["seconds"] > 0 for row in rows if row["kind"] == "method")
    assert [one.bed for one in trained] == [TINY.name]
    assert trained[0].seconds > 0


def test_what_is_over_the_limit_is_named():
    rows = [
        {"kind": "method", "contender": "slow", "bed": "b", "seconds": 6.0},
        {"kind": "method", "contender": "quick", "bed": "b", "seconds": 4.9},
        {"kind": "method", "contender": "refused", "bed": "b", "error": "no"},
        {"kind": "reference", "contender": "before", "bed": "b", "seconds": None},
    ]
    assert over_limit(rows) == ["slow on b: 6.0 s"]
