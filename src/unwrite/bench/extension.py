"""A stored comparison of methods that forget texts, extended by further methods without running the others again.

    report = extend(stored, BEDS["authors/small"], 3, Path("rows.jsonl"), ["eco", "o3"])

The model before and the retrained one are measured first. Their figures must be those that are stored, within `SAME`: then bed,
metrics and machine are as they were, and what was measured then stands beside what is measured now. Ranks, and who is better than whom,
are worked out anew over all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path
from typing import Any

from .. import catalog
from ..beds.text_beds import TextBed
from ..errors import MethodError, RunError, setting
from ..runs import conforms
from .forget import EQUAL, QUALITY, SUITES, TUNED_ON, UTILITY, choosing, placed, report_of, rule_of, run
from .sweep import Trial, sweep
from .sweep_kinds import AGAIN, Contender
from .sweep_kinds import REFERENCES as NAMED

__all__ = ["SAME", "extend", "extendable"]

SAME = (
    1e-9  # by how much of itself a reference's figure may differ: the rounding of a mean, and no other kernel or code
)
REFERENCES = tuple(name for name in NAMED if name != AGAIN)  # which is of images alone
Report = Mapping[str, Any]


def extend(
    stored: Report,
    bed: TextBed,
    seeds: int,
    out: Path,
    methods: Iterable[str] | None = None,
    workers: int | None = 1,
    tell: Callable[[str], None] = lambda line: None,
    suites: Sequence[str] = SUITES,
    settings: Report | None = None,
) -> dict[str, Any]:
    """The stored comparison with further methods in it.

    It has "extensions" beside, one each time: {"methods", "seconds"}, in the order in which they were made.

    Args:
        stored: as `run` or `extend` gave it.
        bed, seeds: those it was made with.
        out: JSON lines, one a trial, of the further methods; a stopped run goes on from it.
        methods: to add; all of the catalogue that aren't in it unless given.
        workers, tell, suites, settings: as `run`.

    Raises:
        MethodError: a method that is in it already; another bed, other seeds, suites or a choice of settings by another rule; see `run`.
        RunError: references whose figures differ from those that are stored.
    """
    there = {entry["method"] for entry in stored["entries"]}
    if methods is None:
        methods = [slug for slug, one in catalog.methods().items() if "text" in one.forgets and slug not in there]
    methods = list(methods)
    bed = replace(bed, suites=tuple(suites))
    _check(stored, bed, seeds, methods, rule_of(settings))
    _compare_references(stored, bed, seeds, out, workers, lambda line: tell(f"comparing references, {line}"))
    return _joined(stored, run(bed, seeds, out, methods, workers, tell, suites, settings), methods)


def extendable(report: Report) -> bool:
    """Whether a file's comparison has all that `extend` reads; `per_seed` is missing from those of before there was one."""
    parts = {"bed": str, "rule": str, "suites": list[str], "seeds": list[int], "seconds": float, "equal": float}
    lists = dict.fromkeys(("entries", "tuning"), list[dict[str, Any]])
    if not _has(report, {**parts, **lists, "left_out": dict[str, str]}):
        return False
    if not conforms(report.get("extensions", []), list[dict[str, Any]]):
        return False
    texts = dict.fromkeys(("contender", "method", "setting", "kind"), str)
    by_seed = {"seeds": list[int], "errors": dict[str, Any], "per_seed": dict[str, list[float | None]]}
    return (
        all(_has(entry, {**texts, **by_seed}) and _has_figures(entry) for entry in report["entries"])
        and all(_has(row, {"contender": str}) and {QUALITY, UTILITY} <= {*row} for row in report["tuning"])
        and {*REFERENCES} <= {entry["contender"] for entry in report["entries"]}
        and (not report["tuning"] or {*REFERENCES} <= {row["contender"] for row in report["tuning"]})
    )


def _has(values: Report, parts: Mapping[str, Any]) -> bool:
    return all(name in values and conforms(values[name], hint) for name, hint in parts.items())


def _has_figures(entry: Report) -> bool:
    """Whether each of what is compared has a mean, or none, and a value a seed."""
    figures = [entry.get(name) for name in (QUALITY, UTILITY)]
    means = all(figure is None or (conforms(figure, dict[str, float]) and "mean" in figure) for figure in figures)
    return means and all(len(entry["per_seed"].get(name, ())) == len(entry["seeds"]) for name in (QUALITY, UTILITY))


