"""The sentences of an image report: whether anything was forgotten first, and only then how.

What counts is how the forget rows moved from the model before, row by row, against how far the retrained model is from
it. A shift has a 95 % interval over rows; where that holds zero, the figures don't bear a sentence about forgetting,
and where nothing moved, no feature or attack may claim that something was forgotten in one place and not in another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...scoring.intervals import mean_interval, wilson

if TYPE_CHECKING:
    from ..report.report import Report

__all__ = ["Forgotten", "Shift", "forgotten", "images_removed", "images_sure", "shift"]

Forgotten = Literal["nothing", "unclear", "something", "no room", "unknown"]
SAME = 0.9999  # CKA of features that only rounding tells apart: the head alone was changed
HARDLY = 0.99
WORTH_TELLING = 5.0  # points of accuracy, or per cent of an error: less is no fall to speak of


@dataclass(frozen=True)
class Shift:
    """A mean difference over the same rows of two models, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """The interval doesn't hold zero."""
        return self.low > 0 or self.high < 0


def shift(report: Report, name: str, of: str, against: str) -> Shift | None:
    """How much more of a metric one role has than another, paired by row; None where rows can't be paired."""
    pair = [report.columns.get(role, {}).get(name) for role in (of, against)]
    if pair[0] is None or pair[1] is None or len(pair[0].per_example) != len(pair[1].per_example):
        return None
    both = zip(pair[0].per_example, pair[1].per_example, strict=True)
    apart = np.array([a - b for a, b in both if a is not None and b is not None], dtype=float)
    if not len(apart):
        return None
    return Shift(float(apart.mean()), *mean_interval(apart))


def forgotten(report: Report) -> Forgotten:
    """What the answers on forget rows can bear: whether they moved from the model before at all.

    "nothing": they did not, or hardly, where the retrained model's did. "unclear": the move may be chance.
    "no room": the retrained model answers as the model before. "unknown": there is no model before.
    """
    if _same_model(report):
        return "nothing"
    moved, room = _moved(report)
    if moved is None:
        return "unknown"
    if room is None:
        if max(abs(moved.low), abs(moved.high)) < _worth(report):
            return "nothing"
        return "something" if moved.is_clear else "unclear"
    if not room.is_clear:
        return "something" if moved.is_clear and abs(moved.value) >= _worth(report) else "no room"
    if moved.is_clear and abs(moved.value) >= 0.1 * abs(room.value):
        return "something"
    return "unclear" if max(abs(moved.low), abs(moved.high)) >= 0.5 * abs(room.value) else "nothing"


def images_removed(report: Report) -> tuple[str, str]:
    """Forgetting a few rows at random leaves them as right as any others: what counts is the retrained model."""
    now = report.value(_metric(report))
    if now is None:
        return "Removed: not measured by this suite.", "unknown"
    state, sentence = forgotten(report), _figures(report)
    if state == "nothing":
        same, retrained = _same_model(report), report.value(_metric(report), "oracle") is not None
        why = "the weights are those of before" if same else "its answers are those of before"
        return f"Removed: nothing; {why}. {_capital(sentence)}.", "bad" if same or retrained else "unknown"
    if state == "no room":
        told = "its answers can't tell; the retrained model gives those of before"
        return f"Removed: {told}. {_capital(sentence)}.", "unknown"
    oracle = report.value(_metric(report), "oracle")
    if oracle is None:
        return f"Removed: {sentence}; without a retrained model beside it, that says little.", "unknown"
    mark = _mark(report, now, oracle)
    if state == "unclear":
        rows = len(report.columns[report.main][_metric(report)].per_example)
        return f"Removed: {sentence}; on {rows} rows the change may be chance.", "mixed" if mark == "good" else mark
    return f"Removed: {sentence}.", mark


def images_sure(report: Report) -> tuple[str, str]:
    """Whether the features below the head, and an attack, tell the same story as the outputs."""
    parts = [_interval(report), _gap(report), _lira(report), _features(report)]
    if "oracle" not in report.columns:
        parts.append(("no retrained model to compare with", "mixed"))
    told = [part for part in parts if part is not None]
    order = ["", "good", "mixed", "bad"]
    worst = max((mark for _, mark in told), key=order.index, default="") or "unknown"
    return f"How sure: {'; '.join(sentence for sentence, _ in told) or 'nothing to judge by'}.", worst


def _metric(report: Report) -> str:
    return report.axes[0] if report.asked == "labels" else "forget_mae"


def _same_model(report: Report) -> bool:
    hashes = [report.provenance.get(f"{role} model") for role in (report.main, "before")]
    return hashes[0] is not None and hashes[0] == hashes[1]


def _moved(report: Report) -> tuple[Shift | None, Shift | None]:
    """From the model before: the model's shift, and the retrained model's."""
    name = _metric(report)
    return shift(report, name, report.main, "before"), shift(report, name, "oracle", "before")


