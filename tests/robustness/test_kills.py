"""The short form of `kills.py`: a few kills and faults at places a seed chooses."""

from kills import CASES, chosen, kills

SHORT = [case for case in CASES if case.name in ("npo", "lora")]


def test_what_was_killed_goes_on_to_the_same_result():
    assert kills(3, seed=5, cases=SHORT) == []


def test_what_met_a_failing_disk_says_so_in_a_line_and_goes_on():
    assert kills(0, seed=5, cases=SHORT[:1], faults=3) == []


def test_every_write_is_chosen_once_before_any_is_chosen_again():
    writes = {"a": ["x"] * 5, "b": ["x"] * 2}
    found = list(chosen(17, writes, seed=0))
    every = {("a", n) for n in range(5)} | {("b", n) for n in range(2)}
    assert set(found[:7]) == set(found[7:14]) == every
    assert len(found) == 17
