"""unwrite bench: speed, as ratios against a named peer in one run; a sub-command a benchmark, each with its own flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from .. import catalog
from ..errors import MethodError
from . import timings
from .inputs import need_number
from .listing import plain_table
from .output import console, print_json, quiet_libraries

PEERS = ("ctranslate2", "llama_cpp_python", "numba")  # what figures depend on beside the library's own packages

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
    if not timings.stopped(out, setting, batch, pairs):
        _need_free(out, overwrite)
    timings.unlearn_step(model, base, batch, pairs, out, json, setting)


@app.command
def decode(
    *,
    model: str = "smollm2-135m",
    full: bool = False,
    minutes: int = 40,
    runtime: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Time every strategy against transformers and llama.cpp (where it is installed), in about 45 minutes.

    Args:
        model: what to time it on; no adapter.
        full: repeat until no interval around 1 is wider than 0.06; hours.
        minutes: after which nothing is measured again; what is measured once takes about half of the default.
        runtime: transformers or llama.cpp alone; both, where llama.cpp is installed, unless given.
        out: also write the figures there, as JSON, as they come.
        overwrite: replace the figures in OUT.
        json: print JSON.
    """
    need_number("--minutes", minutes, at_least=1)
    setting = _setting()
    _need_free(out, overwrite)
    timings.decode(model, full, minutes, runtime, out, json, setting)


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
    timings.prompt(model, base, pairs, out, json, setting)


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
    timings.step(model, base, repeats, out, json, setting)


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
    timings.diffusion(bed, prompts, seed, out, json, setting)


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
    timings.importance(pairs, out, json, setting)


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
    from importlib.metadata import PackageNotFoundError, version

    from ..runs import versions
    from ..runs.provenance import commit, machine

    quiet_libraries()
    peers = {}
    for package in PEERS:
        try:
            peers[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions() | peers, "machine": machine(), "commit": commit()}


def _need_free(out: Path | None, overwrite: bool, *endings: str) -> None:
    """Refuses to replace what is there, before anything is measured."""
    from ..runs import need_free

    if out is not None:
        need_free(out, *map(out.with_suffix, endings), overwrite=overwrite)


def _whole(flag: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise MethodError(f"{flag} has {text!r}, which is no whole number. Write some, separated by commas.") from None
    need_number(flag, value, at_least=192)
    return value
