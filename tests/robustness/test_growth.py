"""The short form of `growth.py`, and that it sees what it is for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from growth import KB, LEAST, Look, grown, growth, watched

PROGRAM = Path(__file__).with_name("growth.py")
FLAT = [Look(500_000.0 + 300 * (n % 2), 1000 + n % 3, 90, 6, 1) for n in range(12)]


def test_nothing_but_memory_that_an_allocator_takes_grows_in_a_few_generates():
    done = subprocess.run(
        [sys.executable, PROGRAM, "--generates", "20", "--drawings", "0", "--forgets", "0", "--but-memory"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 figures grew, " in done.stdout


def test_growth_is_told_a_call():
    assert growth([5.0] * 9, 10) == 0
    assert growth([100 + 30.0 * n for n in range(9)], 10) == pytest.approx(3.0)
    assert growth([100 - 30.0 * n for n in range(9)], 10) == pytest.approx(-3.0)
    assert abs(growth([0.0] * 5 + [900.0] + [0.0] * 6, 10)) < 2  # one that went again


def test_what_stays_flat_is_not_said_to_grow():
    assert grown(FLAT, 10) == []


@pytest.mark.parametrize("name", ["tensors", "files", "threads"])
def test_one_more_a_round_is_seen(name):
    looks = [Look(**{**vars(one), name: getattr(one, name) + n}) for n, one in enumerate(FLAT)]
    assert [line.split(":")[0] for line in grown(looks, 10)] == [name]


@pytest.mark.parametrize(("kb", "seen"), [(KB / 2, False), (2 * KB, True)])
def test_memory_may_grow_by_so_much_a_call(kb, seen):
    looks = [Look(**{**vars(one), "memory": one.memory + kb * 10 * n}) for n, one in enumerate(FLAT)]
    assert LEAST < 2 * KB * 10 * 8  # else these rounds would be too few
    assert [line.split(":")[0] for line in grown(looks, 10)] == ["memory"] * seen


def test_a_call_that_keeps_things_is_seen(tmp_path):
    kept = []

    def keeps(number):
        kept.append((torch.zeros(2), [number], open(tmp_path / "a", "a")))  # noqa: SIM115 - a leak on purpose

    found = [line.split(":")[0] for line in watched({"keeps": keeps}, 6, tell=False)]
    assert {"tensors", "files", "objects"} <= set(found)
    assert not {"tensors", "files", "objects"} & {line.split(":")[0] for line in watched({"idle": abs}, 6, tell=False)}
    for _, _, file in kept:
        file.close()
