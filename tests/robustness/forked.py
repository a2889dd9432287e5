"""A command in a process of its own, forked from one that has imported everything: killed or waited for, with all of its workers."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from writes import Stop, Writes

from unwrite.cli import main

SECONDS = 120  # a command that takes longer hangs
LINGER = 10  # seconds a worker may live longer than its command


@dataclass
class Ended:
    """How a command ended."""

    status: int | None  # None: killed by a signal
    said: str
    seconds: float = 0.0
    writes: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    hung: str = ""


def adopt() -> None:
    """Workers whose command was killed become children of this process, so that it can wait for them."""
    ctypes.CDLL(None).prctl(36, 1)


def run(arguments: Sequence[str], home: Path, stop: Stop | None = None, after: float | None = None) -> Ended:
    """The command in a forked process, in `home`, with a cache and temporary files of its own there."""
    said, counted, loaded = home / ".said", home / ".counted", home / ".loaded"
    for path in (said, counted, loaded):
        path.unlink(missing_ok=True)
    began, child = time.monotonic(), os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            atexit._clear()  # what this process does when it ends is no matter of the command's
            _become(home, said)
            Writes(home / "work", counted, stop).watch()
            status = _ran(arguments)
            atexit._run_exitfuncs()
            loaded.write_text("\n".join(sys.modules))
            sys.stdout.flush()
            os._exit(status)
        finally:
            os._exit(99)
    with contextlib.suppress(OSError):  # the child may have done so, or have ended
        os.setpgid(child, child)
    status, hung = _waited(child, began, after)
    ended = Ended(
        status, said.read_text(errors="replace") if said.exists() else "", time.monotonic() - began, hung=hung
    )
    if counted.exists():
        ended.writes = counted.read_text().splitlines()
    if loaded.exists():
        ended.modules = loaded.read_text().split()
    return ended


def _ran(arguments: Sequence[str]) -> int:
    try:
        main(list(arguments))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _waited(child: int, began: float, after: float | None) -> tuple[int | None, str]:
    """The command's status once all of its processes are gone, and what of it hung."""
    status, ended_at, hung, killed = None, None, "", False
    while True:
        try:
            pid, found = os.waitpid(-child, os.WNOHANG)
        except ChildProcessError:
            return status, hung
        now = time.monotonic()
        if pid == child:
            code = os.waitstatus_to_exitcode(found)
            status, ended_at = code if code >= 0 else None, now
        if pid:
            continue
        if ended_at is not None and now - ended_at > LINGER:
            hung = hung or "a worker outlives its command"
        elif ended_at is None and now - began > SECONDS:
            hung = hung or "it does not end"
        if hung or (after is not None and now - began > after and not killed):
            killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.003)


def _become(home: Path, said: Path) -> None:
    os.chdir(home / "work")
    os.environ["UNWRITE_CACHE"] = str(home / "work" / "cache")
    os.environ["TMPDIR"] = tempfile.tempdir = str(home / "work" / "tmp")
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = open(handle, "w", buffering=1)  # noqa: SIM115 - to the end of this process
    torch.set_num_threads(1)
