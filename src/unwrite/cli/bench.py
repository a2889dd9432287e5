"""unwrite bench: speed, as ratios against a named peer in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import catalog
from ..errors import MethodError
from ..runs import parse_json, progress
from .inputs import need_number
from .output import console, label, print_json, progress_console, quiet_libraries


def bench(
    what: str,
    *,
    model: str = "smollm2-135m",
    base: str | None = None,
    batch: int = 4,
    pairs: int = 9,
    full: bool = False,
    prompts: int = 2000,
    seed: int = 0,
    bed: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Time an optimiser step of forgetting, or decoding, against a named peer; compare samplers of diffusion models.

    Args:
        what: unlearn-step, against the same method as open-unlearning computes it; decode, every strategy against
            transformers and llama.cpp (where it is installed), in about 45 minutes; diffusion, every sampler's accuracy
            against its forwards on the test bed, and its speed on a model of real size; importance, every weight's importance
            against SSD's own loop, a loop over single rows, and vmap; vision, twelve methods that forget a class, a random
            tenth and a font of rendered characters, in about ten minutes.
        model: what to time it on.
        base: of unlearn-step on an adapter, the model it stands on, where its own file may not choose that.
        batch: of unlearn-step, forget rows a step.
        pairs: of unlearn-step and importance, paired repeats.
        full: of decode, repeat until no interval around 1 is wider than 0.06; hours.
        prompts: of diffusion, how many.
        seed: of diffusion and vision, what everything is drawn from.
        bed: of diffusion, folder of a test bed; the one that ships by default.
        out: also write the figures there, as JSON, as they come; a stopped unlearn-step or vision (JSON lines) goes on
            from it. diffusion writes a page (.html) and pictures (.svg, .png) beside it.
        overwrite: replace the figures in OUT, where they aren't a stopped run's.
        json: print JSON.
    """
    catalog.bench(what)
    from ..runs import need_free, versions
    from ..runs.provenance import commit, machine

    if base is not None and what != "unlearn-step":
        raise MethodError(f"--base is for bench unlearn-step, and {what} runs on no adapter. Leave it out.")
    for flag, value in (("--batch", batch), ("--pairs", pairs), ("--prompts", prompts)):
        need_number(flag, value, at_least=1)
    need_number("--seed", seed, at_least=0, below=2**32)
    quiet_libraries()
    setting = {"versions": versions(), "machine": machine(), "commit": commit()}
    if out is not None and what != "vision" and not (what == "unlearn-step" and _stopped(out, setting, batch, pairs)):
        also = [out.with_suffix(ending) for ending in (".html", ".svg", ".png")] if what == "diffusion" else []
        need_free(out, *also, overwrite=overwrite)
    if what == "decode":
        _decode(model, full, out, json, setting)
    elif what == "diffusion":
        _diffusion(bed, prompts, seed, out, json, setting)
    elif what == "importance":
        _importance(pairs, out, json, setting)
    elif what == "vision":
        _vision(seed, out, json)
    else:
        _unlearn_step(model, base, batch, pairs, out, json, setting)


def _unlearn_step(
    model: str, base: str | None, batch: int, pairs: int, out: Path | None, json: bool, setting: dict[str, Any]
) -> None:
    from ..bench.unlearn_step import run_bench
    from ..runs import write_json

    def keep(found: list[dict[str, Any]]) -> None:
        progress_console().print(label(f"{len(found)} of 4 cases", "dim"))
        if out is not None:
            write_json(out, {"cases": found, "complete": len(found) == 4, **setting})

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


def _importance(pairs: int, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
    from rich.table import Table

    from ..bench.importance import run_bench
    from ..runs import write_json

    def keep(found: list[dict[str, Any]]) -> None:
        progress_console().print(label(f"{len(found)} of 9 cases", "dim"))
        if out is not None:
            write_json(out, {"cases": found, **setting})

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


def _vision(seed: int, out: Path | None, json: bool) -> None:
    from tempfile import TemporaryDirectory

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


MINUTES, HOURS = 40, 12  # of the default run, with what is left for its last cell, and of --full


def _decode(model: str, full: bool, out: Path | None, json: bool, setting: dict[str, Any]) -> None:
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

    def keep(found: dict[str, Any]) -> None:
        if out is not None:
            write_json(out, {**found, **extra})

    with progress(None, "bench decode") as shown:
        found = run(files, 60 * HOURS if full else MINUTES, 40 if full else FEW, shown.say, keep)
    if json:
        print_json(found["rows"])
    else:
        _show(found["rows"])


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
        found = run(bed, prompts, seed, tell=shown.say)
    if out is not None:
        write_json(out, {**found, **setting})
        drawn = picture(found["rows"])
        write_text(out.with_suffix(".html"), html(found))
        write_text(out.with_suffix(".svg"), vl_convert.vegalite_to_svg(drawn))
        out.with_suffix(".png").write_bytes(vl_convert.vegalite_to_png(drawn, scale=2))
    if json:
        print_json(found["rows"])
    else:
        console().print(Markdown("\n".join(table(found["rows"])), hyperlinks=False))
