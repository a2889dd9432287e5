"""Methods on beds over seeds: every trial once, whatever stops the sweep, and the same figures whoever computes them.

    trials = trials_of([Contender("scrub", SCRUB())], [BEDS["digits/class"]], range(3))
    rows = sweep(trials, "sweep.jsonl")                       # goes on where it was stopped
    print("\\n".join(markdown(rows)))                          # of sweep_table

The model before and the retrained one are always among the contenders, and what else its kind of data has as a control
(`sweep_kinds`): a method is far from or near to them, not good or bad by itself. Every job runs on one thread, so a row doesn't
depend on how many ran beside it.
"""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..beds.images import Bed, ImageBed
from ..beds.text_beds import TextBed
from ..errors import MethodError, UnwriteError
from ..runs import canonical_json, hash_json
from ..runs.jobs import Each, crew, one_thread
from .sweep_file import SweepFile, begun_with, opened
from .sweep_kinds import AGAIN, BedModels, Contender, named, sweep_kind

__all__ = ["Contender", "Trial", "run_trial", "sweep", "trials_of"]


@dataclass(frozen=True)
class Trial:
    """One contender on one seed of a bed.

    Args:
        contender: of it.
        bed: its functions must have a name of their own (or be `partial` of one that has): so others can run it.
        seed: of everything.

    Raises:
        MethodError: a method for other data, a training argument that has no meaning; a function of the bed without a name.
    """

    contender: Contender
    bed: Bed | TextBed
    seed: int

    def __post_init__(self) -> None:
        sweep_kind(self.bed).admit(self.contender, self.bed)
        _ = self.key

    def __str__(self) -> str:
        return f"{self.contender.name} on {self.bed.name}, seed {self.seed}"

    @cached_property
    def home(self) -> str:
        """What the bed and the seed are, as text."""
        parts = {one.name: getattr(self.bed, one.name) for one in fields(self.bed)}
        plain = {name: named(part, self.bed.name) if callable(part) else part for name, part in parts.items()}
        return canonical_json({**plain, "seed": self.seed})

    @cached_property
    def key(self) -> str:
        """Hash of all that its row depends on but the code."""
        one = self.contender
        return hash_json({"home": self.home, "name": one.name, "method": one.method, "args": one.args})


def trials_of(contenders: Iterable[Contender], beds: Iterable[Bed | TextBed], seeds: Iterable[int]) -> list[Trial]:
    """All of them, with those that are always there; trials of one bed and seed follow each other.

    Raises:
        MethodError: two contenders or two beds of one name; none of them; no seed; a method on a bed of other data.
    """
    chosen, beds, seeds = list(contenders), list(beds), list(seeds)
    everyone = [_with_references(chosen, bed) for bed in beds]
    for what, names in (
        *(("contender", [one.name for one in some]) for some in everyone),
        ("bed", [bed.name for bed in beds]),
    ):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise MethodError(f"{what} {twice!r} is there twice. Name each once.")
    if not chosen or not beds or not seeds:
        raise MethodError(
            f"{len(chosen)} methods, {len(beds)} beds and {len(seeds)} seeds are no sweep. Give 1 of each or more."
        )
    return [Trial(one, bed, seed) for bed, some in zip(beds, everyone, strict=True) for seed in seeds for one in some]


def _with_references(chosen: Sequence[Contender], bed: Bed | TextBed) -> list[Contender]:
    always = sweep_kind(bed).references(bed)
    return [*always, *(one for one in chosen if one not in always)]


_LAST: dict[str, BedModels] = {}  # a process works on one bed and seed for a while, and loads its models once


def _models(trial: Trial) -> BedModels:
    if trial.home not in _LAST:
        _LAST.clear()
        _LAST[trial.home] = sweep_kind(trial.bed).models(trial.bed, trial.seed)
    return _LAST[trial.home]


def run_trial(trial: Trial) -> dict[str, Any]:
    """The trial's row: key, bed, contender, kind, seed, and what came out.

    That is `values` {metric: number, or None where it is none}, `cost` in forwards of a row over all training rows,
    `seconds` of the unlearning alone (None for references), `peer` where the code of another package unlearned, and `verdict` where an audit gives one; or, where unwrite refused or gave up, `error`. What nobody foresaw is an
    `error` too, with the traceback as `fault`.
    """
    one = trial.contender
    row = {"key": trial.key, "bed": trial.bed.name, "contender": one.name, "kind": one.kind, "seed": trial.seed}
    if one.peer:
        row["peer"] = one.peer
    try:
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a setting selects nothing, or much: the figures tell
            return row | _measured(trial)
    except UnwriteError as error:
        return row | {"error": str(error)}
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}", "fault": traceback.format_exc()}