def _worth(report: Report) -> float:
    if report.asked == "labels":
        return WORTH_TELLING
    return WORTH_TELLING / 100 * abs(report.value("forget_mae", "before") or 0.0)


def _figures(report: Report) -> str:
    """What the model, the one before and the retrained one have, in words."""
    name, labels = _metric(report), report.asked == "labels"
    now, before, oracle = (report.value(name, role) for role in (report.main, "before", "oracle"))
    unit = " %" if labels else ""
    told = f"it is right on {now:.3g} % of the forget rows" if labels else f"its error on the forget rows is {now:.3g}"
    told += f" ({before:.3g}{unit} before)" if before is not None else ""
    return told + (f", the retrained model {oracle:.3g}{unit}" if oracle is not None else "")


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _mark(report: Report, now: float, oracle: float) -> str:
    """By the distance to the retrained model, in points (or parts of its error) and against what there was to go."""
    apart = abs(now - oracle)
    share = apart / (100 if report.asked == "labels" else max(abs(oracle), 1e-12))
    before = report.value(_metric(report), "before")
    left = apart / abs(before - oracle) if before is not None and before != oracle else 0.0
    if share <= 0.05 and left <= 0.5:
        return "good"
    return "mixed" if share <= 0.2 and left <= 0.9 else "bad"


def _interval(report: Report) -> tuple[str, str] | None:
    """How far the share of forget rows it is right on may be from the figure, by their number."""

    score = report.columns[report.main].get(_metric(report))
    known = [] if score is None else [value for value in score.per_example if value is not None]
    if report.asked != "labels" or not known:
        return None
    low, high = wilson(sum(value > 50 for value in known), len(known))
    return f"it is right on {low:.0%} to {high:.0%} of such rows (95% interval)", ""


def _gap(report: Report) -> tuple[str, str] | None:
    gap, before = report.value("avg_gap"), report.value("avg_gap", "before")
    if gap is None:
        return None
    told = f"on average {gap:.2g} points from the retrained model over UA, RA, TA and a membership attack"
    mark = "good" if gap <= 2 else "mixed" if gap <= 8 else "bad"
    if before is not None:
        told += f" ({before:.2g} before)"
        if mark == "good" and gap >= before / 2:
            told, mark = f"{told}, though the model before was hardly farther away", "mixed"
    rows = report.rows.get("forget", 0)
    within = 196 * math.sqrt(0.25 / rows) if rows else 0.0
    if mark == "good" and within > 20:
        told, mark = f"{told}, though {rows} forget rows tell such figures to {within:.0f} points only", "mixed"
    return told, mark


def _lira(report: Report) -> tuple[str, str] | None:
    found, chance = report.value("lira_auc"), report.value("lira_auc", "oracle")
    if found is None:
        return None
    beside = "" if chance is None else f" ({chance:.2f} in the retrained model)"
    told = f"LiRA with {report.provenance.get('shadow models', 'its')} shadow models"
    apart = abs(found - (0.5 if chance is None else chance))
    mark = "good" if apart <= 0.05 else "mixed" if apart <= 0.1 else "bad"
    return f"{told} tells forget from unseen rows with AUC {found:.2f}{beside}", mark


def _features(report: Report) -> tuple[str, str] | None:
    """What the features say, where the answers changed and there are rows enough to say it."""
    score = report.columns[report.main].get("forget_cka")
    if score is None:
        return None
    if score.value is None:
        return ("all its features are the same: the model collapsed", "bad") if "collapsed" in score.note else None
    figure, oracle = f"CKA {score.value:.3f}", report.value("forget_cka", "oracle")
    state = forgotten(report)
    few = bool(score.note) and (oracle is None or oracle > HARDLY)  # then CKA is high for any two models
    if state == "nothing" and few and (oracle is not None or _same_model(report)):
        return "its answers on forget rows are those of before: nothing was forgotten", "bad"
    if state == "nothing" and not few and score.value > HARDLY:
        return f"its answers and features on forget rows are those of before ({figure}): nothing was forgotten", "bad"
    if few:
        return f"too few forget rows to tell by their features ({figure})", "mixed"
    if score.value <= HARDLY:
        return f"features of forget rows have changed ({figure})", "good" if state == "something" else "mixed"
    told = f"features of forget rows {'are what they were' if score.value > SAME else 'have hardly changed'} ({figure})"
    if state != "something":
        return f"{told}, and whether its answers on them changed is not known", "mixed"
    if oracle is not None and oracle > HARDLY:
        return f"{told}, and so are the retrained model's ({oracle:.3f}), so they tell nothing", "mixed"
    return f"{told}, so {'only the head forgot' if score.value > SAME else 'hardly more than the head forgot'}", "bad"
