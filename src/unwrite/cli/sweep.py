"""unwrite sweep: methods on beds of texts or images over seeds, as one table a bed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MethodError, naming, unknown
from ..runs import progress
from .fields import build, parse
from .output import console, print_json, progress_console, quiet_libraries, write

if TYPE_CHECKING:
    from ..bench.supreme import SupremeMethod
    from ..bench.sweep_kinds import Contender

SUPREME = "supreme:"  # before a function of supreme-unlearning
TYPES: dict[str, type] = {"epochs": float, "lr": float, "batch_size": int}  # of settings that are of training
_VALUE = re.compile(r"[-+.\d][^:=]*")  # goes on with the value before: decay=3,5,9


def sweep(
    *,
    methods: str,
    beds: str,
    out: Path,
    seeds: int = 3,
    suites: str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    markdown: bool = False,
    json: bool = False,
    seconds: bool = False,
) -> None:
    """Run methods on beds over seeds, and compare them with the model before and with retraining.

    Every trial is kept as soon as it is done: stopped or killed, the same command goes on.

    Args:
        methods: separated by commas, each with settings where it needs them: scrub,ssd:alpha=5,fine-tune:epochs=2,lr=0.01. A
            setting is a field of the method, or epochs, lr or batch_size. vision: the twelve of unwrite bench vision, with the
            settings they have there. supreme:scrub, or supreme:scrub:sgda_epochs=5,msteps=2: the same method of the package
            supreme-unlearning. peers: ours and theirs of every method that both have.
        beds: separated by commas. Images: digits/class, digits/random, digits/range, digits/top, glyphs/class,
            glyphs/random, glyphs/identity, glyphs/persons; fashion/class, fashion/random, real pictures, and emoji/class,
            emoji/identity, drawn hands (unwrite data add fetches both); digits/poisoned, digits/confused, glyphs/poisoned,
            glyphs/confused, of which the share behind an @ is identified (digits/poisoned@0.5; 0.1 without);
            digits/worst-case, glyphs/worst-case, as bilevel or what stands behind an @ selects
            (digits/worst-case@low-loss). Texts: authors/small (minutes), authors/smollm2 (hours).
        out: JSON lines, a row a trial. It may grow: more methods, beds and seeds are added to those it has.
        seeds: how many.
        suites: audits whose figures are the columns, separated by commas; without, tofu for beds of texts and, for images,
            what the bed names. representation ranks methods by answers and by features.
        workers: processes of one thread each; as many as there are cores.
        ray: address of a ray cluster to run on, or local to start one here.
        markdown: print the table as Markdown.
        json: print it as JSON.
        seconds: also show how long unlearning took; without it two runs print the same.
    """
    quiet_libraries()
    from ..beds.named import bed_named
    from ..bench.sweep import sweep as run
    from ..bench.sweep import trials_of
    from ..bench.sweep_kinds import sweep_kind
    from ..bench.sweep_table import markdown as lines_of
    from ..bench.sweep_table import summary, tables

    if markdown and json:
        raise MethodError("--markdown and --json are two forms of one table. Choose one.")
    with naming("settings"):
        contenders = contenders_of(methods)
    chosen = [bed_named(name) for name in _names(beds)]
    if suites is not None:
        audits = tuple(_names(suites))
        chosen = [sweep_kind(bed).audited(bed, audits) for bed in chosen]
    with naming("settings"):
        trials = trials_of(contenders, chosen, range(seeds))
    shown = progress_console()
    try:
        if shown.is_terminal:
            with progress(None, "sweep") as bar:
                rows = run(trials, out, workers, bar.say, ray)
        else:
            rows = run(trials, out, workers, lambda line: shown.print(line, soft_wrap=True), ray)
    except KeyboardInterrupt:
        shown.print(f"What is done is in {out}; the same command goes on from there.", soft_wrap=True)
        raise
    if json:
        print_json(summary(rows, seconds))
    elif markdown:
        write("".join(f"{line}\n" for line in lines_of(rows, seconds)))
    else:
        console().print(*tables(rows, seconds), sep="\n")


def contenders_of(text: str) -> list[Contender]:
    """`Contender`s from "scrub,ssd:alpha=5,fine-tune:epochs=2,lr=0.01".

    "vision" stands for the twelve of `unwrite bench vision`, "peers" for the pairs of `bench.supreme`. What has a "=" and no ":" before
    it belongs to the method before it, as does a number: "scrub:decay=3,5,9".

    Raises:
        MethodError: an unknown method or setting, a value that can't be read or lies outside its range.
        MissingExtra: a method of another package that isn't installed.
    """
    texts: list[str] = []
    for part in _names(text):
        head, equals, _ = part.partition("=")
        if texts and ":" in texts[-1] and (_VALUE.fullmatch(part) or (equals and ":" not in head)):
            texts[-1] += f",{part}"
        else:
            texts.append(part)
    return [one for text in texts for one in _group(text)]


def _group(text: str) -> Sequence[Contender]:
    """Those that a word stands for, or the one that a text describes."""
    if text == "vision":
        from ..bench.vision import CONTENDERS

        return CONTENDERS
    if text == "peers":
        from ..bench.supreme import pairs

        return pairs()
    return [contender_of(text)]


def contender_of(text: str) -> Contender:
    """One `Contender`; see `contenders_of`."""
    from ..bench.sweep_kinds import TRAINING, Contender

    prefix = SUPREME if text.startswith(SUPREME) else ""
    slug, colon, words = text.removeprefix(prefix).partition(":")
    settings = _settings(words, text) if colon else {}
    label = ",".join(f"{name}={value}" for name, value in settings.items())
    name = f"{prefix}{slug}:{label}" if label else f"{prefix}{slug}"
    if prefix:
        return Contender(name, _supreme(slug, settings))
    fields = {name: value for name, value in settings.items() if name not in TRAINING}
    args = {TRAINING[name]: parse(name, settings[name], TYPES[name]) for name in TRAINING if name in settings}
    return Contender(name, build(slug, fields), args)


def _settings(words: str, text: str) -> dict[str, str]:
    """{name: value} of "alpha=5,decay=3,5,9"; `text` is where it stands, for messages."""
    settings: dict[str, str] = {}
    for part in words.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        name = name.replace("-", "_")
        if not equals and settings:
            settings[next(reversed(settings))] += f",{part.strip()}"
        elif not equals or name in settings:
            raise MethodError(f"{part!r} in {text!r} is no new setting. Write METHOD:name=value,name=value.")
        else:
            settings[name] = value
    return settings


def _supreme(function: str, settings: Mapping[str, str]) -> SupremeMethod:
    """A function of supreme-unlearning with its settings."""
    from ..bench.supreme import SupremeMethod, settings_of

    hints = settings_of(function)
    if odd := next((name for name in settings if name not in hints), None):
        raise MethodError(unknown(f"setting of {SUPREME}{function}", odd, sorted(hints)))
    options = {name: parse(name, value, hints[name]) for name, value in settings.items()}
    return SupremeMethod(function=function, batch_size=options.pop("batch_size", None), options=options)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
