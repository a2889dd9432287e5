"""Kills a command at each of its writes and at random times, or lets a write fail, goes on as a user would, and compares what came out.

    python tests/robustness/kills.py --kills 1500 --faults 300 --seed 0
    python tests/robustness/kills.py --case lora --at 17 --fault ENOSPC         one again, as a failure's line says it

A command runs in a forked process, in a process group of its own, whose writes are counted (`writes.py`), its workers' too. The group is
killed (SIGKILL) before the n-th of them, or, in one case, the writing process alone; where it is about to write a file of tensors or
a line of a log, half of that is written first. Each kind of write of each case is taken before any is taken again. One kill in five comes at
a random time instead. A fault is an error of the disk in place of the kill (full, failing, forbidden): the command must end with one line,
or go on where the write was only a cache's. Then the same command goes on, with `--resume` where the command has it; one in five is
killed again while it does. What counts:

    lost    it can't go on: a refusal, an error
    hangs   it does not end, or a worker outlives it
    untold  a fault, or the kill of a worker, ended in anything but one line and exit status 2
    wrong   it ends with another model, report, table or record than the run that was never killed
    left    a half-written file of its own is there when all is done
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import gc
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from forked import Ended, adopt, run
from kill_cases import CASES, EARLIER, Case, laid, left_over, make, over, prepare, result
from writes import Stop

AT_RANDOM, TWICE = 5, 5  # one kill in so many comes at a random time; one command in so many is killed twice
FAULTS = (errno.ENOSPC, errno.EIO, errno.EACCES)
_known = set(sys.modules)


@dataclass(frozen=True)
class Job:
    """One try.

    Args:
        case: its name.
        at: the write that isn't made, or
        after: seconds after which the command is killed.
        fault: the write fails with this error instead.
        again: the write at which the command that goes on is killed too.
    """

    case: str
    at: int | None = None
    after: float | None = None
    fault: int | None = None
    again: int | None = None

    def __str__(self) -> str:
        when = f"--at {self.at}" if self.after is None else f"--after {self.after:.3f}"
        fault = f" --fault {errno.errorcode[self.fault]}" if self.fault is not None else ""
        return f"--case '{self.case}' {when}{fault}" + (f" --again {self.again}" if self.again is not None else "")


@dataclass(frozen=True)
class Whole:
    """A case's uninterrupted run: its writes, what it comes to and how long it takes."""

    writes: tuple[str, ...]
    result: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where one process of the harness works: `home` is its own, the others are read only."""

    home: Path
    files: Path
    earlier: Path


def tried(case: Case, job: Job, place: Place, whole: Whole) -> str | None:
    """What went wrong when the case was stopped so and went on; None if nothing did."""
    home = laid(case, place.home, place.files, place.earlier)
    stop = None if job.at is None else Stop(job.at, job.fault, case.alone)
    first = run(over(case).arguments, home, stop, job.after)
    if first.hung:
        return f"hangs: {first.hung}"
    if first.status is not None and (untold := _untold(first)):
        return untold
    last = first if first.status == 0 else None
    if last is None and job.again is not None:
        between = _went_on(case, place, Stop(job.again))
        last = between if between.status == 0 else None
        if between.status or between.hung:
            return _lost(between)
    last = last or _went_on(case, place)
    if last.status != 0 or last.hung:
        return _lost(last)
    now = result(home / "work", last.said)
    if now != whole.result:
        other = sorted(name for name in {*now, *whole.result} if now.get(name) != whole.result.get(name))
        return f"wrong: {', '.join(other)}"
    left = left_over(home / "work", temporary=job.fault is not None)
    return f"left behind: {left}" if left else None


def _untold(ended: Ended) -> str | None:
    """What is amiss with how a command that wasn't killed ended: it works, or its last line, after its notices, says why not."""
    last = ended.said.strip().rpartition("\n")[2]
    if (
        "Traceback" in ended.said
        or ended.status not in (0, 2)
        or (ended.status == 2 and not last.startswith("unwrite: "))
    ):
        return f"untold: {ended.status}, {ended.said.strip()[-600:]}"
    return None


