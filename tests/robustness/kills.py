"""Kills a command at each of its writes, or lets that write fail, goes on as a user would, and compares what came out.

    python tests/robustness/kills.py --kills 1000 --faults 300 --seed 0

A command runs in a forked process whose writes are counted: every file opened for writing, renamed, removed, every folder made, every
file of tensors written. The process kills itself (SIGKILL) before the n-th of them; where it is about to write a file of tensors or a
line of a log, half of that is written first. A fault is an error of the disk in place of the kill (full, failing, forbidden): the
command must end with one line, or go on where the write was only a cache's. Then the same command goes on, with `--resume` where the
command has it. What counts:

    lost    it can't go on: a refusal, an error, a hang
    untold  a fault ended in anything but one line and exit status 2
    wrong   it goes on, and ends with another model, report or record than the run that was never killed
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

import safetensors.torch
import torch
from cli_runs import make_files

from unwrite.cli import main
from unwrite.forget.engine.text import trainer  # noqa: F401 - imported once, before the forks

SECONDS = 120  # a run that takes longer hangs


@dataclass(frozen=True)
class Case:
    """One command, run in a folder with a tiny model and rows.

    Args:
        arguments: of the command line, after the shared ones of `unwrite forget`; or all of it.
        resumes: whether it goes on with --resume.
    """

    name: str
    arguments: tuple[str, ...]
    resumes: bool = True


def forget(**more: str) -> tuple[str, ...]:
    """`unwrite forget` with what all cases share; `more` goes before it."""
    shared = {
        "model": "model", "forget": "forget.jsonl", "retain": "retain.jsonl", "out": "run", "device": "cpu", "epochs": "3",
        "lr": "0.01", "batch_size": "2", "attacks": "none",
    }  # fmt: skip
    flags = {name.replace("_", "-"): value for name, value in {**shared, **more}.items()}
    return ("forget", *(part for name, value in flags.items() for part in (f"--{name}", value)))


CASES = [
    Case("npo", forget()),
    Case("npo with kl, attacked", forget(retain_loss="kl", attacks="relearn,quantise")),
    Case("lora", forget(lora="2")),
    Case("stopped early", forget(stop_at="0.999", lr="0.05")),
    Case("accumulated", forget(batch_size="1", accumulate="3")),
    Case("uld", forget(method="uld", layers="1", rank="2")),
    Case("rmu", forget(method="rmu", layer="1")),
    Case(
        "audit",
        (
            "audit", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--attacks", "quantise",
            "--out", "run", "--overwrite", "--device", "cpu",
        ),
        resumes=False,
    ),
]  # fmt: skip


class Writes:
    """Counts this process's writes under a folder, and kills the process before the one that is asked for.

    Args:
        fault: an error number: the write fails with it, once, instead of the kill.
    """

    def __init__(self, root: Path, kill_at: int | None, fault: int | None) -> None:
        self.root, self.kill_at, self.fault = str(root), kill_at, fault
        self.names: list[str] = []

    def watch(self) -> None:
        """From here on; for the rest of the process."""
        sys.addaudithook(self._hear)
        safetensors.torch.save_file = self._tensors(safetensors.torch.save_file, 1)
        torch.save = self._tensors(torch.save, 1)
        for module in list(sys.modules.values()):
            if getattr(module, "save_file", None) is not None and getattr(module, "__name__", "").startswith(
                ("unwrite", "transformers", "peft")
            ):
                module.save_file = safetensors.torch.save_file

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        if event == "open":
            if not isinstance(arguments[0], str | bytes | os.PathLike) or not self._writes(arguments[1], arguments[2]):
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"):
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(self.root):
            return
        self._count(f"{event} {os.path.relpath(path, self.root)}", torn=path if path.endswith(".jsonl") else None)

    @staticmethod
    def _writes(mode: Any, flags: Any) -> bool:
        if isinstance(mode, str):
            return any(letter in mode for letter in "wax+")
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def _tensors(self, write: Callable[..., Any], place: int) -> Callable[..., Any]:
        def half_or_whole(*arguments: Any, **options: Any) -> Any:
            target = arguments[place] if len(arguments) > place else options.get("filename", options.get("f"))
            if not isinstance(target, str | os.PathLike) or not os.path.abspath(target).startswith(self.root):
                return write(*arguments, **options)
            if self.kill_at == len(self.names):
                self.kill_at = None
                write(*arguments, **options)
                os.truncate(target, os.path.getsize(target) // 2)
                if self.fault is not None:  # in the words of the library that writes tensors
                    raise safetensors.SafetensorError(
                        f"Error while serializing: I/O error: {os.strerror(self.fault)} (os error {self.fault})"
                    )
                os.kill(os.getpid(), signal.SIGKILL)
            self.names.append(f"tensors {os.path.relpath(target, self.root)}")
            return write(*arguments, **options)

        return half_or_whole

    def _count(self, name: str, torn: str | None) -> None:
        if self.kill_at == len(self.names):
            self.kill_at = None
            if torn is not None:
                with open(torn, "ab") as file:
                    file.write(b'{"loss": 1.2')
            if self.fault is not None:
                raise OSError(self.fault, os.strerror(self.fault), name)
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)


@dataclass
class Ended:
    """How a forked command ended."""

    status: int | None  # None: killed by a signal, or hanging
    said: str
    writes: list[str] = field(default_factory=list)
    hung: bool = False


def run(arguments: tuple[str, ...], home: Path, kill_at: int | None = None, fault: int | None = None) -> Ended:
    """The command in a forked process, in `home`, with a cache of its own there."""
    said, counted = home / ".said", home / ".counted"
    child = os.fork()
    if child == 0:
        try:
            _become(home, said)
            writes = Writes(home / "work", kill_at, fault)
            writes.watch()
            status = 0
            try:
                main(list(arguments))
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                traceback.print_exc()
                status = 1
            counted.write_text(json.dumps(writes.names))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        finally:
            os._exit(99)
    end = time.monotonic() + SECONDS
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Ended(None, said.read_text(errors="replace"), hung=True)
        time.sleep(0.005)
    status = os.waitstatus_to_exitcode(found[1])
    names = json.loads(counted.read_text()) if status >= 0 and counted.exists() else []
    return Ended(status if status >= 0 else None, said.read_text(errors="replace"), names)


def _become(home: Path, said: Path) -> None:
    os.chdir(home / "work")
    os.environ["UNWRITE_CACHE"] = str(home / "work" / "cache")
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = open(handle, "w", buffering=1)  # noqa: SIM115 - to the end of this process
    torch.set_num_threads(1)


def result(work: Path) -> dict[str, str]:
    """Hashes of what a run came to: its model, the figures of its report, and what its record says of both."""
    out = {}
    for path in sorted((work / "run").rglob("*")):
        name = str(path.relative_to(work / "run"))
        if path.is_file() and not name.startswith(("metrics", "report.html")):
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(_plain(json.loads(content)), sort_keys=True).encode()
            out[name] = hashlib.sha256(content).hexdigest()[:16]
    return out


def _plain(value: Any) -> Any:
    """Without what may differ from run to run: clocks, notices of a repaired cache, temporary names."""
    if isinstance(value, dict):
        skipped = ("started", "seconds", "notices", "created", "time", "arguments")
        return {key: _plain(one) for key, one in value.items() if key not in skipped}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def fresh(home: Path, files: Path) -> Path:
    """An empty working folder with the model and the rows."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(files, home / "work")
    return home


