"""Inputs that reach new lines of a reader: Atheris keeps each that does, and damages it further.

    python -m tests.robustness.fuzz --reader json --seconds 60       one reader, or several --reader; all the quick ones if none is given
    python -m tests.robustness.fuzz --reader json --input FILE       one input again, with its traceback

`mutations.py` draws every damage anew from whole files; this one builds on what it has found, and so gets behind several checks in a
row. What counts as a failure is the same. Atheris is no dependency of ours: `pip install atheris` where it is to be had.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .mutate import mutated
from .mutations import _memory, _samples, failure_in, read_again
from .readers import READERS
from .sampling import Sample

QUICK = 2  # milliseconds a reading may take, to be fuzzed unasked
LONGEST = 1 << 16  # bytes of an input


def places(reader: str) -> list[tuple[Sample, str]]:
    """Every file of every whole sample that may be damaged."""
    return [
        (sample, name) for sample in _samples(reader) for name in sorted(READERS[reader].damages or sample) if name in sample
    ]  # fmt: skip


def sample_of(reader: str, data: bytes) -> Sample:
    """The files that an input stands for: its first byte says which file of which sample the others replace."""
    of = places(reader)
    sample, name = of[(data[0] if data else 0) % len(of)]
    return {**sample, name: data[1:]}


def _mutator(reader: str) -> Callable[[bytes, int, int], bytes]:
    """Atheris' own changes, and ours, which know the file's grammar, in turn."""
    import atheris

    of = places(reader)

    def change(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if len(data) < 2 or rng.random() < 0.4:
            return atheris.Mutate(data, longest)  # which is another function once it runs
        name = of[data[0] % len(of)][1]
        return (data[:1] + mutated(name, data[1:], rng))[:longest]

    return change


def _fuzz(reader: str, seconds: int, seed: int, corpus: Path, out: Path) -> None:
    """Reads inputs for some seconds, in a process that Atheris ends. out: gets its log, and one input for each kind of failure."""
    import atheris

    os.dup2(os.open(out / "log", os.O_WRONLY | os.O_CREAT), 2)

    with atheris.instrument_imports(include=["unwrite"], enable_loader_override=False):
        for number, (sample, name) in enumerate(places(reader)[:256]):
            (corpus / f"whole{number}").write_bytes(bytes([number]) + sample[name])
    place = Path(tempfile.mkdtemp(dir=_memory(), prefix="fuzz-"))

    def read(data: bytes) -> None:
        folder = place / "case"
        folder.mkdir()
        failure = failure_in(reader, sample_of(reader, data), "", folder)
        shutil.rmtree(folder)
        if failure is not None:
            name = hashlib.sha256(f"{failure.kind} {failure.detail.split(': ')[0]}".encode()).hexdigest()[:12]
            if not (out / f"{name}.input").exists():
                (out / f"{name}.input").write_bytes(data)
                (out / f"{name}.why").write_text(f"{failure.kind}  {failure.detail}", "utf-8", "backslashreplace")

    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}", f"-artifact_prefix={out}/",
               "-timeout=0", "-rss_limit_mb=0", "-print_final_stats=1", "-verbosity=0", str(corpus)]  # fmt: skip
    os.environ["UNWRITE_CACHE"] = f"{place}/cache"
    atheris.Setup([sys.argv[0], *options], read, custom_mutator=_mutator(reader))
    atheris.Fuzz()


@contextlib.contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="corpus-") as corpus:
        yield Path(corpus), Path(tempfile.mkdtemp(prefix="fuzz-found-"))


def fuzzed(reader: str, seconds: int, seed: int) -> tuple[int, list[str]]:
    """How many inputs were read, and the kinds of failure found, each with the file of an input that shows it."""
    with _folders() as (corpus, out):
        process: Any = multiprocessing.get_context("spawn").Process(
            target=_fuzz, args=(reader, seconds, seed, corpus, out)
        )
        process.start()
        process.join()
        found = [f"{why.read_text()}  {why.with_suffix('.input')}" for why in sorted(out.glob("*.why"))]
        if process.exitcode:
            found.append(f"{reader}: the process ended with {process.exitcode}; its log and last input are in {out}")
        read = re.search(r"number_of_executed_units: (\d+)", (out / "log").read_text(errors="replace"))
        if not found:
            shutil.rmtree(out)
        return int(read[1]) if read else 0, found


def main() -> int:
    """The command line; 1 where there is a failure, 2 where Atheris is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=list(READERS), action="append")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path, help="read this one again")
    given = parser.parse_args()
    readers = given.reader or [name for name, reader in READERS.items() if reader.cost <= QUICK]
    if given.input:
        print(read_again(readers[0], sample_of(readers[0], given.input.read_bytes())))
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed. Install it with: pip install atheris", file=sys.stderr)
        return 2
    total, failures = 0, 0
    for reader in readers:
        count, found = fuzzed(reader, given.seconds, given.seed)
        print(f"{reader}: {count:,} inputs, {len(found)} kinds of failure", *found, sep="\n", flush=True)
        total, failures = total + count, failures + len(found)
    print(f"{total:,} inputs to {len(readers)} readers, {given.seconds} s each: {failures} kinds of failure")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
