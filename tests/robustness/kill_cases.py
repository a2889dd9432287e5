"""The commands that are killed, on models and rows so small that a run takes about a second, and what each comes to."""

from __future__ import annotations

import atexit
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from cli_runs import make_files

from unwrite.audit.report import charts
from unwrite.beds.budget import Budget
from unwrite.beds.images import BEDS, DIGITS, Bed, ImageBed, Measured, _by_class, rows_of
from unwrite.bench import sweep  # noqa: F401 - imported once, before the forks
from unwrite.data.images.sets import digits
from unwrite.forget.dampening import SSD
from unwrite.forget.engine.text import trainer  # noqa: F401
from unwrite.forget.vision.fine_tuning import FineTune
from unwrite.reproduce import ssd
from unwrite.reproduce.base import Claim
from unwrite.reproduce.checks import Check
from unwrite.runs import jobs

TINY = Bed("tiny", partial(digits, 0.9), partial(_by_class, 3), {**DIGITS, "width": 4}, 2)


@dataclass(frozen=True)
class Case:
    """One command, run in a folder with a tiny model and rows.

    Args:
        arguments: of the command line.
        resumes: whether it goes on with --resume; otherwise with the same command.
        alone: kill the process that writes and not the command: a worker, or who waits for the workers.
        over: the run folder holds a finished run already.
    """

    name: str
    arguments: tuple[str, ...]
    resumes: bool = False
    alone: bool = False
    over: bool = False


def _flags(given: dict[str, str]) -> list[str]:
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]


def forget(**more: str) -> tuple[str, ...]:
    """The line of `unwrite forget` with what all share; `more` goes before it."""
    shared = {
        "model": "model", "forget": "forget.jsonl", "retain": "retain.jsonl", "out": "run", "device": "cpu", "epochs": "2",
        "lr": "0.01", "batch_size": "2", "attacks": "none",
    }  # fmt: skip
    return "forget", *_flags({**shared, **more})


def _forget(name: str, *switches: str, over: bool = False, **more: str) -> Case:
    return Case(name, (*forget(**more), *switches), resumes=True, over=over)


def _audit(name: str, attacks: str) -> Case:
    given = {
        "forget": "forget.jsonl",
        "retain": "retain.jsonl",
        "attacks": attacks,
        "out": "run",
        "device": "cpu",
    }
    return Case(name, ("audit", "model", *_flags(given), "--overwrite"))


def _sweep(name: str, workers: int, *, alone: bool = False) -> Case:
    given = {
        "methods": "scrub:epochs=1,ssd:alpha=1,fine-tune:epochs=1",
        "beds": "tiny",
        "seeds": "2" if workers > 1 else "1",
        "workers": str(workers),
        "out": "run/sweep.jsonl",
    }
    return Case(name, ("sweep", *_flags(given), "--markdown"), alone=alone)


CASES = [
    _forget("npo", epochs="3"),
    _forget("npo with kl, attacked", retain_loss="kl", attacks="relearn,quantise"),
    _forget("lora", lora="2"),
    _forget("stopped early", stop_at="0.999", lr="0.05", epochs="3"),
    _forget("accumulated", batch_size="1", accumulate="3"),
    _forget("uld", method="uld", layers="1", rank="2"),
    _forget("rmu", method="rmu", layer="1"),
    _forget("task vector", method="task-vector"),
    _forget("npo over an earlier run", over=True),
    _audit("audit", "quantise"),
    _audit("audit that trains", "relearn,quantise"),
    _sweep("sweep", 1),
    _sweep("sweep by two", 2),
    _sweep("sweep by two, one killed", 2, alone=True),
    Case("reproduce", ("reproduce", "ssd", "--budget", "tiny", "--seeds", "1", "--out", "run", "--overwrite")),
]

EARLIER = _forget("an earlier run", lr="0.02")


