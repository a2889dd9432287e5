"""Many processes at once, in one run folder, one cache, one file: all end right, nothing is made twice, nothing is left.

    python tests/robustness/together.py --processes 8 --rounds 20 --seed 0

Every scene forks its processes from one that has everything imported, lets them go at the same moment (each after a wait of some
milliseconds that the seed draws), and looks at what came out:

    folder    `unwrite forget` and `Run.start` in one folder: one runs, the others are refused in a line with its process and host
    cache     commands and trainings that need the same entries: all values are right, what a lock guards is made once
    readers   files that are replaced or grow while others read them: every reading is whole
    sweep     sweeps that write one file, audits that write one folder: one runs
    killed    whoever holds a lock is killed (SIGKILL): the next goes on at once
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import torch
from cli_runs import make_files
from forking import SECONDS, Group, Work, at_once, one_of, tails
from kill_cases import forget, result
from sweeping import nothing_to_train, row_of, trials

from unwrite.audit import Report
from unwrite.bench import sweep as sweeps
from unwrite.cli import main
from unwrite.forget.engine.text import trainer  # noqa: F401 - imported once, before the forks
from unwrite.models import TrainRecipe, load_state, trained
from unwrite.runs import Run, cached_files, cached_json, write_json, write_text

# What the commands import when they run: imported once, before the forks.
IMPORTED = (
    "unwrite.audit.report.charts", "unwrite.audit.evaluation", "unwrite.audit.suites.muse", "unwrite.audit.report.page", "unwrite.audit.attacks.quantisation",
    "unwrite.audit.attacks.relearning", "unwrite.audit.suites.known", "unwrite.audit.suites.tofu", "unwrite.cli.audit", "unwrite.cli.outcome",
    "unwrite.data.text.general", "unwrite.forget.npo", "unwrite.forget.rmu", "nltk", "rouge_score.rouge_scorer", "sklearn.metrics", "rich.table",
)  # fmt: skip
AT_ONCE = 5  # seconds within which others go on when the holder of a lock was killed


def command(*arguments: str) -> Work:
    return partial(main, list(arguments))


def left_over(*folders: Path) -> list[str]:
    """Temporary files and folders, and locks of run folders, when all is done."""
    paths = [path for folder in folders if folder.exists() for path in folder.rglob("*")]
    return [f"left behind: {path}" for path in paths if path.name.startswith((".", "unwrite-"))]


def folder(home: Path, files: Path, count: int, draw: random.Random) -> Iterator[str]:
    """One run folder."""
    ended = at_once([command(*forget(out="run"))] * count, home, draw)
    yield from one_of(ended, "unwrite forget")
    refusals = [one.said for one in ended if one.refused]
    yield from (f"refused otherwise: {said}" for said in refusals if not says_why(said))
    yield from left_over(home / "run", home / "tmp")

    def start() -> None:
        run = Run.start(home / "plain", {})
        time.sleep(0.2)
        run.update(status="done")

    yield from one_of(at_once([start] * count, home, draw), "Run.start")
    yield from left_over(home / "plain")


def says_why(said: str) -> bool:
    return " is in use by process " in said or "holds a finished run" in said


def slow_training() -> Path:
    def fit(model: Any, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        time.sleep(0.1)
        with torch.no_grad():
            model.weight.fill_(float(sum(data[i] for i in indices)))

    recipe = TrainRecipe(lambda seed: torch.nn.Linear(2, 2), fit, "sums")
    return trained(recipe, [1, 2, 3], [0, 1, 2], 0)


def needs() -> list[Work]:
    """Works that check their own value; every entry is needed by several."""

    def training() -> None:
        made = torch.nn.Linear(2, 2)
        load_state(made, slow_training())
        assert made.weight.eq(6).all()

    def value() -> None:
        assert cached_json(("values",), "one", lambda: (time.sleep(0.02), {"a": [1.5, None]})[1]) == {"a": [1.5, None]}

    def entry() -> None:
        assert cached_files("entries", "one", fill, lambda folder: (folder / "a").read_text()) == "whole" * 1000

    return [training, value, entry]


def fill(folder: Path) -> None:
    (folder / "a").write_text("whole" * 500)
    time.sleep(0.1)
    (folder / "a").write_text("whole" * 1000)


def shared(number: int) -> tuple[str, ...]:
    """Commands that read the same reference scores and audit passes, each into a folder of its own."""
    kinds: tuple[dict[str, str], ...] = ({}, {"method": "rmu", "layer": "1"}, {"retain_loss": "kl"})
    return forget(out=f"runs/{number}/run", **kinds[number % len(kinds)])


def cache(home: Path, files: Path, count: int, draw: random.Random) -> Iterator[str]:
    """One cache."""
    alone: dict[int, dict[str, str]] = {}
    for number in range(min(3, count)):  # each in a cache of its own, one after another
        (ended,) = at_once([command(*shared(number))], fresh(home, files), draw)
        if ended.status:
            yield f"does not run: {ended.said}"
            return
        alone[number] = result(home / "runs" / str(number), "")
    works = [command(*shared(number)) for number in range(count)] + needs() * max(2, count // 2)
    ended_all = at_once(works, fresh(home, files), draw)
    if any(one.status for one in ended_all):
        yield f"in one cache: {tails([one for one in ended_all if one.status])}"
        return
    for number in range(count):
        if result(home / "runs" / str(number), "") != alone[number % 3]:
            yield f"wrong: {shared(number)} came out otherwise than alone"
    yield from made_too_often(home / "made", len(works))
    yield from left_over(home / "cache", home / "tmp", home / "runs")


def made_too_often(notes: Path, processes: int) -> list[str]:
    """Entries that a lock guards are made once; values without one at most once by each process."""
    times = Counter(notes.read_text().splitlines())
    names = [name for name in times if not any(part.startswith(".") for part in Path(name).parts)]
    wrong = [f"{name} was made {times[name]} times" for name in names if times[name] > 1 and "sealed" not in name]
    kinds = {Path(name).parts[0] for name in names}
    absent = {"references", "scores", "fit", "values", "entries"} - kinds
    return (
        wrong
        + [f"{name}: {times[name]} times" for name in names if times[name] > processes]
        + [f"no {kind} were made" for kind in sorted(absent)]
    )


def readers(home: Path, files: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Files that are written while others read them."""
    at_once([command(*audit("report"))], home, draw)
    report = Report.load(home / "report")
    run = Run.start(home / "logged", {})
    pad, until = ["x" * 50] * 200, time.monotonic() + 1.5

    def written() -> None:
        for n in range(100_000):
            write_json(home / "a.json", {"n": n, "pad": pad})
            write_text(home / "a.txt", f"{n % 10}" * 20_000)
            run.log({"n": n, "loss": 0.5})
            report.save(home / "report")
            if time.monotonic() > until:
                return

    def saved() -> None:
        while time.monotonic() < until:
            report.save(home / "report")

    def read() -> None:
        count = 0
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError):  # before the first
                assert json.loads((home / "a.json").read_text())["pad"] == pad
                text = (home / "a.txt").read_text()
                assert len(text) == 20_000
                assert len(set(text)) == 1
            assert Report.load(home / "report").json() == report.json()
            assert "</html>" in (home / "report" / "report.html").read_text()
            lines = [line["n"] for line in Run.open(home / "logged").logged()]
            assert lines == list(range(len(lines)))
            count += 1
        assert count

    ended = at_once([written, saved, *[read] * max(1, count - 2)], home, draw)
    yield from (f"while files are written: {one.said[-400:]}" for one in ended if one.status)
    run.update(status="done")
    yield from left_over(home / "report", home / "logged")
    yield from (f"left behind: {path}" for path in home.glob(".a.*"))


