"""What `unwrite bench vision`, `forget` and `cache` run and show: methods beside each other on one bed, caches beside the full one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..runs import progress
from .listing import plain_table
from .output import console, label, print_json, progress_console

# Heads that leave room in 80 columns, of the figures and of the recovery indices; in the pages they are written out.
NARROW = ("#", "method", "log10 p", "utility", "P", "par.", "R-L", "kept", "cost", "better")
NARROW_PROBES = ("method", "direct", "par.", "shots", "rel.", "gen.", "4 bits", "depth", "verdict")


def vision(seed: int, out: Path | None, json: bool) -> None:
    """Twelve methods that forget images."""
    from ..bench.sweep_table import summary, tables
    from ..bench.vision import LIMIT, over_limit, run

    with TemporaryDirectory() as folder, progress(None, "bench vision") as shown:
        rows, trained = run(out or Path(folder) / "rows.jsonl", seed, tell=shown.say)
    if json:
        print_json(summary(rows, seconds=True))
        return
    console().print(*tables(rows, seconds=True), sep="\n")
    for one in trained:
        console().print(f"target and oracle of {one.bed}: {one.seconds:.1f} s (trained, or found in the cache)")
    slow = over_limit(rows)
    console().print(f"over {LIMIT:g} s: {'; '.join(slow)}" if slow else f"no method took more than {LIMIT:g} s")


def forget(
    bed: str,
    seeds: int,
    methods: str | None,
    workers: int,
    settings: Path | None,
    extended: Path | None,
    out: Path | None,
    json: bool,
    setting: dict[str, Any],
) -> None:
    """Every method that forgets texts; or further ones, in a comparison that is stored."""
    from ..beds.text_beds import BEDS
    from ..bench.extension import extend, extendable
    from ..bench.forget import run
    from ..bench.forget_report import cells, probe_cells, refusals
    from ..errors import MethodError, RunError, unknown
    from ..runs import write_json

    if bed not in BEDS:
        raise MethodError(unknown("bed of texts", bed, BEDS))
    if out is not None and out.suffix == ".jsonl":
        raise MethodError(f"--out is {out}, a name for rows, which are kept beside the figures. End it in .json.")
    taken = None if settings is None else _comparison(settings)
    stored = None if extended is None else _comparison(extended)
    if stored is not None and not extendable(stored):
        raise RunError(
            f"{extended} lacks figures of each seed, by which methods are compared. Compare all methods anew."
        )
    some = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    with TemporaryDirectory() as folder, progress(None, "bench forget") as shown:
        rows = Path(folder) / "rows.jsonl" if out is None else out.with_suffix(".jsonl")
        if stored is None:
            report = run(BEDS[bed], seeds, rows, some, workers, shown.say, settings=taken) | setting
        else:
            report = extend(stored, BEDS[bed], seeds, rows, some, workers, shown.say, settings=taken)
            report["extensions"][-1] |= setting
    if out is not None:
        write_json(out, report)
    if json:
        print_json(report)
        return
    console().print(plain_table(NARROW, cells(report)))
    if probed := probe_cells(report):
        console().print("What comes back of it: 0 like a model that never learnt it, 1 like one that never forgot.")
        console().print(plain_table(NARROW_PROBES, [(*figures, _in_a_word(verdict)) for *figures, verdict in probed]))
    console().print(label(f"better: of the methods of equal utility, within {report['equal']:g}", "dim"))
    for line in refusals(report):
        console().print(label(f"refused: {line}", "dim"))
    for slug, reason in report["left_out"].items():
        console().print(label(f"left out: {slug}: {reason}", "dim"))


def _in_a_word(verdict: str) -> str:
    """A verdict that leaves room for figures in 80 columns."""
    return verdict.replace("-like", "").replace("suppression by construction", "by construction")


def _comparison(path: Path) -> dict[str, Any]:
    """What `--out` wrote earlier.

    Raises:
        RunError: it isn't there, or is something else.
    """
    from ..errors import RunError
    from ..runs import Malformed, conforms, parse_json

    advice = "Give a file that bench forget --out wrote."
    try:
        report = parse_json(path.read_bytes())
    except (OSError, Malformed) as error:
        raise RunError(f"{path} can't be read: {error}. {advice}") from None
    parts = {"bed": str, "rule": str, "entries": list[dict[str, Any]]}
    if not isinstance(report, dict) or not all(conforms(report.get(name), hint) for name, hint in parts.items()):
        raise RunError(f"{path} holds no comparison of methods on a bed. {advice}")
    if not all(conforms(entry.get("contender"), str) for entry in report["entries"]):
        raise RunError(f"{path} has an entry without a contender's name. {advice}")
    return report


def cache(
    model: str, base: str | None, lengths: list[int] | None, out: Path | None, json: bool, setting: dict[str, Any]
) -> None:
    """Caches of keys and values in fewer bytes, beside the full one."""
    import torch

    from ..bench.caches import LENGTHS, run_bench
    from ..bench.caches_report import HEAD, cells
    from ..models import load
    from ..runs import write_json

    chosen = LENGTHS if lengths is None else {length: LENGTHS.get(length, 4) for length in sorted(set(lengths))}

    def keep(rows: list[dict[str, Any]]) -> None:
        progress_console().print(label(f"{rows[-1]['cache']}, {rows[-1]['tokens']:,} tokens: done", "dim"))
        if out is not None:
            write_json(out, {"rows": rows, "threads": torch.get_num_threads(), "model": model, **setting})

    rows = run_bench(load(model, base=base), chosen, after=keep)
    if json:
        print_json(rows)
        return
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        console().print(f"{tokens:,} tokens")
        console().print(plain_table(list(HEAD), cells(rows, tokens)))
    for refused in dict.fromkeys(row["refused"] for row in rows if "refused" in row):
        console().print(label(refused, "dim"))
