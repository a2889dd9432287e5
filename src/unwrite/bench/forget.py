"""Every method that forgets texts on one bed: settings chosen on other authors than those that are reported, over seeds.

A method's grid (`forget_grid.toml`) is tried once on the bed's tuning authors. Of the settings that keep `KEPT` of the target's utility,
the one of best forget quality is taken; where none does, the one of highest utility. Where that costs too much, the choices of another
bed are taken over, rates as multiples of a bed's own. The setting is then reported, over seeds, on authors that no choice has seen, with
what the battery of removal probes makes of it. Two methods are compared at equal utility alone, within `EQUAL`: a method is better than another
whose forget quality is below its own with every seed.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import catalog
from ..beds.text_beds import BEDS, TextBed
from ..errors import MethodError, UnwriteError, unknown
from .sweep import Trial, sweep, trials_of
from .sweep_kinds import REFERENCES, TRAINING, Contender
from .sweep_table import summary

__all__ = ["BED_NAMES", "EQUAL", "KEPT", "LARGEST", "TUNED_ON", "Candidate", "candidates", "chosen", "grid", "run"]

BED_NAMES = tuple(BEDS)
KEPT = 0.95  # share of the target's utility that a setting must keep to be taken for its forget quality
EQUAL = 0.03  # utilities that differ by no more are equal
TUNED_ON = 7  # the seed on which settings are chosen
LARGEST = 5  # settings a method
SUITES = ("tofu", "removal-quick")  # of what is reported; settings are chosen by the first alone
RATE = "rate"  # of a setting: what the learning rate is multiplied by
QUALITY, UTILITY = "forget_quality_log10", "model_utility"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One setting of a method.

    Args:
        slug: the method's name.
        contender: the setting, named as `unwrite sweep` has it: npo:lr=0.0005.
    """

    slug: str
    contender: Contender


@cache
def grid() -> dict[str, list[dict[str, Any]] | str]:
    """The settings to try, by method; a text is why a method is left out.

    Raises:
        MethodError: more than `LARGEST` of one method.
    """
    text = files("unwrite.bench").joinpath("forget_grid.toml").read_text(encoding="utf-8")
    given = tomllib.loads(text)
    settings = {slug: some if isinstance(some, str) else [_fields(one) for one in some] for slug, some in given.items()}
    if many := next(
        (slug for slug, some in settings.items() if not isinstance(some, str) and len(some) > LARGEST), None
    ):
        raise MethodError(f"the grid of {many} has {len(settings[many])} settings; use at most {LARGEST}.")
    return settings