def audit(out: str) -> tuple[str, ...]:
    return ("audit", "model", "--forget", "forget.jsonl", "--attacks", "none", "--out", out, "--device", "cpu")


def sweep(home: Path, files: Path, count: int, draw: random.Random) -> Iterator[str]:
    """One file of a sweep, one folder of an audit."""

    def slow_row(trial: Any) -> dict[str, Any]:
        time.sleep(0.1)
        return row_of(trial)

    def swept() -> None:
        sweeps._prepare, sweeps.run_trial = nothing_to_train, slow_row
        rows = sweeps.sweep(trials(), home / "sweep.jsonl", workers=1)
        assert len(rows) == len(trials())

    yield from one_of(at_once([swept] * count, home, draw), "sweep")
    lines = [json.loads(line) for line in (home / "sweep.jsonl").read_bytes().splitlines()]
    if len(lines) != 1 + len(trials()):
        yield f"the sweep's file has {len(lines)} lines"
    yield from one_of(at_once([command(*audit("audited"))] * count, home, draw), "audit")
    yield from left_over(home / "audited")
    Report.load(home / "audited")


def killed(home: Path, files: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Whoever holds a lock is killed."""
    for name, (held, work) in holders(home).items():
        holder = Group([held], home, draw, 0).go()
        inside = home / "inside"
        end = time.monotonic() + SECONDS
        while not inside.exists() and time.monotonic() < end:
            time.sleep(0.002)
        group = Group([work] * count, home, draw)
        if name in WAITING:
            group.go()
            time.sleep(0.05)
        os.kill(holder.children[0], signal.SIGKILL)
        (first,) = holder.ended()
        start = time.monotonic()
        if name not in WAITING:
            group.go()
        ended = group.ended()
        took = time.monotonic() - start
        inside.unlink()
        if first.status != -signal.SIGKILL:
            yield f"{name}: its holder ended before it was killed ({tails([first])})"
        if took > AT_ONCE:
            yield f"{name}: the next went on after {took:.1f} s"
        if name in WAITING:
            yield from (f"{name}: {tails([one])}" for one in ended if one.status)
        else:
            yield from one_of(ended, name)
    yield from left_over(home / "cache", home / "held")


WAITING = ("entry", "training")  # whose locks are waited for; the others are refused


def holders(home: Path) -> dict[str, tuple[Work, Work]]:
    """By name: what takes a lock and keeps it until it is killed, and what needs it then."""

    def inside(*_: object) -> None:
        (home / "inside").touch()
        time.sleep(SECONDS)

    def entry(make: Callable[[Path], object]) -> None:
        assert cached_files("killed", "one", make, lambda folder: (folder / "a").read_text()) == "whole" * 1000

    def half(folder: Path) -> None:
        (folder / "a").write_text("half")
        inside()

    def training(fit: Callable[..., None]) -> None:
        trained(TrainRecipe(lambda seed: torch.nn.Linear(1, 1), fit, "killed"), [1], [0], 0)

    def running(resume: bool, then: Work) -> None:
        run = Run.start(home / "held", {}, resume=resume)
        then()
        run.update(status="done")

    def sweeping(run_trial: Callable[..., Any]) -> None:
        sweeps._prepare, sweeps.run_trial = nothing_to_train, run_trial
        sweeps.sweep(trials(), home / "killed.jsonl", workers=1)

    def slow_row(trial: Any) -> dict[str, Any]:
        time.sleep(0.1)
        return row_of(trial)

    return {
        "entry": (partial(entry, half), partial(entry, fill)),
        "training": (partial(training, inside), partial(training, lambda *_: None)),
        "run": (partial(running, False, inside), partial(running, True, partial(time.sleep, 0.3))),
        "sweep": (partial(sweeping, inside), partial(sweeping, slow_row)),
    }


def fresh(home: Path, files: Path) -> Path:
    """An empty working folder with the model and the rows."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(files, home)
    (home / "tmp").mkdir()
    return home


SCENES = {scene.__name__: scene for scene in (folder, cache, readers, sweep, killed)}


def together(
    processes: int, rounds: int, seed: int = 0, scenes: Sequence[str] = tuple(SCENES), *, tell: bool = False
) -> list[str]:
    """What went wrong in so many rounds of every scene, a line each."""
    wrong = []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        files, home = Path(place).resolve() / "files", Path(place).resolve() / "home"
        files.mkdir()
        make_files(files)
        for name in IMPORTED:
            importlib.import_module(name)
        for number in range(rounds):
            for name in scenes:
                draw, start = random.Random(f"{seed} {number} {name}"), time.monotonic()
                found = list(SCENES[name](fresh(home, files), files, processes, draw))
                wrong += [f"round {number}, {name}: {what}" for what in found]
                if tell:
                    print(*wrong[len(wrong) - len(found) :], sep="\n", end="\n" if found else "", flush=True)
                    print(f"round {number}, {name}: {time.monotonic() - start:.1f} s", flush=True)
    return wrong


def main_program() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scene", action="append", choices=list(SCENES), help="only these")
    options = parser.parse_args()
    start = time.monotonic()
    wrong = together(options.processes, options.rounds, options.seed, options.scene or tuple(SCENES), tell=True)
    print(
        f"{options.rounds} rounds of {options.processes} processes, {len(wrong)} went wrong, "
        f"{time.monotonic() - start:.0f} s"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main_program()
