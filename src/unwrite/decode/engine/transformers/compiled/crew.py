"""The threads that run a step together: the caller's, and one that waits for each further processor."""

from __future__ import annotations

import os
import threading
from typing import Any

import torch

from .step import kernel

__all__ = ["Crew", "crew", "settle"]


class Crew:
    """Threads that live as long as the process.

    Args:
        threads: how many run a step, the caller's among them.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = threading.Lock()
        self._begins = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._ends = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._work: tuple[Any, ...] = ()
        self._out: list[threading.Semaphore] = []  # of those that may still be at the last step
        for number, (begin, end) in enumerate(zip(self._begins, self._ends, strict=True), 1):
            work = threading.Thread(target=self._wait, args=(number, begin, end), name=f"step {number}", daemon=True)
            work.start()

    def run(self, steps: Any, layers: Any, held: Any = None) -> None:
        """Runs one step; returns when its results are there. Callers of several threads come one after the other.

        Args:
            steps, layers: the records of the step.
            held: what they point to, kept alive until the last thread has left.
        """
        with self._lock:
            self._join()
            self._work, self._out = (steps, layers, held), list(self._ends)
            for begin in self._begins:
                begin.release()
            kernel().run(steps, layers, 0)

    def join(self) -> None:
        """Waits until the others have left the last step, and forgets what it held."""
        with self._lock:
            self._join()

    def _join(self) -> None:
        while self._out:
            self._out[-1].acquire()
            self._out.pop()
        self._work = ()

    def _wait(self, number: int, begin: threading.Semaphore, end: threading.Semaphore) -> None:
        while True:
            begin.acquire()
            try:
                kernel().run(*self._work[:2], number)
            finally:
                end.release()


_crews: dict[int, Crew] = {}


def crew() -> Crew:
    """As many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads not in _crews:
        _crews[threads] = Crew(threads)
    return _crews[threads]


def settle(team: Crew) -> None:
    """Waits until no thread of this process is at a step any more: of this team, or of one for another number of threads."""
    for one in {*_crews.values(), team}:
        one.join()


os.register_at_fork(after_in_child=_crews.clear)  # threads stay with the parent