def _fields(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting as a method takes it: several values are a tuple."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in setting.items()}


def candidates(bed: TextBed, methods: Iterable[str] | None = None) -> tuple[list[Candidate], dict[str, str]]:
    """The settings of every method of the catalogue that forgets texts, and {method: why it is left out}.

    Args:
        methods: of these alone.

    Raises:
        MethodError: an unknown method.
    """
    texts = {slug: record for slug, record in catalog.methods().items() if "text" in record.forgets}
    if odd := next((slug for slug in methods or () if slug not in texts), None):
        raise MethodError(unknown("method for texts", odd, texts))
    some: list[Candidate] = []
    left_out: dict[str, str] = {}
    for slug in texts if methods is None else methods:
        settings = grid().get(slug, [{}])
        if isinstance(settings, str):
            left_out[slug] = settings
            continue
        try:
            of_method = [_candidate(slug, setting, bed) for setting in settings]
            for one in of_method:
                _ = Trial(one.contender, bed, TUNED_ON)
            some += of_method
        except (UnwriteError, TypeError) as error:
            left_out[slug] = str(error)
    return some, left_out


def _candidate(slug: str, setting: Mapping[str, Any], bed: TextBed) -> Candidate:
    fields = {name: value for name, value in setting.items() if name not in (RATE, *TRAINING)}
    args = {TRAINING[name]: value for name, value in setting.items() if name in TRAINING}
    method = catalog.method(slug).load()(**fields)
    if RATE in setting:
        own = {**bed.training, **method.defaults()}
        args[TRAINING["lr"]] = own[TRAINING["lr"]] * setting[RATE]
    label = ",".join(f"{name}={_as_text(value)}" for name, value in setting.items())
    return Candidate(slug, Contender(f"{slug}:{label}" if label else slug, method, args))


def _as_text(value: Any) -> str:
    """A value as `unwrite sweep` reads it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def taken_over(some: Iterable[Candidate], report: Mapping[str, Any]) -> tuple[list[Candidate], dict[str, str]]:
    """The setting of every method that another comparison chose, and {method: why it has none}.

    Args:
        some: all settings.
        report: of a comparison on another bed, as `run` gives it.
    """
    there = {entry["contender"] for entry in report["entries"]}
    picked = [one for one in some if one.contender.name in there]
    has = {one.slug for one in picked}
    left_out = {one.slug: f"no setting was chosen on {report['bed']}" for one in some if one.slug not in has}
    return picked, left_out


def chosen(some: Iterable[Candidate], rows: Iterable[Row]) -> tuple[list[Candidate], dict[str, str]]:
    """The setting of every method that its figures on the tuning authors speak for, and {method: why it has none}.

    Args:
        some: all settings.
        rows: of a sweep over them on the tuning authors, with the target's.
    """
    by_name = {row["contender"]: row for row in rows}
    least = KEPT * by_name["before"]["values"][UTILITY]
    of_method: dict[str, list[Candidate]] = {}
    for one in some:
        of_method.setdefault(one.slug, []).append(one)
    picked: list[Candidate] = []
    left_out: dict[str, str] = {}
    for slug, tried in of_method.items():
        good = [one for one in tried if "error" not in by_name[one.contender.name]]
        if not good:
            left_out[slug] = by_name[tried[0].contender.name]["error"]
            continue

        def figure(one: Candidate, name: str) -> float:
            value = by_name[one.contender.name]["values"].get(name)
            return float("-inf") if value is None else float(value)

        useful = [one for one in good if figure(one, UTILITY) >= least]
        by = QUALITY if useful else UTILITY
        picked.append(max(useful or good, key=lambda one: figure(one, by)))
    return picked, left_out


def run(
    bed: TextBed,
    seeds: int,
    out: Path,
    methods: Iterable[str] | None = None,
    workers: int | None = 1,
    tell: Callable[[str], None] = lambda line: None,
    suites: Sequence[str] = SUITES,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The comparison as plain values: {"bed", "seeds", "entries", "tuning", "left_out", ...}, see `report_of`.

    Args:
        bed: one of `BEDS`, or one's own.
        seeds: how many, from 0.
        out: JSON lines, one a trial; a stopped run goes on from it.
        methods: of these alone.
        workers: as `sweep`.
        tell: gets a line of progress.
        suites: audits of what is reported; settings are chosen by the first alone.
        settings: a comparison on another bed, whose choices are taken over: rates are multiples of a bed's own. Without, settings
            are chosen on this one.

    Raises:
        MethodError: no seed, or one that settings were chosen on; an unknown method; no method that can be compared.
    """
    if not 1 <= seeds <= TUNED_ON:
        raise MethodError(f"seeds is {seeds}; use 1 to {TUNED_ON}. Settings are chosen on seed {TUNED_ON}.")
    start = time.monotonic()
    bed = replace(bed, suites=tuple(suites))
    some, left_out = candidates(bed, None if methods is None else list(methods))
    tuning: list[dict[str, Any]] = []
    if settings is None:
        trials = trials_of([one.contender for one in some], [choosing(bed)], [TUNED_ON])
        tuning = sweep(trials, out, workers, lambda line: tell(f"choosing settings, {line}"))
        picked, refused = chosen(some, tuning)
    else:
        picked, refused = taken_over(some, settings)
    trials = trials_of([one.contender for one in picked], [bed], range(seeds))
    rows = sweep(trials, out, workers, lambda line: tell(f"reporting, {line}"))
    report = report_of(bed, picked, rows, tuning)
    report["entries"], failed = _with_figures(report["entries"])
    report |= {"left_out": left_out | refused | failed}
    report |= {"seeds": list(range(seeds)), "seconds": round(time.monotonic() - start)}
    return report | {"rule": rule_of(settings)}


def _with_figures(entries: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
    """The entries with figures of a seed, and {method: why it has none, with the first seed}."""
    entries = list(entries)
    none = [entry for entry in entries if entry["kind"] == "method" and not entry["seeds"]]
    failed = {entry["method"]: next(iter(entry["errors"].values())) for entry in none}
    return [entry for entry in entries if entry["method"] not in failed], failed


def choosing(bed: TextBed) -> TextBed:
    """The bed on which settings are chosen, audited by the first suite alone."""
    return replace(bed.tuning(), suites=bed.suites[:1])


def rule_of(settings: Mapping[str, Any] | None) -> str:
    """How settings are chosen, as text; see `run`."""
    if settings is not None:
        return f"{settings['rule']}, on {settings['bed']}"
    return f"best forget quality of the settings that keep {KEPT:g} of the target's utility, on other authors"


def report_of(bed: TextBed, picked: Sequence[Candidate], rows: Sequence[Row], tuning: Sequence[Row]) -> dict[str, Any]:
    """What came out: an entry a reference and method, and what every setting came to on the tuning authors.

    An entry has the fields of `summary`, and "method", "setting", "per_seed" ({metric: its value with every seed of "seeds"}, of what
    is compared), "verdict" (None where no audit gives one), and what `placed` adds.
    """
    of = {one.contender.name: one for one in picked}
    entries = [dict(entry) for entry in summary(rows, seconds=True)]
    for entry in entries:
        name = entry["contender"]
        own = sorted((row for row in rows if row["contender"] == name and "values" in row), key=lambda row: row["seed"])
        entry |= {
            "method": of[name].slug if name in of else name,
            "setting": name.partition(":")[2] if name in of else "",
            "per_seed": {metric: [row["values"].get(metric) for row in own] for metric in (QUALITY, UTILITY)},
            "verdict": _verdict(rows, name),
        }
    settings = {one.contender.name for one in picked}
    return {
        "bed": bed.name,
        "suites": list(bed.suites),
        "rule": rule_of(None),
        "equal": EQUAL,
        "entries": placed(entries),
        "tuning": [
            {
                "contender": row["contender"],
                "chosen": row["contender"] in settings,
                **{name: row.get("values", {}).get(name) for name in (QUALITY, UTILITY)},
                **({"error": row["error"]} if "error" in row else {}),
            }
            for row in tuning
        ],
    }


def placed(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries in the table's order, each with what it is beside the others.

    That is "useful" (it keeps `KEPT` of the target's utility), "rank" among the useful ones, "equal" (methods of equal utility)
    and "better_than" (those of them).

    Args:
        entries: of `report_of`, those of the references among them.
    """
    before = next(entry for entry in entries if entry["contender"] == REFERENCES[0])
    least = KEPT * before[UTILITY]["mean"]
    methods = [entry for entry in entries if entry["kind"] == "method"]
    figures = {entry["contender"]: _by_seed(entry) for entry in methods}

    def beside(name: str, compare: Callable[[Mapping[int, Any], Mapping[int, Any]], bool]) -> list[str]:
        if name not in figures:
            return []
        others = [one for one in methods if one["contender"] != name]
        return sorted(one["method"] for one in others if compare(figures[name], figures[one["contender"]]))

    ordered = []
    for entry in entries:
        name, utility = entry["contender"], (entry.get(UTILITY) or {}).get("mean", 0.0)
        useful = not entry["errors"] and utility >= least
        equal, better = beside(name, equal_utility), beside(name, is_better)
        ordered.append({**entry, "useful": useful, "rank": None, "equal": equal, "better_than": better})
    ordered.sort(key=_place)
    ranked = [entry for entry in ordered if entry["kind"] == "method" and entry["useful"]]
    for rank, entry in enumerate(ranked, 1):
        entry["rank"] = rank
    return ordered


def _verdict(rows: Iterable[Row], name: str) -> str | None:
    """What the battery calls a contender: one label, or each that some seed was given, in the seeds' order; None for none."""
    labels = dict.fromkeys(row["verdict"] for row in rows if row["contender"] == name and "verdict" in row)
    return " or ".join(labels) or None


def _by_seed(entry: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    """{seed: (forget quality, utility)} of an entry, where both have a value."""
    values = entry["per_seed"]
    both = zip(entry["seeds"], values[QUALITY], values[UTILITY], strict=True)
    return {seed: (q, u) for seed, q, u in both if q is not None and u is not None}


def equal_utility(one: Mapping[int, tuple[float, float]], other: Mapping[int, tuple[float, float]]) -> bool:
    """Whether two methods' mean utilities lie within `EQUAL`; each {seed: (forget quality, utility)}, of the same seeds."""
    if not one or set(one) != set(other):
        return False
    return abs(fmean(u for _, u in one.values()) - fmean(u for _, u in other.values())) <= EQUAL + 1e-12


def is_better(one: Mapping[int, tuple[float, float]], other: Mapping[int, tuple[float, float]]) -> bool:
    """Whether, at equal utility, the first has the higher forget quality with every seed."""
    return equal_utility(one, other) and all(one[seed][0] > other[seed][0] for seed in one)


def _place(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """References, useful methods from near to the retrained model to far, then the others by what they keep, then refusals."""
    if entry["kind"] != "method":
        return 0, 0.0, entry["contender"]
    by = QUALITY if entry["useful"] else UTILITY
    figure = entry.get(by)
    if figure is None or entry["errors"]:
        return 3, 0.0, entry["contender"]
    return 1 if entry["useful"] else 2, -figure["mean"], entry["contender"]
