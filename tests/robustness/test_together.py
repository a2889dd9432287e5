"""The short form of `together.py`: some processes at once in one folder, and others behind a lock whose holder is killed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forking import Ended, Group, one_of
from together import left_over, made_too_often

PROGRAM = Path(__file__).with_name("together.py")


def test_of_many_at_once_one_runs_and_a_killed_holder_stops_nobody():
    done = subprocess.run(
        [sys.executable, PROGRAM, "--processes", "3", "--rounds", "1", "--scene", "folder", "--scene", "killed"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 went wrong, " in done.stdout


RAN, REFUSED = Ended(0, ""), Ended(2, "unwrite: run is in use by process 1 on a. Wait.\n")


@pytest.mark.parametrize(
    "ended",
    [
        [RAN, RAN], [REFUSED, REFUSED], [RAN, Ended(1, "Traceback")], [RAN, Ended(-9, "")], [RAN, Ended(2, "a\nunwrite: b\n")],
    ],
)  # fmt: skip
def test_anything_but_one_that_ran_and_others_refused_in_a_line_counts_as_wrong(ended):
    assert one_of([RAN, REFUSED], "x") == []
    assert len(one_of(ended, "x")) == 1


def test_entries_made_twice_and_kinds_not_made_count_as_wrong(tmp_path):
    whole = [
        "references/a",
        "fit/b/model",
        "values/c.sealed.json",
        "values/c.sealed.json",
        "entries/d",
        "scores/e.sealed.json",
    ]
    notes = tmp_path / "made"
    notes.write_text("\n".join([*whole, ".entries/d", "entries/.d.12/half", "entries/.d.12/half"]))
    assert made_too_often(notes, 2) == []
    for wrong in (["fit/b/model"], ["values/c.sealed.json"]):
        notes.write_text("\n".join([*whole, *wrong]))
        assert len(made_too_often(notes, 2)) == 1
    notes.write_text("\n".join(whole[1:]))
    assert made_too_often(notes, 2) == ["no references were made"]


def test_temporary_files_and_locks_of_runs_count_as_left_behind(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a", ".a.0123", ".lock", "unwrite-x"):
        (tmp_path / "deep" / name).touch()
    assert len(left_over(tmp_path, tmp_path / "absent")) == 3


def test_a_process_says_how_it_ended_and_waits_for_the_word(tmp_path):
    (tmp_path / "tmp").mkdir()
    at = tmp_path / "at"
    group = Group([at.touch, lambda: sys.exit(3), lambda: os.kill(os.getpid(), 9)], tmp_path, random.Random(0))
    time.sleep(0.1)
    assert not at.exists()
    ended = group.go().ended()
    assert at.exists()
    assert [one.status for one in ended] == [0, 3, -9]
