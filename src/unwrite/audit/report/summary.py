"""Three sentences a non-specialist understands: what was removed, what was kept, how sure we are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...scoring.intervals import wilson
from ..images.summary import images_removed, images_sure
from .parts import AttackResult, Summary

if TYPE_CHECKING:
    from ..base import Score
    from .report import Report

WORTH_TELLING = 0.05  # a probability below it is none to bring back, and a fall below it none to speak of
HALF = 0.5  # an answer counts as reproduced when half of its words (ROUGE-L recall) are there


def summarise(report: Report) -> Summary:
    """Reads the sentences off a report's scores."""
    removed, removed_mark = _removed(report)
    kept, kept_mark = _kept(report)
    sure, sure_mark = _sure(report)
    return Summary(removed, kept, sure, removed_mark, kept_mark, sure_mark)


def _reproduced(report: Report, score: Score | None) -> list[bool] | None:
    values = [] if score is None else score.per_example
    known = [v is not None and v >= HALF * report.scale for v in values]
    return known or None


def _pair(report: Report, name: str) -> tuple[list[bool] | None, list[bool] | None]:
    before, after = report.columns.get("before", {}).get(name), report.columns[report.main].get(name)
    then, now = _reproduced(report, before), _reproduced(report, after)
    if then is not None and now is not None and len(then) != len(now):
        then = None
    return then, now


def _removed(report: Report) -> tuple[str, str]:
    if report.asked != "answers":
        return images_removed(report)
    then, now = _pair(report, report.answers[0])
    if now is None:
        return "Removed: not measured by this suite.", "unknown"
    if then is None:
        left = sum(now)
        mark = "good" if left <= 0.1 * len(now) else "mixed" if left <= 0.5 * len(now) else "bad"
        return f"Removed: the model reproduces {left} of the {len(now)} answers it was to forget.", mark
    if not any(then):
        return f"Removed: nothing to remove; it knew none of the {len(then)} answers before.", "unknown"
    gone = sum(a and not b for a, b in zip(then, now, strict=True))
    share = gone / sum(then)
    mark = "good" if share >= 0.9 else "mixed" if share >= 0.5 else "bad"
    came = sum(b and not a for a, b in zip(then, now, strict=True))
    extra = f" ({came} it didn't know before now appear)" if came else ""
    known = f"{gone} of the {sum(then)}"
    return f"Removed: {known} forget answers it could reproduce before are gone{extra}.", mark


def _values_kept(report: Report) -> tuple[str, str]:
    now, before = report.value("retain_mae"), report.value("retain_mae", "before")
    if now is None:
        return "Kept: not measured; give a retain set to learn what was lost.", "unknown"
    if before is None:
        return f"Kept: its error on retain rows is {now:.3g}; there is no earlier error to compare.", "unknown"
    mark = "good" if now <= 1.1 * before else "mixed" if now <= 1.5 * before else "bad"
    return f"Kept: its error on retain rows is {now:.3g} (before {before:.3g}).", mark


def _kept(report: Report) -> tuple[str, str]:
    if report.asked == "values":
        return _values_kept(report)
    then, now = _pair(report, report.answers[1])
    if now is None:
        return "Kept: not measured; give a retain set to learn what was lost.", "unknown"
    if then is None or not any(then):
        known = f"{sum(now)} of {len(now)}"
        return f"Kept: the model answers {known} retained questions; there is no earlier count to compare.", "unknown"
    stayed = sum(a and b for a, b in zip(then, now, strict=True))
    share = stayed / sum(then)
    mark = "good" if share >= 0.9 else "mixed" if share >= 0.6 else "bad"
    return f"Kept: {stayed} of the {sum(then)} retained {report.asked} it knew are still there.", mark


def _sure(report: Report) -> tuple[str, str]:
    if report.asked != "answers":
        return images_sure(report)
    _, now = _pair(report, report.answers[0])
    sentences = []
    if now:
        low, high = wilson(sum(now), len(now))
        sentences.append(f"between {low:.0%} and {high:.0%} of such answers may still come out (95% interval)")
    attack = next((a for a in report.attacks if a.name == "relearning"), None)
    relearned, mark = _relearned(report, attack)
    sentences.append(relearned)
    if "oracle" not in report.columns:
        sentences.append("no retrained model to compare with")
        mark = "mixed" if mark == "good" else mark
    return f"How sure: {'; '.join(sentences)}.", mark


def _relearned(report: Report, attack: AttackResult | None) -> tuple[str, str]:
    """What a short fine-tuning brought back of the forget rows it did not show."""
    curve = attack.curves.get(report.main) if attack else None
    if not attack or not curve:
        return "no relearning attack was run, so hidden traces are untested", "mixed"
    start, end = curve[0]["unseen"], curve[-1]["unseen"]
    steps = f"{curve[-1]['step']:.0f} steps of fine-tuning on other forget rows"
    told = f"{steps} move the rest from {start:.2f} to {end:.2f}"
    oracle, before = attack.curves.get("oracle"), attack.curves.get("before")
    if before and before[0]["unseen"] < WORTH_TELLING:
        known = f"the model gave the other forget rows {before[0]['unseen']:.2f} before"
        return f"{known}, so relearning had nothing to bring back", "unknown"
    if oracle:
        same = end <= oracle[-1]["unseen"] + 0.1
        verdict = "as a retrained model would" if same else "more than a retrained model, so traces remain"
        return f"{told} ({oracle[-1]['unseen']:.2f} for the retrained model), {verdict}", "good" if same else "bad"
    if not before:
        return told, "mixed"
    if before[0]["unseen"] - start < WORTH_TELLING:
        return f"{told}, and they had hardly gone (from {before[0]['unseen']:.2f})", "bad"
    back = (end - start) / (before[0]["unseen"] - start)
    mark = "good" if back < 0.2 else "mixed" if back < 0.5 else "bad"
    if back >= 1:
        return f"{told}, all of the way back to where it was", mark
    return f"{told}, {max(0.0, back):.0%} of the way back to where it was", mark