def tried(case: Case, at: int, home: Path, files: Path, whole: dict[str, str], fault: int | None = None) -> str | None:
    """What went wrong when the case was killed before that write, or that write failed, and it went on; None if nothing did."""
    first = run(case.arguments, fresh(home, files), at, fault)
    lines = [line for line in first.said.strip().splitlines() if line.startswith("unwrite: ")]
    if first.hung:
        return "hangs"
    if fault is not None and (
        first.status not in (0, 2) or "Traceback" in first.said or (first.status == 2 and not lines)
    ):
        return f"untold: {first.status}, {first.said.strip()[-300:]}"
    if fault is None and first.status:
        return f"was not killed: {first.said.strip()[-300:]}"
    again = _went_on(case, home)
    if again.hung:
        return "hangs"
    if again.status != 0:
        return f"lost: {again.said.strip().splitlines()[-1] if again.said.strip() else again.status}"
    now = result(home / "work")
    if now != whole:
        other = sorted(name for name in {*now, *whole} if now.get(name) != whole.get(name))
        return f"wrong: {', '.join(other)}"
    left = _left_over(home / "work")
    return f"left behind: {left}" if left else None


def _went_on(case: Case, home: Path) -> Ended:
    """As a user goes on: with --resume where there is an unfinished run, else with the command as it was."""
    record = home / "work" / "run" / "run.json"
    if not case.resumes or not record.exists():
        return run(case.arguments, home)
    if json.loads(record.read_text())["status"] == "done":
        return Ended(0, "")
    return run((*case.arguments, "--resume"), home)