def _measured(trial: Trial) -> dict[str, Any]:
    bed, one = _models(trial), trial.contender
    target, seconds = bed.before, None
    if one.method is not None:
        start = time.perf_counter()
        model, forwards = bed.unlearn(one.method, one.args, target)
        seconds = time.perf_counter() - start
        measured = bed.measure(model, forwards)
    elif isinstance(bed, ImageBed) and one.name == AGAIN:
        measured = bed.retraining_again()
    else:
        measured = bed.measure(target) if one.name == "before" else bed.retraining()
    values = {name: value if math.isfinite(value) else None for name, value in measured.values.items()}
    verdict = {"verdict": measured.verdict} if measured.verdict else {}
    return {"values": values, "cost": measured.cost, "seconds": seconds, **verdict}


def _prepare(trial: Trial) -> str | None:
    """Trains target and oracle of the trial's bed; what was refused, as text that any process can send."""
    try:
        with one_thread():
            bed = _models(trial)
            _ = bed.before, bed.oracle
    except UnwriteError as error:
        return str(error)
    return None


def sweep(
    trials: Iterable[Trial],
    out: str | Path,
    workers: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
    ray: str | None = None,
) -> list[dict[str, Any]]:
    """Runs what `out` doesn't have yet, and gives the rows of all trials in their order (see `run_trial`).

    Args:
        trials: see `trials_of`.
        out: JSON lines, whole after every trial: a sweep that was stopped or killed goes on from it. It may hold rows of
            other trials too. Faults aren't kept, so that they are tried again.
        workers: processes, each on one thread; 1 for none but this one, None for as many as there are cores.
        tell: gets a line of progress.
        ray: "local" to start a ray cluster here (of `workers` cores), or the address of one. A cluster that is
            initialised already is used in any case. Its machines must see one cache folder (`UNWRITE_CACHE`), or each
            trains targets of its own.

    Raises:
        MethodError: less than one worker; a bed that can't be made.
        RunError: `out` is something else, was begun with other code, or another sweep writes to it; a worker was killed.
        MissingExtra: ray is asked for and isn't installed.
    """
    if workers is not None and workers < 1:
        raise MethodError(f"workers is {workers}; use 1 or more.")
    trials = list(trials)
    once = {trial.key: trial for trial in trials}
    with opened(Path(out), begun_with()) as file:
        todo = [trial for key, trial in once.items() if key not in file.rows]
        faults = {}
        if todo:
            with crew(workers, ray) as each:
                _train(todo, each, tell)
                faults = _run(todo, len(once), each, file, tell)
        _LAST.clear()
        return [{**file.rows, **faults}[trial.key] for trial in trials]


def _train(todo: Sequence[Trial], each: Each, tell: Callable[[str], None]) -> None:
    """Targets and oracles first, a bed and seed a job, so that no two workers train the same."""
    homes = list({trial.home: trial for trial in todo}.values())
    done = 0

    def running(some: Sequence[Trial]) -> None:
        where = "; ".join(f"{trial.bed.name}, seed {trial.seed}" for trial in some)
        tell(f"targets and oracles: {done} of {len(homes)} done{_in_brackets(where)}")

    for trial, refused in each(_prepare, homes, running):
        if refused is not None:
            raise MethodError(f"bed {trial.bed.name} can't be made: {refused}")
        done += 1


def _run(todo: Sequence[Trial], total: int, each: Each, file: SweepFile, tell: Callable[[str], None]) -> dict[str, Any]:
    """Keeps every row as it comes but those of faults, which it returns."""
    faults: dict[str, Any] = {}
    done, start = 0, time.monotonic()
    methods, ended = sum(trial.contender.kind == "method" for trial in todo), 0  # all others take no time beside them

    def running(some: Sequence[Trial]) -> None:
        took = time.monotonic() - start
        left = f", {_duration(took / ended * (methods - ended))} left" if ended else ""
        tell(f"trials: {total - len(todo) + done} of {total} done{left}{_in_brackets('; '.join(map(str, some)))}")

    for trial, row in each(run_trial, todo, running):
        if "fault" in row:
            faults[trial.key] = row
        else:
            file.append(row)
        done, ended = done + 1, ended + (trial.contender.kind == "method")
    return faults


def _in_brackets(some: str) -> str:
    return f" ({some})" if some else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
