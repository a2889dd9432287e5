"""Tables of the documentation, from the catalogue and the stored results."""

from __future__ import annotations

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from ... import catalog
from ...reproduce import freshness
from .compared import forget
from .decoded import decode, decode_sampled, decode_short
from .stored import observed, stored_result, unbroken
from .sweeps import sweep, sweep_ranks

if TYPE_CHECKING:
    from ...audit.base import Headline
    from ...catalog.records import MethodRecord, PlanRecord


def fill(text: str) -> str:
    """The text with every `<!-- table: name -->` ... `<!-- end -->` block written anew."""
    for name, make in TABLES.items():
        start, end = f"<!-- table: {name} -->", "<!-- end -->"
        if start in text:
            before, after = text.split(start, 1)
            text = f"{before}{start}\n{make()}\n{end}{after.split(end, 1)[1]}"
    return text


def measured() -> str:
    """Systems that are done, with what was measured; for the page beside theirs."""
    lines, shown = ["| system | paper's claim | verdict here | measured here |", "|---|---|---|---|"], []
    for system in catalog.systems().values():
        if system.status == "done" and (result := system.result):
            verdict = freshness.marked(system.slug, f"**{result['verdict']}**")
            cells = (f"[`{system.slug}`]({system.slug}.md) {system.title}", system.claim, verdict, result["headline"])
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
            shown.append(system.slug)
    return "\n".join([*lines, *_foot(shown)])


def verdicts() -> str:
    """How many systems were measured again, and what came out, in one line."""
    measured_again = {slug: system.verdict for slug, system in catalog.systems().items() if system.verdict}
    counts = Counter(measured_again.values())
    verdict_counts = ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common())
    line = f"{len(measured_again)} of {len(catalog.systems())} measured again: {verdict_counts}."
    old = sum(slug in freshness.stale() for slug in measured_again)
    return f"{line}\n{old} of these were measured with earlier code, and are to be measured once more." if old else line


def demo_short() -> str:
    """The demo's figures that a reader asks for first, beside what they should be and what the second best came to."""
    record = stored_result("demo")
    if record is None:
        return "not measured yet"
    before, after = _demo_figures(record, "before"), _demo_figures(record, "after")
    second = stored_result("demo-npo")
    beside = {} if second is None else _demo_figures(second, "after")
    head = [freshness.marked(freshness.DEMO, when) for when in ("before", "after")]
    lines = [f"| figure | {' | '.join(head)} | aim | `npo` alone |", "|---|---|---|---|---|"]
    missed = 0
    for name, (words, aim) in DEMO.items():
        bound = ""
        if aim is not None:
            sign, value = aim
            value *= before[name] if name == PARAPHRASES else 1
            missed += after[name] > value if sign == "≤" else after[name] < value
            bound = f"{sign} {value:.3f}"
        figures = [f"{of[name]:.3f}" if name in of else "" for of in (before, after, beside)]
        lines.append(f"| {words} | {figures[0]} | {figures[1]} | {bound} | {figures[2]} |")
    told = (
        f"{missed} of {sum(aim is not None for _, aim in DEMO.values())} aims are missed."
        if missed
        else "Every aim is met."
    )
    lines += ["", f"{told} All figures: [benchmarks](docs/benchmarks.md#the-demo)."]
    return "\n".join([*lines, *_foot([freshness.DEMO])])


PARAPHRASES = "forget_paraphrase_probability"  # whose aim is a share of the figure before
RELEARNED, MINUTES = "relearned", "minutes"
# Figures of the demo by name: in words, and what is aimed at.
DEMO: dict[str, tuple[str, tuple[Literal["≤", "≥"], float] | None]] = {
    "forget_probability": ("probability of the forgotten answers", None),
    PARAPHRASES: ("the same, asked in other words", ("≤", 0.1)),
    "neighbours_rouge": ("neighbouring facts, never trained on (ROUGE-L)", ("≥", 0.95)),
    "general_rouge": ("general knowledge, never trained on (ROUGE-L)", ("≥", 0.95)),
    RELEARNED: ("probability after 6 steps of relearning on the other half", ("≤", 0.15)),
    MINUTES: ("minutes on two cores", ("≤", 6.0)),
}