def _left_over(work: Path) -> str:
    """A temporary file or folder in the run folder, when all is done."""
    found = [path for path in (work / "run").rglob("*") if path.name.startswith(".") or path.name == "unfinished"]
    return str(found[0].relative_to(work)) if found else ""


def points(case: Case, home: Path, files: Path) -> tuple[list[str], dict[str, str]]:
    """Every write of the uninterrupted run, and what it comes to."""
    ended = run(case.arguments, fresh(home, files))
    if ended.status != 0:
        raise SystemExit(f"{case.name} does not run: {ended.said[-2000:]}")
    return ended.writes, result(home / "work")


def chosen(count: int, writes: dict[str, list[str]], seed: int) -> Iterator[tuple[str, int]]:
    """(case, write) `count` times: each write once, in a shuffled order; then again."""
    every = [(name, place) for name, names in writes.items() for place in range(len(names))]
    order = random.Random(seed)
    while count > 0:
        order.shuffle(every)
        yield from every[:count]
        count -= len(every)


FAULTS = (errno.ENOSPC, errno.EIO, errno.EACCES)


def kills(
    count: int, seed: int = 0, cases: list[Case] | None = None, *, faults: int = 0, tell: bool = False
) -> list[str]:
    """What went wrong in so many kills and faults, a line each."""
    by_name = {case.name: case for case in cases or CASES}
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        files, home = Path(folder) / "files", Path(folder) / "home"
        files.mkdir()
        make_files(files)
        known = {name: points(case, home, files) for name, case in by_name.items()}
        if tell:
            print({name: len(writes) for name, (writes, _) in known.items()}, flush=True)
        every = {name: writes for name, (writes, _) in known.items()}
        jobs: list[tuple[str, int, int | None]] = [(*one, None) for one in chosen(count, every, seed)]
        jobs += [(*one, FAULTS[n % len(FAULTS)]) for n, one in enumerate(chosen(faults, every, seed + 1))]
        for name, place, fault in jobs:
            what = tried(by_name[name], place, home, files, known[name][1], fault)
            if what is not None:
                how = "killed before" if fault is None else f"{errno.errorcode[fault]} at"
                wrong.append(f"{name}, {how} write {place} ({known[name][0][place]}): {what}")
                if tell:
                    print(wrong[-1], flush=True)
    return wrong


def main_program() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", action="append", help="only these")
    options = parser.parse_args()
    start = time.monotonic()
    cases = [case for case in CASES if not options.case or case.name in options.case]
    wrong = kills(options.kills, options.seed, cases, faults=options.faults, tell=True)
    print(
        f"{options.kills} kills and {options.faults} faults, {len(wrong)} went wrong, {time.monotonic() - start:.0f} s"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main_program()