def _check(stored: Report, bed: TextBed, seeds: int, methods: Sequence[str], rule: str) -> None:
    """Refuses what can be known before anything is measured."""
    if stored["bed"] != bed.name:
        raise MethodError(
            f"what is stored was compared on {stored['bed']}, and the bed is {bed.name}. Choose that one."
        )
    if stored["suites"] != list(bed.suites):
        raise MethodError(f"what is stored was audited by {', '.join(stored['suites'])}. Give those suites.")
    if stored["seeds"] != list(range(seeds)):
        counted = ", ".join(map(str, stored["seeds"]))
        raise MethodError(
            f"{setting('seeds')} is {seeds}, and what is stored was compared with seeds {counted}. Give those."
        )
    if stored["rule"] != rule:
        raise MethodError(
            f'settings in what is stored were chosen by "{stored["rule"]}", and these would be by "{rule}". Choose them alike, see '
            f"{setting('settings')}."
        )
    if stored["equal"] != EQUAL:
        raise RunError(
            f"what is stored takes utilities within {stored['equal']:g} for equal, and today's bound is {EQUAL:g}. Compare all "
            "methods anew."
        )
    there = {entry["method"] for entry in stored["entries"]}
    if twice := next((slug for slug in methods if slug in there), None):
        raise MethodError(f"{twice} is in what is stored already. Leave it out, or compare all methods anew.")


def _compare_references(
    stored: Report, bed: TextBed, seeds: int, out: Path, workers: int | None, tell: Callable[[str], None]
) -> None:
    """Measures the references, and refuses those whose figures are others than the stored ones."""
    references = [Contender(name) for name in REFERENCES]
    trials = [Trial(one, bed, seed) for seed in range(seeds) for one in references]
    if stored["tuning"]:
        trials += [Trial(one, choosing(bed), TUNED_ON) for one in references]
    rows = sweep(trials, out, workers, tell)
    if odd := next((row for row in rows if "error" in row), None):
        raise RunError(f"the reference {odd['contender']} on {odd['bed']} can't be measured: {odd['error']}")
    now = report_of(bed, [], rows[: 2 * seeds], rows[2 * seeds :])
    entries = {entry["contender"]: _figures(entry) for entry in stored["entries"]}
    for entry in now["entries"]:
        _need_same(entry["contender"], entries[entry["contender"]], _figures(entry))
    tuning = {row["contender"]: row for row in stored["tuning"]}
    for row in now["tuning"]:
        then, here = ({name: one[name] for name in (QUALITY, UTILITY)} for one in (tuning[row["contender"]], row))
        _need_same(f"{row['contender']} on the tuning authors", then, here)


def _need_same(reference: str, then: Mapping[str, float | None], now: Mapping[str, float | None]) -> None:
    for name in sorted({*then, *now}):
        was, is_ = then.get(name), now.get(name)
        if was is None or is_ is None:
            same = was is is_
        else:
            same = isclose(was, is_, rel_tol=SAME, abs_tol=SAME)
        if not same:
            raise RunError(
                f"{name} of the reference {reference} is {_shown(is_)}, and what is stored has {_shown(was)}: it was measured on "
                "another machine or with other code. Compare all methods anew."
            )


def _figures(entry: Report) -> dict[str, float]:
    """The means of an entry's figures, but for those of a clock."""
    known = {name: value for name, value in entry.items() if isinstance(value, dict) and "mean" in value}
    return {name: value["mean"] for name, value in known.items() if name != "seconds"}


def _shown(value: float | None) -> str:
    return "not there" if value is None else repr(value)


def _joined(stored: Report, added: Report, methods: Sequence[str]) -> dict[str, Any]:
    """Both in one, the references once."""
    further = [entry for entry in added["entries"] if entry["kind"] == "method"]
    entered = {entry["method"] for entry in further}
    reasons = {slug: why for slug, why in stored["left_out"].items() if slug not in entered}
    tried = {row["contender"]: row for row in added["tuning"] if row["contender"] not in REFERENCES}
    extension = {"methods": [slug for slug in methods if slug in entered], "seconds": added["seconds"]}
    return {
        **stored,
        "entries": placed([*stored["entries"], *further]),
        "tuning": [*(row for row in stored["tuning"] if row["contender"] not in tried), *tried.values()],
        "left_out": reasons | added["left_out"],
        "extensions": [*stored.get("extensions", ()), extension],
    }