def _lost(ended: Ended) -> str:
    if ended.hung:
        return f"hangs: {ended.hung}"
    return f"lost: {ended.said.strip().splitlines()[-1] if ended.said.strip() else ended.status}"


def _went_on(case: Case, place: Place, stop: Stop | None = None) -> Ended:
    """As a user goes on: with --resume where there is an unfinished run, else with the command as it was."""
    work = place.home / "work"
    record = _record(work / "run") if case.resumes else None
    if record is None or (case.over and record["key"] == _record(place.earlier)["key"]):
        return run(over(case).arguments, place.home, stop)
    ended = run((*case.arguments, "--resume"), place.home, stop)
    if record["status"] == "done" and ended.status == 2 and "holds a finished run" in ended.said:
        return Ended(0, "")  # the user is told so
    return ended


def _record(folder: Path) -> dict[str, str] | None:
    path = folder / "run.json"
    return json.loads(path.read_text()) if path.exists() else None


def measured(case: Case, place: Place) -> Whole:
    """The case's uninterrupted run; a first one imports what all of them need."""
    while True:
        home = laid(case, place.home, place.files, place.earlier)
        before = set(home.rglob("*"))
        ended = run(over(case).arguments, home)
        if ended.status != 0:
            raise SystemExit(f"{case.name} does not run: {ended.said[-2000:]}")
        new = [name for name in ended.modules if name not in _known and not name.startswith("vl_convert")]
        if not new:
            break
        for name in new:
            _known.add(name)
            with contextlib.suppress(Exception):
                import_module(name)
    if missed := uncounted(home / "work", before, ended.writes):
        raise SystemExit(
            f"{case.name} wrote {', '.join(map(str, missed))}, and nobody counted it: writes.py lacks that way to write"
        )
    return Whole(tuple(ended.writes), result(place.home / "work", ended.said), ended.seconds)


def uncounted(work: Path, before: set[Path], writes: Sequence[str]) -> list[Path]:
    """New files that no write names. Folders are renamed with what they hold, so the last parts of names are compared."""
    told = {Path(write.partition(" ")[2]).name for write in writes}
    return [path for path in sorted({*work.rglob("*")} - before) if path.is_file() and path.name not in told]


def kind_of(write: str) -> str:
    """A write without what differs between steps, keys and temporary names; files of a folder are synced and removed alike."""
    event, _, path = write.partition(" ")
    if event in ("sync", "os.remove"):
        write = f"{event} {os.path.dirname(path)}/{Path(path).suffix}"
    return re.sub(r"[0-9a-f]{6,}|\d+", "#", re.sub(r"\btmp\w{8}\b", "#", write))


def chosen(count: int, writes: dict[str, Sequence[str]], seed: int) -> Iterator[tuple[str, int]]:
    """(case, write) `count` times, in a shuffled order: one of each kind, then each write once; then again."""
    every = [(name, place) for name, names in writes.items() for place in range(len(names))]
    order = random.Random(seed)
    while count > 0 and every:
        order.shuffle(every)
        seen: Counter[tuple[str, str]] = Counter()
        rank = {}
        for name, place in every:
            key = (name, kind_of(writes[name][place]))
            rank[name, place] = seen[key] > 0
            seen[key] += 1
        every.sort(key=rank.__getitem__)
        yield from every[:count]
        count -= len(every)


def planned(kills: int, faults: int, known: dict[str, Whole], seed: int) -> list[Job]:
    """All tries, from nothing but the seed and the uninterrupted runs."""
    order, writes = random.Random(seed), {name: whole.writes for name, whole in known.items()}
    at_random = kills // AT_RANDOM
    jobs = [Job(name, at) for name, at in chosen(kills - at_random, writes, seed)]
    for _ in range(at_random):
        name = order.choice(list(known))
        jobs.append(Job(name, after=order.random() * known[name].seconds))
    jobs = [
        replace(job, again=order.randrange(len(writes[job.case]))) if number % TWICE == 0 else job
        for number, job in enumerate(jobs)
    ]
    jobs += [
        Job(name, at, fault=FAULTS[number % len(FAULTS)])
        for number, (name, at) in enumerate(chosen(faults, writes, seed + 1))
    ]
    order.shuffle(jobs)
    return jobs


