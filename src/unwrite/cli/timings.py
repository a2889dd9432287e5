"""What `unwrite bench unlearn-step`, `decode`, `prompt`, `step`, `diffusion` and `importance` run and show: seconds beside a peer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runs import parse_json, progress
from .listing import plain_table
from .output import console, label, print_json, progress_console

HOURS = 12  # of `bench decode --full`


def unlearn_step(
    model: str, base: str | None, batch: int, pairs: int, out: Path | None, json: bool, setting: dict[str, Any]
) -> None:
    """An optimiser step of forgetting."""
    from ..bench.unlearn_step import run_bench
    from ..runs import write_json

    def keep(cases: list[dict[str, Any]]) -> None:
        progress_console().print(label(f"{len(cases)} of 4 cases", "dim"))
        if out is not None:
            write_json(out, {"cases": cases, "complete": len(cases) == 4, **setting})

    rows = run_bench(model, batch, pairs, stopped(out, setting, batch, pairs), keep, base)
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


def prompt(model: str, base: str | None, pairs: int, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
    """The reading of prompts."""
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


def importance(pairs: int, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
    """Every weight's importance."""
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


def stopped(out: Path | None, setting: dict[str, Any], batch: int, pairs: int) -> list[dict[str, Any]]:
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


def decode(
    model: str, full: bool, minutes: int, runtime: str | None, out: Path | None, json: bool, setting: dict[str, Any]
) -> None:
    """Every strategy of decoding."""
    import torch

    from ..beds.draft_files import bench_files, has_gguf
    from ..beds.drafts import made_of
    from ..beds.prompts import prompts_hash
    from ..bench.contenders import FEW, LLAMA_CPP, RUNTIMES, run
    from ..bench.decode import TOKENS
    from ..errors import MethodError, unknown
    from ..runs import write_json

    if runtime not in (None, *RUNTIMES):
        raise MethodError(unknown("runtime", runtime, RUNTIMES))
    if runtime == LLAMA_CPP and not has_gguf(model):
        raise MethodError(
            f"{model} can't be measured on llama.cpp here. Install 'unwrite[llamacpp]', and name a model that ships as GGUF."
        )
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
        report = run(
            files,
            60 * HOURS if full else minutes,
            40 if full else FEW,
            shown.say,
            keep,
            (runtime,) if runtime else RUNTIMES,
        )
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


def diffusion(bed: Path | None, prompts: int, seed: int, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
    """Samplers of a mask predictor."""
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


def step(model: str, base: str | None, repeats: int, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
    """A decoding step, by who computes it."""
    from ..bench.steps import run_bench
    from ..bench.steps_report import checks, groups, head, step_cells
    from ..models import load
    from ..runs import write_json

    def keep(rows: list[dict[str, Any]]) -> None:
        last = rows[-1]
        progress_console().print(label(f"{last['threads']} threads, prompt of {last['prompt']:,} tokens: done", "dim"))
        if out is not None:
            write_json(out, {"rows": rows, "model": model, "repeats": repeats, **setting})

    rows = run_bench(load(model, base=base), repeats=repeats, after=keep)
    if json:
        print_json(rows)
        return
    for threads, prompt in groups(rows):
        console().print(f"threads: {threads}, prompt: {prompt:,} tokens")
        console().print(plain_table(head(rows), step_cells(rows, threads, prompt)))
    for promise, figure, bound, floor in checks(rows):
        machine = "" if floor is None else f"; the floors: {floor:.2f}"
        console().print(label(f"{promise}: {figure:.2f}, at most {bound:g} wanted{machine}", "dim"))
