"""unwrite bench: speed, as ratios against a named peer in one run; a sub-command a benchmark, each with its own flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App

from .. import catalog
from ..errors import MethodError
from ..runs import parse_json, progress
from .inputs import need_number
from .listing import plain_table
from .output import console, label, print_json, progress_console, quiet_libraries

app = App(name="bench", help="Speed, as ratios against a named peer in one run.")


@app.default
def benches(what: str | None = None, *, json: bool = False) -> None:
    """List the benchmarks.

    Args:
        what: one of them.
        json: print JSON.
    """
    if what is not None:
        catalog.bench(what)  # refuses what is none, with the nearest name
    if json:
        print_json({bench.slug: bench.does for bench in catalog.benches().values()})
        return
    console().print(
        plain_table(["benchmark", "what it measures"], [[b.slug, b.does] for b in catalog.benches().values()])
    )


@app.command(name="unlearn-step")
def unlearn_step(
    *,
    model: str = "smollm2-135m",
    base: str | None = None,
    batch: int = 4,
    pairs: int = 9,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Time an optimiser step of forgetting against the same method as open-unlearning computes it.

    Args:
        model: what to time it on.
        base: of an adapter, the model it stands on, where its own file may not choose that.
        batch: forget rows a step.
        pairs: paired repeats.
        out: also write the figures there, as JSON, as they come; a stopped run goes on from it.
        overwrite: replace the figures in OUT, where they aren't a stopped run's.
        json: print JSON.
    """
    need_number("--batch", batch, at_least=1)
    need_number("--pairs", pairs, at_least=1)
    setting = _setting()
    if not _stopped(out, setting, batch, pairs):
        _need_free(out, overwrite)
    _unlearn_step(model, base, batch, pairs, out, json, setting)


