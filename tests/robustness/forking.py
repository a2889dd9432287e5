"""Forked processes that begin at the same moment, and how each ended."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unwrite.errors import UnwriteError

SECONDS = 60  # what takes longer hangs
Work = Callable[[], object]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int  # negative: of the signal that killed it
    said: str

    @property
    def refused(self) -> bool:
        """In one line, as a user's error is."""
        lines = self.said.strip().splitlines()
        return self.status == 2 and len(lines) == 1 and lines[0].startswith("unwrite: ")


class Group:
    """Forked processes that wait for a word and then run, each a work of its own, in `home`."""

    def __init__(self, works: Sequence[Work], home: Path, draw: random.Random, patience: float = 0.02) -> None:
        self.home, self.started = home, time.monotonic()
        go, self.word = os.pipe()
        self.children = [self._forked(number, work, draw.random() * patience, go) for number, work in enumerate(works)]
        os.close(go)

    def _forked(self, number: int, work: Work, wait: float, go: int) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.close(self.word)
            handle = os.open(self._said(number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = sys.stderr = open(handle, "w", buffering=1)  # noqa: SIM115 - to the end of this process
            os.chdir(self.home)
            os.environ |= {"UNWRITE_CACHE": str(self.home / "cache"), "TMPDIR": str(self.home / "tmp")}
            tempfile.tempdir = None
            note_renames(self.home / "cache", self.home / "made")
            os.read(go, 1)  # nothing comes: it ends when the word is given
            time.sleep(wait)
            status = _status(work)
            sys.stdout.flush()
        finally:
            os._exit(status)

    def _said(self, number: int) -> Path:
        return self.home / f".said-{number}"

    def go(self) -> Group:
        os.close(self.word)
        self.started = time.monotonic()
        return self

    def ended(self) -> list[Ended]:
        """How each ended; those that hang are killed."""
        found = []
        for number, child in enumerate(self.children):
            while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > self.started + SECONDS:
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.003)
            found.append(Ended(os.waitstatus_to_exitcode(status[1]), self._said(number).read_text(errors="replace")))
        return found


def _status(work: Work) -> int:
    try:
        work()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except UnwriteError as error:  # as the command line tells it
        print(f"unwrite: {error}", file=sys.stderr)
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def note_renames(root: Path, notes: Path) -> None:
    """From here on, for the rest of the process: everything that gets its name under `root` is noted, a line each."""

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and (target := str(arguments[1])).startswith(str(root)):
            handle = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, f"{os.path.relpath(target, root)}\n".encode())
            os.close(handle)

    sys.addaudithook(hear)


def at_once(works: Sequence[Work], home: Path, draw: random.Random) -> list[Ended]:
    return Group(works, home, draw).go().ended()


def tails(ended: Sequence[Ended]) -> str:
    return "; ".join(f"{one.status}: {one.said.strip()[-300:]}" for one in ended)


def one_of(ended: Sequence[Ended], what: str) -> list[str]:
    """One ran, and the others were refused."""
    ran = [one for one in ended if one.status == 0]
    if len(ran) == 1 and all(one.refused for one in ended if one not in ran):
        return []
    return [f"{what}: {len(ran)} of {len(ended)} ran ({tails(ended)})"]
