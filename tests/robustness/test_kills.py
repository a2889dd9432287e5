"""The short form of `kills.py`: a few kills and faults at places a seed chooses, in a process that forks them."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from kills import Job, chosen, kind_of
from safetensors.numpy import save_file as numpy_save_file
from safetensors.torch import save_file as safe_save_file
from writes import Stop, Writes

from conftest import make_tokenizer

PROGRAM = Path(__file__).with_name("kills.py")


def test_what_was_stopped_says_so_and_goes_on_to_the_same_result():
    cases = [
        part
        for name in ("lora", "audit that trains", "sweep by two, one killed", "reproduce")
        for part in ("--case", name)
    ]
    done = subprocess.run(
        [sys.executable, PROGRAM, *cases, "--kills", "5", "--faults", "3", "--seed", "5"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills at a write, 1 at a random time (1 were killed twice) and 3 faults, 0 went wrong, " in done.stdout


def test_every_write_is_chosen_once_before_any_is_chosen_again():
    writes = {"a": ["x"] * 5, "b": ["x"] * 2}
    found = list(chosen(17, writes, seed=0))
    every = {("a", n) for n in range(5)} | {("b", n) for n in range(2)}
    assert set(found[:7]) == set(found[7:14]) == every
    assert len(found) == 17


def test_one_of_each_kind_of_write_is_chosen_first():
    writes = {"a": ["open x", *[f"sync y/{n}.json" for n in range(9)], "os.rename .z.0a1b2c3d4e5f"]}
    assert {kind_of(writes["a"][n]) for _, n in list(chosen(11, writes, seed=0))[:3]} == {
        "open x", "sync y/.json", "os.rename .z.#",
    }  # fmt: skip


def test_a_try_is_told_as_it_can_be_repeated():
    assert str(Job("lora", at=17, fault=errno.ENOSPC)) == "--case 'lora' --at 17 --fault ENOSPC"
    assert str(Job("npo", after=1.23456, again=4)) == "--case 'npo' --after 1.235 --again 4"


WRITERS = {
    "a rename": lambda folder: os.replace(folder / "a", folder / "b"),
    "a rename out of the way": lambda folder: os.replace(folder.parent / "c", folder / "b"),
    "a removal relative to a folder": lambda folder: shutil.rmtree(folder / "d"),
    "an opened number": lambda folder: os.close(os.open(folder / "b", os.O_WRONLY | os.O_CREAT)),
    "a sync": lambda folder: os.fsync(os.open(folder / "a", os.O_RDONLY)),
    "a shortened file": lambda folder: os.truncate(folder / "a", 0),
    "text": lambda folder: (folder / "b").write_text("x"),
    "an array": lambda folder: numpy.save(folder / "b.npy", numpy.zeros(3)),
    "tensors": lambda folder: safe_save_file({"x": torch.zeros(3)}, folder / "b"),
    "arrays": lambda folder: numpy_save_file({"x": numpy.zeros(3)}, str(folder / "b")),
    "a state": lambda folder: torch.save({"x": torch.zeros(3)}, folder / "b"),
    "a tokenizer": lambda folder: make_tokenizer().save_pretrained(folder),
    "a copy": lambda folder: shutil.copyfile(folder / "a", folder / "b"),
    "a folder": lambda folder: (folder / "b").mkdir(),
    "a link": lambda folder: (folder / "b").symlink_to("a"),
}


def ended(work, folder, stop):
    """The status of a process that does the work with its writes in the folder watched; 1 where none of them was stopped."""
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            Writes(folder, folder.parent / "names", stop).watch()
            with contextlib.suppress(Exception):
                work()
                os._exit(1)
            os._exit(0)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("fault", [None, errno.ENOSPC], ids=["killed", "failing"])
def test_no_way_to_write_is_missed(writer, fault, tmp_path):
    folder = tmp_path / "root"
    (folder / "d").mkdir(parents=True)
    for file in (folder / "a", tmp_path / "c", folder / "d" / "e"):
        file.write_text("content")
    status = ended(lambda: WRITERS[writer](folder), folder, Stop(0, fault))
    assert status == (-signal.SIGKILL if fault is None else 0)
    assert (folder / "a").read_text() == (folder / "d" / "e").read_text() == "content"
    assert not (folder / "tokenizer.json").exists() or (folder / "tokenizer.json").stat().st_size < 2000


@pytest.mark.parametrize(("at", "left"), [(0, "b"), (1, ".tmpa1B2c3")])
def test_a_killed_writer_of_tensors_leaves_half_of_them_in_place_or_aside(at, left, tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()

    def work():
        for _ in range(at):
            (folder / "a").write_text("x")
        safe_save_file({"x": torch.zeros(30)}, folder / "b")

    assert ended(work, folder, Stop(at)) == -signal.SIGKILL
    assert [path.name for path in folder.iterdir() if path.name != "a"] == [left]
    assert (folder / left).stat().st_size < 120


def test_a_log_that_is_synced_loses_half_of_its_last_line(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()

    def work():
        with open(folder / "log", "ab") as file:
            file.write(b"first\nsecond\n")
            file.flush()
            os.fsync(file.fileno())

    assert ended(work, folder, Stop(1)) == -signal.SIGKILL
    assert (folder / "log").read_bytes() == b"first\nsec"
    assert (tmp_path / "names").read_text().splitlines() == ["open log", "sync log"]


def test_the_processes_of_a_command_share_one_count_and_one_of_them_can_be_killed_alone(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()

    def work():
        (folder / "mine").write_text("x")
        worker = os.fork()
        if worker == 0:
            (folder / "worker's").write_text("x")
        os._exit(7 if os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGKILL else 8)

    assert ended(work, folder, Stop(1, alone=True)) == 7
    assert ended(work, folder, Stop(1)) == -signal.SIGKILL
