"""The short form of `kills.py`: a few kills and faults at places a seed chooses, in a process that forks them."""

import subprocess
import sys
from pathlib import Path

import pytest
from kills import chosen

PROGRAM = Path(__file__).with_name("kills.py")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--kills", "2", "--faults", "0", "--case", "npo", "--case", "lora"),
        ("--kills", "0", "--faults", "2", "--case", "npo"),
    ],
    ids=["kills", "a failing disk"],
)
def test_what_was_stopped_says_so_and_goes_on_to_the_same_result(arguments):
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments, "--seed", "5"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 went wrong, " in done.stdout


def test_every_write_is_chosen_once_before_any_is_chosen_again():
    writes = {"a": ["x"] * 5, "b": ["x"] * 2}
    found = list(chosen(17, writes, seed=0))
    every = {("a", n) for n in range(5)} | {("b", n) for n in range(2)}
    assert set(found[:7]) == set(found[7:14]) == every
    assert len(found) == 17