_given: dict[str, tuple[Case, Whole]] = {}  # what the crew is forked with


def _one(job: Job, root: Path) -> tuple[Job, str | None]:
    ctypes.CDLL(None).prctl(
        36, 1
    )  # workers whose command was killed become children of this process, which waits for them
    case, whole = _given[job.case]
    return job, tried(case, job, _place(root), whole)


def _place(root: Path) -> Place:
    return Place(root / f"home-{os.getpid()}", root / "files", root / "earlier")


def known_of(cases: Sequence[Case], root: Path) -> dict[str, Whole]:
    """Makes the files, an earlier run among them, and measures every case."""
    adopt()
    prepare()
    place = _place(root)
    make(place.files)
    ended = run(EARLIER.arguments, laid(EARLIER, place.home, place.files, place.earlier))
    if ended.status != 0:
        raise SystemExit(f"the earlier run does not run: {ended.said[-2000:]}")
    (place.home / "work" / "run").rename(place.earlier)
    known = {case.name: measured(case, place) for case in cases}
    gc.collect()
    gc.freeze()  # a collection in a fork passes over all that was there before
    _given.update({case.name: (case, known[case.name]) for case in cases})
    return known


def failures(jobs: Sequence[Job], known: dict[str, Whole], root: Path, workers: int) -> list[str]:
    """What went wrong, a line each, printed as it comes; a line of progress every 20 s."""
    wrong, told = [], time.monotonic()
    with ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin) as pool:
        for done, ended in enumerate(as_completed([pool.submit(_one, job, root) for job in jobs]), 1):
            job, what = ended.result()
            if what is not None:
                write = (
                    ""
                    if job.at is None
                    else f" ({known[job.case].writes[job.at]})"
                    if job.at < len(known[job.case].writes)
                    else ""
                )
                wrong.append(f"{job}{write}: {what}")
                print(wrong[-1], flush=True)
            if time.monotonic() - told > 20:
                told = time.monotonic()
                print(f"{done} of {len(jobs)} tried, {len(wrong)} went wrong", flush=True)
    return wrong


def _begin() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with its parent


def main_program() -> int:
    """The command line; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1500)
    parser.add_argument("--faults", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", action="append", help="only these", choices=[case.name for case in CASES])
    parser.add_argument("--at", type=int, help="repeat one try of one case: killed at this write, or")
    parser.add_argument("--after", type=float, help="after so many seconds")
    parser.add_argument("--again", type=int, help="and killed again at this write")
    parser.add_argument("--fault", choices=[errno.errorcode[one] for one in FAULTS], help="the write fails with this")
    options = parser.parse_args()
    start, cases = time.monotonic(), [case for case in CASES if not options.case or case.name in options.case]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        known = known_of(cases, Path(folder))
        print(
            "; ".join(f"{name}: {len(one.writes)} writes, {one.seconds:.1f} s" for name, one in known.items()),
            flush=True,
        )
        jobs = planned(options.kills, options.faults, known, options.seed)
        if options.at is not None or options.after is not None:
            fault = getattr(errno, options.fault) if options.fault else None
            jobs = [Job(cases[0].name, options.at, options.after, fault, options.again)]
        wrong = failures(jobs, known, Path(folder), options.workers)
    kinds = Counter(
        "fault" if one.fault is not None else "at a write" if one.after is None else "at random" for one in jobs
    )
    twice = sum(one.again is not None for one in jobs)
    points = len({(one.case, kind_of(known[one.case].writes[one.at])) for one in jobs if one.at is not None})
    every = len({(name, kind_of(write)) for name, one in known.items() for write in one.writes})
    print(
        f"{kinds['at a write']} kills at a write, {kinds['at random']} at a random time ({twice} were killed twice) and "
        f"{kinds['fault']} faults, {len(wrong)} went wrong, {time.monotonic() - start:.0f} s; {points} of {every} kinds of writes, "
        f"seed {options.seed}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main_program())