@app.command
def decode(
    *,
    model: str = "smollm2-135m",
    full: bool = False,
    minutes: int = 40,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Time every strategy against transformers and llama.cpp (where it is installed), in about 45 minutes.

    Args:
        model: what to time it on; no adapter.
        full: repeat until no interval around 1 is wider than 0.06; hours.
        minutes: after which nothing is measured again; what is measured once takes about half of the default.
        out: also write the figures there, as JSON, as they come.
        overwrite: replace the figures in OUT.
        json: print JSON.
    """
    need_number("--minutes", minutes, at_least=1)
    setting = _setting()
    _need_free(out, overwrite)
    _decode(model, full, minutes, out, json, setting)


@app.command
def prompt(
    *,
    model: str = "smollm2-135m",
    base: str | None = None,
    pairs: int = 9,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Time the reading of prompts of 16 to 8,000 tokens against transformers, in about 15 minutes.

    Args:
        model: what to time it on.
        base: of an adapter, the model it stands on, where its own file may not choose that.
        pairs: paired repeats a length.
        out: also write the figures there, as JSON, as they come.
        overwrite: replace the figures in OUT.
        json: print JSON.
    """
    need_number("--pairs", pairs, at_least=1)
    setting = _setting()
    _need_free(out, overwrite)
    _prompt(model, base, pairs, out, json, setting)


@app.command
def step(
    *,
    model: str = "smollm2-135m",
    base: str | None = None,
    repeats: int = 11,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Time a decoding step of 1 to 32 rows behind prompts of 64 to 2,048 tokens, by who computes it, in about ten minutes.

    Args:
        model: what to time it on.
        base: of an adapter, the model it stands on, where its own file may not choose that.
        repeats: of a step.
        out: also write the figures there, as JSON, as they come.
        overwrite: replace the figures in OUT.
        json: print JSON.
    """
    need_number("--repeats", repeats, at_least=1)
    setting = _setting()
    _need_free(out, overwrite)
    from .comparisons import step as time_steps

    time_steps(model, base, repeats, out, json, setting)


@app.command
def cache(
    *,
    model: str = "smollm2-135m",
    base: str | None = None,
    lengths: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Compare caches of keys and values: bytes, perplexity, needles and seconds a token, in about an hour with every peer.

    Args:
        model: what to measure on.
        base: of an adapter, the model it stands on, where its own file may not choose that.
        lengths: tokens of a prompt, separated by commas; 256,1024,4096 unless given.
        out: also write the figures there, as JSON, as they come.
        overwrite: replace the figures in OUT.
        json: print JSON.
    """
    chosen = None if lengths is None else [_whole("--lengths", part) for part in lengths.split(",")]
    setting = _setting()
    _need_free(out, overwrite)
    from .comparisons import cache as compare_caches

    compare_caches(model, base, chosen, out, json, setting)


@app.command
def diffusion(
    *,
    bed: Path | None = None,
    prompts: int = 2000,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Compare samplers: accuracy against forwards on the test bed, and speed on a model of real size.

    Args:
        bed: folder of a test bed; the one that ships by default.
        prompts: how many.
        seed: what everything is drawn from.
        out: also write the figures there, as JSON, with a page (.html) and pictures (.svg, .png) beside it.
        overwrite: replace the figures in OUT.
        json: print JSON.
    """
    need_number("--prompts", prompts, at_least=1)
    _need_seed(seed)
    setting = _setting()
    _need_free(out, overwrite, ".html", ".svg", ".png")
    _diffusion(bed, prompts, seed, out, json, setting)


@app.command
def importance(*, pairs: int = 9, out: Path | None = None, overwrite: bool = False, json: bool = False) -> None:
    """Time every weight's importance against SSD's own loop, a loop over single rows, and vmap.

    Args:
        pairs: paired repeats.
        out: also write the figures there, as JSON, as they come.
        overwrite: replace the figures in OUT.
        json: print JSON.
    """
    need_number("--pairs", pairs, at_least=1)
    setting = _setting()
    _need_free(out, overwrite)
    _importance(pairs, out, json, setting)


@app.command(name="vision")
def compare_vision(*, seed: int = 0, out: Path | None = None, json: bool = False) -> None:
    """Compare twelve methods that forget a class, a random tenth and a font of rendered characters, in about ten minutes.

    Args:
        seed: what everything is drawn from.
        out: JSON lines, one a trial; a stopped run goes on from it.
        json: print JSON.
    """
    from .comparisons import vision

    _need_seed(seed)
    quiet_libraries()
    vision(seed, out, json)


@app.command(name="forget")
def compare_forget(
    *,
    bed: str = "authors/small",
    seeds: int = 3,
    methods: str | None = None,
    workers: int = 1,
    settings: Path | None = None,
    extend: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Compare every method that forgets texts: settings chosen on some authors, figures on others, in about 90 minutes.

    Args:
        bed: authors/small, or authors/smollm2, a real model, for which it takes many hours.
        seeds: how many, of unlearning.
        methods: of these alone, separated by commas.
        workers: processes of one thread each.
        settings: figures of another bed, as --out wrote them, whose chosen settings are taken over: rates are multiples of a bed's own.
            Without, they are chosen on this bed's other authors.
        extend: figures of this bed and these seeds, as --out wrote them, that methods are added to; those that aren't in it unless
            named. The references are measured again, and must come out as they did.
        out: also write the figures there, as JSON. A row a trial is kept beside it (.jsonl), from which a stopped run goes on.
        overwrite: replace the figures in OUT.
        json: print JSON.
    """
    from .comparisons import forget

    need_number("--workers", workers, at_least=1)
    setting = _setting()
    _need_free(out, overwrite)
    forget(bed, seeds, methods, workers, settings, extend, out, json, setting)


def _need_seed(seed: int) -> None:
    need_number("--seed", seed, at_least=0, below=2**32)


def _setting() -> dict[str, Any]:
    """Where and with what the figures are measured."""
    from ..runs import versions
    from ..runs.provenance import commit, machine

    quiet_libraries()
    return {"versions": versions(), "machine": machine(), "commit": commit()}


def _need_free(out: Path | None, overwrite: bool, *endings: str) -> None:
    """Refuses to replace what is there, before anything is measured."""
    from ..runs import need_free

    if out is not None:
        need_free(out, *map(out.with_suffix, endings), overwrite=overwrite)


def _unlearn_step(
    model: str, base: str | None, batch: int, pairs: int, out: Path | None, json: bool, setting: dict[str, Any]
) -> None:
    from ..bench.unlearn_step import run_bench
    from ..runs import write_json

    def keep(cases: list[dict[str, Any]]) -> None:
        progress_console().print(label(f"{len(cases)} of 4 cases", "dim"))
        if out is not None:
            write_json(out, {"cases": cases, "complete": len(cases) == 4, **setting})

    rows = run_bench(model, batch, pairs, _stopped(out, setting, batch, pairs), keep, base)
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(
        *("method", "rows", "ours, s", "peer, s", "ratio", "middle half"),
        *("peak MiB, ours / peer", "reference once, s"),
        header_style="bold",
    )
    for row in rows:
        low, high = row["middle_half"]
        figures = (f"{row['ours_s']:.2f}", f"{row['peer_s']:.2f}", f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}")
        memory = f"{row['ours_mib']:.0f} / {row['peer_mib']:.0f}"
        table.add_row(row["method"], row["rows"], *figures, memory, f"{row['reference_once_s']:.2f}")
    console().print(table)


def _prompt(model: str, base: str | None, pairs: int, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
    import torch

    from ..bench.prompt import LENGTHS, run_bench
    from ..models import load
    from ..runs import write_json

    def keep(rows: list[dict[str, Any]]) -> None:
        progress_console().print(label(f"{len(rows)} of {len(LENGTHS)} lengths", "dim"))
        if out is not None:
            write_json(out, {"lengths": rows, "threads": torch.get_num_threads(), **setting})

    rows = run_bench(load(model, base=base), pairs=pairs, after=keep)
    if json:
        print_json(rows)
        return
    table = [
        [
            *(f"{row['tokens']:,}", f"{row['ours_s']:.3f}", f"{row['peer_s']:.3f}"),
            *(f"{row['ratio']:.2f}", f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"),
        ]
        for row in rows
    ]
    console().print(plain_table(["tokens", "ours, s", "transformers, s", "ratio", "95 % interval"], table))


def _whole(flag: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise MethodError(f"{flag} has {text!r}, which is no whole number. Write some, separated by commas.") from None
    need_number(flag, value, at_least=192)
    return value


def _importance(pairs: int, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
    from rich.table import Table

    from ..bench.importance import run_bench
    from ..runs import write_json

    def keep(cases: list[dict[str, Any]]) -> None:
        progress_console().print(label(f"{len(cases)} of 9 cases", "dim"))
        if out is not None:
            write_json(out, {"cases": cases, **setting})

    rows = run_bench(pairs=pairs, after=keep)
    if json:
        print_json(rows)
        return
    table = Table("model", "peer", "ours, s", "peer, s", "ratio", "middle half", header_style="bold")
    for row in rows:
        low, high = row["middle_half"]
        figures = (f"{row['ours_s']:.3f}", f"{row['peer_s']:.3f}", f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}")
        table.add_row(row["case"], row["peer"], *figures)
    console().print(table)


def _stopped(out: Path | None, setting: dict[str, Any], batch: int, pairs: int) -> list[dict[str, Any]]:
    """The cases of a run of the same setting that was stopped."""
    if out is None or not out.exists():
        return []
    try:
        stored = parse_json(out.read_bytes())
        same = all(stored.get(name) == value for name, value in setting.items())
        alike = all((case["batch"], case["pairs"]) == (batch, pairs) for case in stored["cases"])
    except (ValueError, LookupError, AttributeError, TypeError, OSError):
        return []  # no bench's: `need_free` says what becomes of it
    return list(stored["cases"]) if same and alike and not stored.get("complete", True) else []


HOURS = 12  # of --full


def _decode(model: str, full: bool, minutes: int, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
    import torch

    from ..beds.draft_files import bench_files
    from ..beds.drafts import made_of
    from ..beds.prompts import prompts_hash
    from ..bench.contenders import FEW, run
    from ..bench.decode import TOKENS
    from ..runs import write_json

    files = bench_files(model)
    extra = {
        "prompts": prompts_hash(),
        "tokens": TOKENS,
        "threads": torch.get_num_threads(),
        "draft": made_of(files.draft),
        **setting,
    }

    def keep(report: dict[str, Any]) -> None:
        if out is not None:
            write_json(out, {**report, **extra})

    with progress(None, "bench decode") as shown:
        report = run(files, 60 * HOURS if full else minutes, 40 if full else FEW, shown.say, keep)
    if json:
        print_json(report["rows"])
    else:
        _show(report["rows"])


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Group
    from rich.table import Table

    from ..beds.prompts import KINDS

    for runtime, temperature in dict.fromkeys((row["runtime"], row["temperature"]) for row in rows):
        table = Table("strategy", *KINDS, title=f"{runtime}, temperature {temperature:g}", header_style="bold")
        cells: dict[str, dict[str, Any]] = {}
        for row in rows:
            if (row["runtime"], row["temperature"]) == (runtime, temperature):
                ends = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
                cells.setdefault(row["strategy"], {})[row["kind"]] = Group(f"{row['ratio']:.2f}", label(ends, "dim"))
        for name, by_kind in cells.items():
            table.add_row(name, *(by_kind[kind] for kind in KINDS))
        console().print(table)


def _diffusion(
    bed: Path | None, prompts: int, seed: int, out: Path | None, json: bool, setting: dict[str, Any]
) -> None:
    import vl_convert
    from rich.markdown import Markdown

    from ..bench.diffusion import run
    from ..bench.diffusion_report import html, picture, table
    from ..runs import write_json, write_text

    with progress(None, "bench diffusion") as shown:
        report = run(bed, prompts, seed, tell=shown.say)
    if out is not None:
        write_json(out, {**report, **setting})
        chart = picture(report["rows"])
        write_text(out.with_suffix(".html"), html(report))
        write_text(out.with_suffix(".svg"), vl_convert.vegalite_to_svg(chart))
        out.with_suffix(".png").write_bytes(vl_convert.vegalite_to_png(chart, scale=2))
    if json:
        print_json(report["rows"])
    else:
        console().print(Markdown("\n".join(table(report["rows"])), hyperlinks=False))
