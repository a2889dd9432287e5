"""Methods on beds over seeds: every trial once, whatever stops the sweep, and the same figures whoever computes them.

    trials = trials_of([Contender("scrub", SCRUB())], [BEDS["digits/class"]], range(3))
    rows = sweep(trials, "sweep.jsonl")                       # goes on where it was stopped
    print("\\n".join(markdown(rows)))                          # of sweep_table

The model before, the retrained one and the head-only control are always among the contenders: a method is far from or near to
them, not good or bad by itself. Every job runs on one thread, so a row doesn't depend on how many ran beside it.
"""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from ..beds.images import Bed, ImageBed
from ..errors import MethodError, UnwriteError
from ..forget.base import Method
from ..forget.engine.images.arguments import image_arguments
from ..forget.vision.fine_tuning import Retrain
from ..forget.vision.head_only import HeadOnly
from ..runs import canonical_json, hash_json
from .sweep_file import SweepFile, begun_with, opened
from .sweep_jobs import Each, crew, one_thread

__all__ = ["ALWAYS", "Contender", "Kind", "Trial", "run_trial", "sweep", "trials_of"]

Kind = Literal["reference", "control", "method"]
REFERENCES = ("before", "retrained")


@dataclass(frozen=True)
class Contender:
    """What stands in a line of the table.

    Args:
        name: its label, unique in a sweep.
        method: what unlearns; None for the references "before" and "retrained".
        args: training arguments that differ from the method's own, see `ImageArguments`; the seed is the trial's.

    Raises:
        MethodError: no method and not a reference's name; an unknown argument, or one outside its range.
    """

    name: str
    method: Method | None = None
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.method is None) != (self.name in REFERENCES):
            raise MethodError(
                f"contender {self.name!r} has method {self.method!r:.60}. Give one; {' and '.join(REFERENCES)} have none."
            )
        if self.method is not None and "images" not in self.method.forgets:
            raise MethodError(f"{self.name} has no meaning for images. Choose among: unwrite methods.")
        image_arguments(dict(self.args))

    @property
    def kind(self) -> Kind:
        """A reference (retraining is one too), the head-only control, or a method, which alone is ranked."""
        if self.method is None or isinstance(self.method, Retrain):
            return "reference"
        return "control" if isinstance(self.method, HeadOnly) else "method"


ALWAYS = (Contender("before"), Contender("retrained"), Contender("head-only", HeadOnly()))


@dataclass(frozen=True)
class Trial:
    """One contender on one seed of a bed.

    Args:
        contender: of it.
        bed: its functions must have a name of their own (or be `partial` of one that has): so others can run it.
        seed: of everything.

    Raises:
        MethodError: a function of the bed without a name.
    """

    contender: Contender
    bed: Bed
    seed: int

    def __post_init__(self) -> None:
        _ = self.key

    def __str__(self) -> str:
        return f"{self.contender.name} on {self.bed.name}, seed {self.seed}"

    @cached_property
    def home(self) -> str:
        """What the bed and the seed are, as text."""
        bed = self.bed
        functions = {name: _named(getattr(bed, name), bed.name) for name in ("data", "split")}
        plain = {name: getattr(bed, name) for name in ("name", "net", "epochs", "metrics")}
        return canonical_json({**functions, **plain, "seed": self.seed})

    @cached_property
    def key(self) -> str:
        """Hash of all that its row depends on but the code."""
        one = self.contender
        return hash_json({"home": self.home, "name": one.name, "method": one.method, "args": one.args})


def _named(function: Any, bed: str) -> Any:
    if isinstance(function, partial):
        return [_named(function.func, bed), function.args, function.keywords]
    name = getattr(function, "__qualname__", "<")
    if "<" in name:
        raise MethodError(
            f"bed {bed!r} is made by {function!r:.60}, which has no name that another process could find. Give a function of a "
            "module, or functools.partial of one."
        )
    return f"{function.__module__}.{name}"


def trials_of(contenders: Iterable[Contender], beds: Iterable[Bed], seeds: Iterable[int]) -> list[Trial]:
    """All of them, with those that are always there; trials of one bed and seed follow each other.

    Raises:
        MethodError: two contenders or two beds of one name; none of them; no seed.
    """
    chosen, beds, seeds = list(contenders), list(beds), list(seeds)
    everyone = [*ALWAYS, *(one for one in chosen if one not in ALWAYS)]
    for kind, names in (("contender", [one.name for one in everyone]), ("bed", [bed.name for bed in beds])):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise MethodError(f"{kind} {twice!r} is there twice. Name each once.")
    if not chosen or not beds or not seeds:
        raise MethodError(
            f"{len(chosen)} methods, {len(beds)} beds and {len(seeds)} seeds are no sweep. Give 1 of each or more."
        )
    return [Trial(one, bed, seed) for bed in beds for seed in seeds for one in everyone]


_LAST: dict[str, ImageBed] = {}  # a process works on one bed and seed for a while, and loads its models once


def _image_bed(trial: Trial) -> ImageBed:
    if trial.home not in _LAST:
        _LAST.clear()
        _LAST[trial.home] = ImageBed(trial.bed, trial.seed)
    return _LAST[trial.home]


def run_trial(trial: Trial) -> dict[str, Any]:
    """The trial's row: key, bed, contender, kind, seed, and what came out.

    That is `values` {metric: number, or None where it is none}, `cost` in forwards of a row over all training rows, and
    `seconds` of the unlearning alone (None for references); or, where unwrite refused or gave up, `error`. What nobody foresaw is an
    `error` too, with the traceback as `fault`.
    """
    one = trial.contender
    row = {"key": trial.key, "bed": trial.bed.name, "contender": one.name, "kind": one.kind, "seed": trial.seed}
    try:
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a setting selects nothing, or much: the figures tell
            return row | _measured(trial)
    except UnwriteError as error:
        return row | {"error": str(error)}
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}", "fault": traceback.format_exc()}


def _measured(trial: Trial) -> dict[str, Any]:
    bed, one = _image_bed(trial), trial.contender
    target, seconds = bed.before, None
    if one.method is not None:
        start = time.perf_counter()
        model, forwards = bed.unlearn(one.method, one.args, target)
        seconds = time.perf_counter() - start
        measured = bed.measure(model, forwards)
    else:
        measured = bed.measure(target) if one.name == "before" else bed.retraining()
    values = {name: value if math.isfinite(value) else None for name, value in measured.values.items()}
    return {"values": values, "cost": measured.cost, "seconds": seconds}


def _prepare(trial: Trial) -> str | None:
    """Trains target and oracle of the trial's bed; what was refused, as text that any process can send."""
    try:
        with one_thread():
            bed = _image_bed(trial)
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