def _demo_figures(record: Mapping[str, Any], role: str) -> dict[str, float]:
    figures = {name: values[role] for name, values in record["figures"].items()}
    figures[RELEARNED] = record["attacks"][0]["curves"][role][-1]["unseen"]
    return figures | ({} if role == "before" else {MINUTES: sum(record["seconds"].values()) / 60})


def _demo_head() -> list[str]:
    heads = ("figure", *(freshness.marked(freshness.DEMO, when) for when in ("before", "after")))
    return [f"| {' | '.join(heads)} |", "|---|---|---|"]


def _foot(slugs: Iterable[str]) -> list[str]:
    """What stands below a table that holds stored results."""
    foot = freshness.footnote(slugs)
    return ["", foot] if foot else []


def planned() -> str:
    """Systems still to come, by family."""
    families: dict[str, list[str]] = {}
    for system in catalog.systems().values():
        if system.status == "planned":
            families.setdefault(system.family, []).append(f"`{system.slug}`")
    return "\n".join(f"- {family}: {', '.join(slugs)}" for family, slugs in families.items())


def methods() -> str:
    """The table that helps choose a method."""
    lines = [
        "| method | of | kind | intent | observed | needs | guarantee | cost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    records: list[MethodRecord | PlanRecord] = [*catalog.METHOD.own().values(), *catalog.PLAN.own().values()]
    for m in records:
        of = " and ".join(m.forgets)
        seen = next(observed(m.slug), {"verdict": ""})["verdict"]
        cells = (f"`{m.slug}` {m.title}", of, m.kind, m.intent, seen, ", ".join(m.needs), m.guarantee, m.cost)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def strategies() -> str:
    """The ways to decode."""
    lines = ["| strategy | sampled text | needs | runs on |", "|---|---|---|---|"]
    exact = {"identical": "identical at the same seed, one text at a time", "distribution": "equal in distribution"}
    from ...decode import LlamaCppRuntime

    for s in catalog.STRATEGY.own().values():
        everywhere = s.load().needs <= LlamaCppRuntime.provides
        runtimes = "transformers, llama.cpp" if everywhere else "transformers"
        cells = (f"`{s.slug}` {s.title}", exact[s.exact], ", ".join(s.needs) or "nothing", runtimes)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def parts() -> str:
    """The parts of the denoising loop, by the field they fill."""
    lines = ["| part | fills | does | from |", "|---|---|---|---|"]
    from ...diffusion import Sampler

    order = [field.name for field in dataclasses.fields(Sampler)]
    for p in sorted(catalog.PART.own().values(), key=lambda part: order.index(part.kind)):
        lines.append("| " + " | ".join(_cell(cell) for cell in (f"`{p.slug}`", p.kind, p.does, p.paper)) + " |")
    return "\n".join(lines)


def suites() -> str:
    """The audit's suites, and what each looks at first."""
    lines = ["| suite | for | what it measures | gone by | kept by |", "|---|---|---|---|---|"]
    for record in catalog.SUITE.own().values():
        suite = record.load()
        if record.slug == suite.name:
            headlines = [_headline(one) for one in (suite.gone, suite.kept)]
            cells = (f"`{record.slug}`", suite.of, suite.about, *headlines)
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _headline(headline: Headline | None) -> str:
    """The metric that a suite's summary speaks of, and what stands in for it."""
    return "no headline" if headline is None else " or ".join(f"`{name}`" for name in headline.metric.split("|"))


def attacks() -> str:
    """The audit's attacks."""
    lines = ["| attack | what it does |", "|---|---|"]
    for record in catalog.ATTACK.own().values():
        lines.append(f"| `{record.slug}` | {_cell(record.load()().about)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def bench() -> str:
    """The stored step benchmark."""
    rows = stored_result("unlearn-step")
    if rows is None:
        return "not measured yet"
    lines = [
        "| method | rows | ours, s | peer, s | ratio | middle half | peak memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows["cases"]:
        low, high = row["middle_half"]
        figures = f"{row['ours_s']:.2f} | {row['peer_s']:.2f} | **{row['ratio']:.2f}** | {low:.2f} to {high:.2f}"
        memory = f"{row['ours_mib']:.0f} against {row['peer_mib']:.0f}" if "ours_mib" in row else "not measured"
        lines.append(f"| {row['method']} | {row['rows']} | {figures} | {memory} |")
    lines.append("")
    lines.append(f"Batch {rows['cases'][0]['batch']}, {rows['cases'][0]['pairs']} pairs, {rows['machine']['cpu']}.")
    return "\n".join(lines)


def prompt() -> str:
    """The stored benchmark of reading prompts."""
    stored = stored_result("prompt")
    if stored is None:
        return "not measured yet"
    lines = ["| tokens | ours, s | transformers, s | ratio | 95 % interval |", "|---|---|---|---|---|"]
    for row in stored["lengths"]:
        figures = f"{row['ours_s']:.3f} | {row['peer_s']:.3f} | **{row['ratio']:.2f}**"
        lines.append(f"| {row['tokens']:,} | {figures} | {row['ratio_low']:.2f} to {row['ratio_high']:.2f} |")
    foot = f"{stored['lengths'][0]['pairs']} pairs, {stored['threads']} threads, {stored['machine']['cpu']}."
    return "\n".join([*lines, "", foot])


def cache() -> str:
    """The stored comparison of caches, a table a length."""
    stored = stored_result("cache")
    if stored is None:
        return "not measured yet"
    from ...bench.caches_report import HEAD, cells

    lines = []
    for tokens in dict.fromkeys(row["tokens"] for row in stored["rows"]):
        lines += [f"**{tokens:,} tokens**", "", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        lines += ["| " + " | ".join(row) + " |" for row in cells(stored["rows"], tokens)] + [""]
    peers = sorted({row["peer"] for row in stored["rows"] if row["peer"]} - {"transformers"})
    foot = f"{stored['model']}, {stored['threads']} threads, {stored['machine']['cpu']}, commit {stored['commit'][:7]}."
    return "\n".join(
        [*map(unbroken, lines), f"Peers: transformers {stored['versions']['transformers']}, {', '.join(peers)}. {foot}"]
    )


def step() -> str:
    """The stored costs of a decoding step: a table a prompt at the most threads, its parts, and what was promised."""
    stored = stored_result("step")
    if stored is None:
        return "not measured yet"
    from ...bench import steps_report as report

    rows, lines = stored["rows"], list[str]()
    most = max(row["threads"] for row in rows)
    shortest = min(row["prompt"] for row in rows)
    for threads, prompt in report.groups(rows):
        if threads == most or prompt == shortest:
            lines += [f"**{threads} thread{'s' * (threads > 1)}, a prompt of {prompt:,} tokens**", ""]
            lines += [*_table(report.head(rows), report.step_cells(rows, threads, prompt)), ""]
    middle = sorted({row["prompt"] for row in rows})[len({row["prompt"] for row in rows}) // 2]
    for size in (1, 8):
        first, *others = report.part_cells(rows, most, middle, size)
        lines += [f"Parts of a step behind {middle:,} tokens, {most} threads:", "", *_table(first, others), ""]
    promised = [
        [what, f"{figure:.2f}", f"{bound:g}", "" if floor is None else f"{floor:.2f}"]
        for what, figure, bound, floor in report.checks(rows)
    ]
    lines += _table(["promised", "figure", "at most", "of the floors"], promised)
    return "\n".join([*map(unbroken, lines), "", _step_foot(stored)])


def step_short() -> str:
    """The stored costs of a decoding step behind the shortest prompt, at the most threads."""
    stored = stored_result("step")
    if stored is None:
        return "not measured yet"
    from ...bench import steps_report as report

    rows = stored["rows"]
    threads, prompt = max(row["threads"] for row in rows), min(row["prompt"] for row in rows)
    lines = _table(report.head(rows), report.step_cells(rows, threads, prompt))
    return "\n".join(
        [*map(unbroken, lines), "", f"{threads} threads, a prompt of {prompt:,} tokens; {_step_foot(stored)}"]
    )


def _step_foot(stored: Mapping[str, Any]) -> str:
    bandwidth = max(row["bandwidth"] for row in stored["rows"]) / 1e9
    return f"{stored['model']}, reads of {bandwidth:.0f} GB a second at best, {stored['machine']['cpu']}, commit {stored['commit'][:7]}."


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = ["| " + " | ".join(row) + " |" for row in (heads, *body)]
    return [rows[0], "|" + "---|" * len(heads), *rows[1:]]


def demo() -> str:
    """The stored demo."""
    stored = stored_result("demo")
    if stored is None:
        return "not measured yet"
    lines = _demo_head()
    for name, values in stored["figures"].items():
        lines.append(f"| {name.replace('_', ' ')} | {values['before']:.3f} | {values['after']:.3f} |")
    times = ", ".join(f"{value:.0f} s of {part}" for part, value in stored["seconds"].items())
    curve = stored["attacks"][0]["curves"]["after"]
    recovered = f"{curve[0]['unseen']:.3f} to {curve[-1]['unseen']:.3f}"
    lines += [
        "",
        f"Training ended: {stored['stopped']}; {times}, on {stored['machine']['cores']} cores. ROUGE-L recall is against the "
        f"model's own answers before. Relearning: {curve[-1]['step']} steps on half of the forgotten rows bring the other half's "
        f"probability from {recovered}, so traces remain.",
        *_foot([freshness.DEMO]),
    ]
    return "\n".join(lines)


def constants() -> str:
    """The page of published constants, each with its source and where it stands."""
    text = files("unwrite").joinpath("reproduce", "constants.toml").read_text(encoding="utf-8")
    lines = [
        "# Published constants",
        "",
        "What a paper or its code sets, and where it stands here. Made from `src/unwrite/reproduce/constants.toml`; a test",
        "reads every one from the code. What we set otherwise, and why, is in [corrections](corrections.md).",
    ]
    for group in tomllib.loads(text)["group"]:
        lines += ["", f"## {group['name']}", "", f"Source: {group['source']}.", ""]
        lines += ["| constant | value | in our code |", "|---|---|---|"]
        lines += [f"| {one['name']} | {one['value']} | `{one['where']}` |" for one in group["constants"]]
    return "\n".join(lines) + "\n"


def diffusion() -> str:
    """The stored comparison of samplers of diffusion language models."""
    stored = stored_result("diffusion")
    if stored is None:
        return "not measured yet"
    from ...bench.diffusion_report import table

    foot = f"{stored['prompts']} prompts, {stored['machine']['cpu']}, commit {stored['commit'][:7]}."
    return "\n".join([*map(unbroken, table(stored["rows"])), "", foot])


TABLES = {
    "attacks": attacks,
    "bench": bench,
    "cache": cache,
    "prompt": prompt,
    "decode": decode,
    "decode-sampled": decode_sampled,
    "decode-short": decode_short,
    "demo": demo,
    "demo-short": demo_short,
    "diffusion": diffusion,
    "forget": forget,
    "measured": measured,
    "planned": planned,
    "methods": methods,
    "parts": parts,
    "strategies": strategies,
    "suites": suites,
    "step": step,
    "step-short": step_short,
    "sweep": sweep,
    "sweep-ranks": sweep_ranks,
    "verdicts": verdicts,
}
