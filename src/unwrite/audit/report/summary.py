"""Three sentences a non-specialist understands: what was removed, what was kept, how sure we are.

A suite declares its headline metrics and which way is good (`Headline`); the sentences here name no metric. Where
rows are counted, they say how many of those that the model knew are gone or still there; where the retrained model is
the target, how far the figure is from it. How sure one may be is said by attacks, exhibits and the suite's own
functions, a clause each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch

from ...scoring.intervals import wilson
from ..base import Exhibit, Headline, Panel, Score, Suite
from .movement import forgotten, same_model
from .parts import Mark, Remark, Summary
from .report import Report
from .wording import words

__all__ = ["summarise"]

HALF = 0.5  # a row counts from half of the scale on: half of an answer's words, a label that is right
ORDER: tuple[Mark, ...] = ("", "good", "mixed", "unknown", "bad")  # of clauses the last one is that of the sentence


def summarise(report: Report, suite: Suite, exhibits: Iterable[Exhibit] = ()) -> Summary:
    """Reads the sentences off a report's scores, as its suite declares them.

    Args:
        exhibits: what was given beside models; each may add a clause.
    """
    gone, kept = _resolved(suite.gone, report, "forgotten"), _resolved(suite.kept, report, "kept")
    empty = Summary()
    removed = Remark(empty.removed, "unknown") if gone is None else _removed(report, gone)
    stayed = Remark(empty.kept, "unknown") if kept is None else _kept(report, kept)
    sure = _sure(report, suite, gone, exhibits)
    return Summary(removed.text, stayed.text, sure.text, removed.mark, stayed.mark, sure.mark)


def _resolved(headline: Headline | None, report: Report, panel: Panel) -> Headline | None:
    """The headline of a metric that was measured, where there is one among those it may be of."""
    if headline is None:
        return None
    first, *patterns = headline.metric.split("|")
    measured = [metric["name"] for metric in report.metrics if metric["panel"] == panel]
    others = (name for pattern in patterns for name in measured if fnmatch(name, pattern))
    return replace(headline, metric=first if first in measured else next(others, first))


def _known(score: Score | None, headline: Headline, usual: str) -> list[bool] | None:
    """Per row whether it counts as known, above half where the usual way is good; None where there are no rows."""
    bar = HALF * (headline.scale or 1.0)
    values = [] if score is None else score.per_example
    return [v is not None and (v >= bar) == (headline.better == usual) for v in values] or None


def _pair(report: Report, headline: Headline, usual: str) -> tuple[list[bool] | None, list[bool] | None]:
    """Per row whether it was known before, and is now."""
    before, after = (
        report.columns.get("before", {}).get(headline.metric),
        report.columns[report.main].get(headline.metric),
    )
    then, now = _known(before, headline, usual), _known(after, headline, usual)
    return (None if then is not None and now is not None and len(then) != len(now) else then), now


def _removed(report: Report, gone: Headline) -> Remark:
    if not gone.counts:
        return _towards_the_oracle(report, gone)
    then, now = _pair(report, gone, "lower")
    if now is None:
        return Remark(Summary().removed, "unknown")
    if then is None:
        left = sum(now)
        mark: Mark = "good" if left <= 0.1 * len(now) else "mixed" if left <= 0.5 * len(now) else "bad"
        return Remark(f"Removed: the model reproduces {left} of the {len(now)} {gone.noun} it was to forget.", mark)
    if not any(then):
        return Remark(f"Removed: nothing to remove; it knew none of the {len(then)} {gone.noun} before.", "unknown")
    lost = sum(a and not b for a, b in zip(then, now, strict=True))
    share = lost / sum(then)
    mark = "good" if share >= 0.9 else "mixed" if share >= 0.5 else "bad"
    came = sum(b and not a for a, b in zip(then, now, strict=True))
    extra = f" ({came} it didn't know before now appear)" if came else ""
    return Remark(
        f"Removed: {lost} of the {sum(then)} forget {gone.noun} it could reproduce before are gone{extra}.", mark
    )


def _towards_the_oracle(report: Report, gone: Headline) -> Remark:
    """Forgetting a few rows at random leaves them as right as any others: what counts is the retrained model."""
    now, oracle = report.value(gone.metric), report.value(gone.metric, "oracle")
    if now is None:
        return Remark(Summary().removed, "unknown")
    state, sentence = forgotten(report, gone), _figures(report, gone)
    if state == "nothing":
        same = same_model(report)
        why = "the weights are those of before" if same else "its answers are those of before"
        mark: Mark = "bad" if same or oracle is not None else "unknown"
        return Remark(f"Removed: nothing; {why}. {_capital(sentence)}.", mark)
    if state == "no room":
        told = "its answers can't tell; the retrained model gives those of before"
        return Remark(f"Removed: {told}. {_capital(sentence)}.", "unknown")
    if oracle is None:
        return Remark(f"Removed: {sentence}; without a retrained model beside it, that says little.", "unknown")
    mark = _distance_mark(report, gone, now, oracle)
    if state == "unclear":
        rows = len(report.columns[report.main][gone.metric].per_example)
        told = f"Removed: {sentence}; on {rows} rows the change may be chance."
        return Remark(told, "mixed" if mark == "good" else mark)
    return Remark(f"Removed: {sentence}.", mark)


def _says(headline: Headline, value: str, rows: str) -> str:
    pattern = headline.says or f"its {words(headline.metric)} on {{rows}} is {{value}}"
    return pattern.format(value=value, rows=rows)


def _figures(report: Report, gone: Headline) -> str:
    """What the model, the one before and the retrained one have, in words."""
    now, before, oracle = (report.value(gone.metric, role) for role in (report.main, "before", "oracle"))
    told = _says(gone, f"{now:.3g}{gone.unit}", "the forget rows")
    told += f" ({before:.3g}{gone.unit} before)" if before is not None else ""
    return told + (f", the retrained model {oracle:.3g}{gone.unit}" if oracle is not None else "")


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _distance_mark(report: Report, gone: Headline, now: float, oracle: float) -> Mark:
    """By the distance to the retrained model, as a part of the scale (or of its figure) and of what there was to go."""
    apart = abs(now - oracle)
    share = apart / (gone.scale or max(abs(oracle), 1e-12))
    before = report.value(gone.metric, "before")
    left = apart / abs(before - oracle) if before is not None and before != oracle else 0.0
    if share <= 0.05 and left <= 0.5:
        return "good"
    return "mixed" if share <= 0.2 and left <= 0.9 else "bad"


def _kept(report: Report, kept: Headline) -> Remark:
    if not kept.counts:
        return _compared(report, kept)
    then, now = _pair(report, kept, "higher")
    if now is None:
        return Remark("Kept: not measured; give a retain set to learn what was lost.", "unknown")
    if then is None or not any(then):
        known = f"{sum(now)} of {len(now)} retained {kept.noun}"
        return Remark(f"Kept: the model still has {known}; there is no earlier count to compare.", "unknown")
    stayed = sum(a and b for a, b in zip(then, now, strict=True))
    share = stayed / sum(then)
    mark: Mark = "good" if share >= 0.9 else "mixed" if share >= 0.6 else "bad"
    return Remark(f"Kept: {stayed} of the {sum(then)} retained {kept.noun} it knew are still there.", mark)


def _compared(report: Report, kept: Headline) -> Remark:
    """A figure beside that of before, where no rows can be counted."""
    now, before = report.value(kept.metric), report.value(kept.metric, "before")
    if now is None:
        return Remark("Kept: not measured; give a retain set to learn what was lost.", "unknown")
    told = _says(kept, f"{now:.3g}{kept.unit}", "retain rows")
    if before is None:
        return Remark(f"Kept: {told}; there is no earlier figure to compare.", "unknown")
    change = now - before
    loss = {"lower": change, "higher": -change, "toward_reference": abs(change)}[kept.better]
    mark: Mark = "good" if loss <= 0.1 * abs(before) else "mixed" if loss <= 0.5 * abs(before) else "bad"
    return Remark(f"Kept: {told} (before {before:.3g}{kept.unit}).", mark)


def _sure(report: Report, suite: Suite, gone: Headline | None, exhibits: Iterable[Exhibit]) -> Remark:
    clauses = [] if gone is None else [_interval(report, gone)]
    clauses += [attack.remark for attack in report.attacks]
    told = {attack.name for attack in report.attacks if attack.remark is not None}
    clauses += [
        Remark(f"no {name} attack was run, so hidden traces are untested", "mixed")
        for name in suite.attacks
        if name not in told
    ]
    clauses += [exhibit.remark(report) for exhibit in exhibits]
    clauses += [evidence(report) for evidence in suite.evidence]
    if "oracle" not in report.columns:
        clauses.append(Remark("no retrained model to compare with", "mixed"))
    return _joined([clause for clause in clauses if clause is not None])


def _joined(clauses: Sequence[Remark]) -> Remark:
    marks: list[Mark] = [clause.mark for clause in clauses]
    worst = max(marks, key=ORDER.index, default=ORDER[0])
    told = "; ".join(clause.text for clause in clauses) or "nothing to judge by"
    return Remark(f"How sure: {told}.", worst or "unknown")


def _interval(report: Report, gone: Headline) -> Remark | None:
    """How far the counted share of forget rows may be from the true one, by their number."""
    score = report.columns[report.main].get(gone.metric)
    if gone.scale is None or score is None:
        return None
    if gone.counts:
        known = _known(score, gone, "lower") or []
    else:
        known = [value > HALF * gone.scale for value in score.per_example if value is not None]
    if not known:
        return None
    low, high = wilson(sum(known), len(known))
    if gone.counts:
        told = f"between {low:.0%} and {high:.0%} of such {gone.noun} may still come out"
    else:
        told = _says(gone, f"{low:.0%} to {high:.0%}", "such rows")
    return Remark(f"{told} (95% interval)")
