"""Damaged input to every reader: each gives a value it checked, or one line.

    python -m tests.robustness.mutations --count 1000000 --seed 1     all readers, by worker processes
    python -m tests.robustness.mutations --reader csv --case 1:csv:17   one again, with its traceback and its files kept

A failure is anything but a value or an `UnwriteError` of one line, more than 10 seconds, or more than 2 GiB. A case is its seed,
reader and number, and is made of nothing else, so it can be repeated anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unwrite.errors import UnwriteError

from .mutate import mutated
from .readers import READERS
from .sampling import Sample

SECONDS, MEMORY = 10, 2 << 30
CHUNK = 400  # cases a worker takes at once, of a reader of one millisecond


class TooLong(BaseException):
    """Raised by the alarm, past every `except Exception`."""


@dataclass(frozen=True)
class Failure:
    """A case that ended in something else than a value or one line."""

    case: str
    kind: str
    detail: str = ""


def damaged(reader: str, case: str) -> Sample:
    """The files of a case."""
    rng = random.Random(case)
    sample = rng.choice(_samples(reader))
    names = sorted(READERS[reader].damages or sample)
    name = rng.choice([name for name in names if name in sample])
    return {**sample, name: mutated(name, sample[name], rng)}


_made: dict[str, list[Sample]] = {}


def _samples(reader: str) -> list[Sample]:
    """The whole samples; each is read once, so that what a reader imports is not counted as its own cost."""
    if reader not in _made:
        made = READERS[reader].samples()
        for sample in made:
            with tempfile.TemporaryDirectory(dir=_memory()) as place, _quiet(), contextlib.suppress(UnwriteError):
                _lay(sample, Path(place))
                READERS[reader].read(Path(place))
        _made[reader] = made
    return _made[reader]


def _lay(sample: Sample, folder: Path) -> None:
    for name, content in sample.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def failure_of(reader: str, case: str, folder: Path) -> Failure | None:
    """Reads a case in an empty folder; None where all is well."""
    return failure_in(reader, damaged(reader, case), case, folder)


def failure_in(reader: str, sample: Sample, case: str, folder: Path) -> Failure | None:
    """Reads files that are laid in an empty folder; None where all is well."""
    own = READERS[reader]
    _lay(sample, folder)
    if own.mend is not None:
        with contextlib.suppress(Exception):
            own.mend(folder)
    before, began = _peak(), time.monotonic()
    found = None
    try:
        with _quiet(), _bounded(own.bounded):
            own.read(folder)
    except UnwriteError as error:
        if len(str(error).strip().splitlines()) != 1:
            found = Failure(case, f"{reader}: a message of {len(str(error).splitlines())} lines", str(error)[:300])
    except TooLong:
        return Failure(case, f"{reader}: more than {SECONDS} s", _innermost(sys.exc_info()[1]))
    except BaseException as error:
        return Failure(case, f"{reader}: {type(error).__name__}", f"{_innermost(error)}: {str(error)[:200]}")
    if time.monotonic() - began > SECONDS:
        return Failure(case, f"{reader}: more than {SECONDS} s")
    if _peak() - before > MEMORY:
        return Failure(case, f"{reader}: more than {MEMORY >> 30} GiB")
    return found


def _innermost(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    ours = [frame for frame in frames if "unwrite" in frame.filename] or list(frames)
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _bounded(memory: bool = True) -> Iterator[None]:
    """An alarm, and a bound on what is allocated: neither is left behind."""

    def ring(*_: Any) -> None:
        raise TooLong

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def failures_in(reader: str, seed: int, numbers: range, at: Any = None) -> list[Failure]:
    """The failures of some cases of one reader. at: a shared number, set to the case that is being read."""
    found = []
    with tempfile.TemporaryDirectory(dir=_memory()) as place:
        os.environ["UNWRITE_CACHE"] = f"{place}/cache"
        for number in numbers:
            if at is not None:
                at.value = number
            folder = Path(place) / "case"
            folder.mkdir()
            failure = failure_of(reader, f"{seed}:{reader}:{number}", folder)
            if failure is not None:
                found.append(failure)
            shutil.rmtree(folder)
            shutil.rmtree(f"{place}/cache", ignore_errors=True)
    return found


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def shares(count: int, only: str | None = None) -> dict[str, int]:
    """How many cases each reader gets: a costly one fewer, as the root of its cost, none less than 8; no fewer in all than `count`."""
    weights = {name: reader.cost**-0.75 for name, reader in READERS.items() if only in (None, name)}
    return {name: max(8, math.ceil(count * weight / sum(weights.values()))) for name, weight in weights.items()}


Chunk = tuple[str, range]


class _Worker:
    """One process, and the chunk of cases it is at; a crash or a hang costs the case alone."""

    def __init__(self, seed: int) -> None:
        context = multiprocessing.get_context("fork")
        self.seed, self.at, (self.pipe, theirs) = seed, context.Value("q", 0), context.Pipe()
        self.process = context.Process(target=_work, args=(seed, self.at, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.chunk: Chunk | None = None

    def give(self, chunk: Chunk) -> None:
        """Starts it on a chunk."""
        self.chunk, self.at.value = chunk, chunk[1].start
        self.seen, self.since = chunk[1].start, time.monotonic()
        self.pipe.send(chunk)

    def finished(self) -> tuple[list[Failure], Chunk | None] | None:
        """The failures and, where the process is gone, what is left of the chunk; None while it works."""
        assert self.chunk is not None
        reader, numbers = self.chunk
        if self.pipe.poll():
            with contextlib.suppress(EOFError, OSError):
                return self.pipe.recv(), None
        if self.at.value != self.seen:
            self.seen, self.since = self.at.value, time.monotonic()
        hangs = time.monotonic() - self.since > 3 * SECONDS + 60  # the first case also makes the samples
        if self.process.is_alive() and not hangs:
            return None
        self.process.kill()
        self.process.join()
        kind = "hangs" if hangs else f"the process ended with {self.process.exitcode}"
        left = range(self.seen + 1, numbers.stop)
        # Failures before this one are lost with the process: those cases are read again.
        again = failures_in(reader, self.seed, range(numbers.start, self.seen))
        return [*again, Failure(f"{self.seed}:{reader}:{self.seen}", f"{reader}: {kind}")], (reader, left)


def _work(seed: int, at: Any, pipe: Any) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with its parent
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while True:
        reader, numbers = pipe.recv()
        pipe.send(failures_in(reader, seed, numbers, at))


def run(count: int, seed: int, only: str | None, workers: int) -> tuple[int, list[Failure]]:
    """All cases by worker processes; how many they were, and the failures."""
    import pyarrow.parquet  # noqa: F401 - imported once, before the workers are forked
    import torch  # noqa: F401
    import transformers  # noqa: F401

    waiting: list[Chunk] = []
    for reader, number in shares(count, only).items():
        step = max(8, round(CHUNK / READERS[reader].cost))
        waiting += [(reader, range(i, min(number, i + step))) for i in range(0, number, step)]
    total, found, told = sum(len(numbers) for _, numbers in waiting), [], time.monotonic()
    random.Random(seed).shuffle(waiting)
    crew = [_Worker(seed) for _ in range(workers)]
    left = total
    while left:
        for place, worker in enumerate(crew):
            result = worker.finished() if worker.chunk else ([], None)
            if result is None:
                continue
            for one in result[0]:
                if one.kind not in {earlier.kind for earlier in found}:
                    print(f"{one.case}  {one.kind}  {one.detail}", flush=True)
                found.append(one)
            left -= len(worker.chunk[1]) if worker.chunk else 0
            worker.chunk = None
            if result[1] is not None:
                crew[place] = worker = _Worker(seed)
                left += len(result[1][1])
                waiting += [result[1]] if result[1][1] else []
            if waiting:
                worker.give(waiting.pop())
        if time.monotonic() - told > 20:
            told = time.monotonic()
            print(f"{total - left:,} of {total:,} cases, {len(found)} failures", flush=True)
        time.sleep(0.01)
    return total, found


def repeat(case: str) -> None:
    """One case again; its files stay, and a traceback is shown."""
    reader = case.split(":")[1]
    print(case, read_again(reader, damaged(reader, case)))


def read_again(reader: str, sample: Sample) -> Any:
    """What a reader makes of files that are laid in a new folder, which stays."""
    folder = Path(tempfile.mkdtemp(prefix="case-"))
    _lay(sample, folder)
    if READERS[reader].mend is not None:
        with contextlib.suppress(Exception):
            READERS[reader].mend(folder)
    print(f"in {folder}")
    with _bounded(READERS[reader].bounded):
        return READERS[reader].read(folder)


def main() -> int:
    """The command line; 1 where there is a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=list(READERS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", help="repeat this one: seed:reader:number")
    given = parser.parse_args()
    if given.case:
        repeat(given.case)
        return 0
    began = time.monotonic()
    total, failures = run(given.count, given.seed, given.reader, given.workers)
    for kind, number in Counter(failure.kind for failure in failures).most_common():
        first = next(failure for failure in failures if failure.kind == kind)
        print(f"{number:6} {kind}\n       first: {first.case}  {first.detail}")
    print(f"{total:,} mutated inputs to {len(shares(1, given.reader))} readers, seed {given.seed}: {len(failures)} failures, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