def prepare() -> None:
    """What this process and those it forks must know: a bed, an experiment, workers that are forked, pages without charts."""
    BEDS["tiny"] = TINY
    ssd.run = _experiment
    jobs.get_context = lambda kind: get_context("fork")  # they start at once, and their writes are counted too
    jobs._begin = partial(_begin, jobs._begin)
    charts._draw = lambda *arguments, **options: "<svg/>"  # a JavaScript engine for each page, and no write of its own


def _begin(begin: Callable[[], None]) -> None:
    """A forked worker ends as a spawned one does: with what it is to do at its end, and nothing of who forked it."""
    atexit._clear()
    Finalize(None, atexit._run_exitfuncs, exitpriority=0)
    begin()


def _experiment(budget: Budget) -> Claim:
    """Trains, keeps importances, unlearns and measures, as experiments do."""
    found: dict[str, list[Measured]] = {}
    for seed in budget.seeds:
        bed = ImageBed(TINY, seed)
        found.setdefault("before", []).append(bed.measure(bed.before))
        found.setdefault("retrained", []).append(bed.retraining())
        found.setdefault("SSD", []).append(bed.apply(SSD(alpha=1.0)))
        found.setdefault("fine-tuned", []).append(bed.apply(FineTune(), {"num_train_epochs": 1}))
    return Claim(
        "ssd", "", "tiny", ("value",), rows_of(found), "it ran", "", (Check("claim", "it runs", True),), budget.seeds
    )


def make(folder: Path) -> Path:
    """The files all cases read."""
    folder.mkdir()
    return make_files(folder)


def laid(case: Case, home: Path, files: Path, earlier: Path) -> Path:
    """An empty working folder with the files of a case.

    Args:
        earlier: a finished run.
    """
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(files, home / "work")
    (home / "work" / "tmp").mkdir()
    if case.over:
        shutil.copytree(earlier, home / "work" / "run")
    return home


def over(case: Case) -> Case:
    """The command as it is first given, where that differs from how it is repeated."""
    return replace(case, arguments=(*case.arguments, "--overwrite")) if case.over else case


def result(work: Path, said: str) -> dict[str, str]:
    """Hashes of what a command came to: its model, figures, what its record says of both, and the table it printed."""
    out = {}
    for path in sorted((work / "run").rglob("*")):
        name = str(path.relative_to(work / "run"))
        if path.is_file() and not name.startswith(("metrics", "report.html")):
            out[name] = hashlib.sha256(_content(path)).hexdigest()[:16]
    table = "\n".join(line for line in said.splitlines() if line.startswith("|"))
    return out | ({"table": hashlib.sha256(table.encode()).hexdigest()[:16]} if table else {})


def _content(path: Path) -> bytes:
    """A file without what may differ from run to run."""
    if path.suffix == ".json":
        return json.dumps(_plain(json.loads(path.read_bytes())), sort_keys=True).encode()
    if path.suffix == ".jsonl":  # lines in whichever order the workers came
        lines = [json.dumps(_plain(json.loads(line)), sort_keys=True) for line in path.read_bytes().splitlines()]
        return "\n".join(sorted(lines)).encode()
    return path.read_bytes()


def _plain(value: Any) -> Any:
    """Without clocks, notices of a repaired cache, and the name of the folder all this happens in."""
    if isinstance(value, dict):
        skipped = ("started", "seconds", "notices", "created", "time", "arguments")
        if "status" in value:
            skipped += ("key",)  # of all arguments, with that name in them
        return {key: _plain(one) for key, one in value.items() if key not in skipped}
    if isinstance(value, str):
        return re.sub(r"\bhome-\d+\b", "home", value)
    return [_plain(one) for one in value] if isinstance(value, list) else value


def left_over(work: Path, *, temporary: bool) -> str:
    """A half-written file or folder of the command's when all is done; nothing where there is none.

    Args:
        temporary: look in the folder for temporary files too, which a kill may leave.
    """
    found = [path for path in (work / "run").rglob("*") if path.name.startswith(".") or path.name == "unfinished"]
    found += list((work / "tmp").iterdir()) if temporary else []
    return str(found[0].relative_to(work)) if found else ""
