"""The statements a verdict rests on, each a claim, a mechanism, a control or a set-up, judged by the bound of its interval.

claim      what the paper says; the first one is its headline
mechanism  what must hold if the method is built right; where it fails the fault is ours, and nothing is said of the paper
control    the effect is not empty: what has no right to work as well does not
set-up     the bed can tell: there is something to forget, to save or to lose
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from statistics import fmean
from typing import Any, Literal, get_args

from ..errors import MethodError, unknown
from ..scoring.intervals import Interval, mean_interval

Kind = Literal["claim", "mechanism", "control", "set-up"]
Sense = Literal[">", ">=", "<", "<="]
Verdict = Literal[
    "reproduced",
    "partly",
    "not reproduced",
    "inconclusive",
    "bed says nothing",
    "untested here",
    "too small for a verdict",
]


@dataclass(frozen=True)
class Check:
    """One statement with the figure that decides it.

    Args:
        kind: what the statement is for.
        text: the statement; a control's says that the control does worse.
        value: the measured figure, or whether an exact statement is true.
        sense, threshold: how the figure must lie to the threshold; no threshold for an exact statement.
        interval: ends of the figure's interval; None where the figure is exact.
    """

    kind: Kind
    text: str
    value: float | bool
    sense: Sense = ">="
    threshold: float | None = None
    interval: Interval | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise MethodError(unknown("kind of check", self.kind, get_args(Kind)))
        if self.sense not in get_args(Sense):
            raise MethodError(unknown("sense of a check", self.sense, get_args(Sense)))
        if self.threshold is None and not isinstance(self.value, bool):
            raise MethodError(f"check {self.text!r}: a figure needs a threshold. Without one, pass True or False.")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise MethodError(f"check {self.text!r}: its interval {self.interval} ends before it begins.")

    @classmethod
    def by_seed(cls, kind: Kind, text: str, values: Sequence[float], sense: Sense, threshold: float) -> Check:
        """From one figure a seed: the mean, with the range over the seeds as its interval."""
        whole = not any(map(isnan, values))
        return cls(kind, text, fmean(values), sense, threshold, (min(values), max(values)) if whole else (nan, nan))

    @classmethod
    def paired(cls, kind: Kind, text: str, ours: Sequence[float], theirs: Sequence[float], sense: Sense = ">") -> Check:
        """How far one figure lies from another on the same rows, against 0; bootstrap over the rows."""
        ahead = [one - other for one, other in zip(ours, theirs, strict=True)]
        return cls(kind, text, fmean(ahead), sense, 0.0, mean_interval(ahead))

    @property
    def holds(self) -> bool | None:
        """Whether the whole interval lies on the statement's side; None where it holds both sides, or is not a number."""
        if self.threshold is None:
            return bool(self.value)
        low, high = self.interval or (self.value, self.value)
        if isnan(low) or isnan(high):
            return None
        ends = {_holds(end, self.sense, self.threshold) for end in (low, high)}
        return ends.pop() if len(ends) == 1 else None

    @property
    def figures(self) -> str:
        """The figure, its interval, and what it is held against; nothing for an exact statement."""
        if self.threshold is None:
            return ""
        ends = f" ({self.interval[0]:.3g} to {self.interval[1]:.3g})" if self.interval else ""
        return f"{self.value:.3g}{ends}, must be {self.sense} {self.threshold:.3g}"

    def record(self) -> dict[str, Any]:
        """What is stored: the fields, None for what is no number, and whether it holds."""
        value, ends = _plain(self.value), self.interval and [_plain(end) for end in self.interval]
        return asdict(self) | {"value": value, "interval": ends, "holds": self.holds}

    @classmethod
    def stored(cls, record: dict[str, Any]) -> Check:
        """A check as it was stored."""
        known = {name: value for name, value in record.items() if name != "holds"}
        value, ends = known["value"], known["interval"]
        known["value"] = nan if value is None else value
        known["interval"] = ends and tuple(nan if end is None else end for end in ends)
        return cls(**known)


def _plain(value: float) -> float | None:
    return None if isnan(value) else value


def _holds(value: float, sense: Sense, threshold: float) -> bool:
    if sense == ">":
        return value > threshold
    if sense == ">=":
        return value >= threshold
    return value < threshold if sense == "<" else value <= threshold


def verdict_of(checks: Sequence[Check]) -> Verdict:
    """What follows from the checks; the first claim is the headline.

    What must be so for the experiment to say anything comes first: set-ups, then mechanisms. Then the headline and the
    controls decide, and only where all of them hold do the other claims make a difference.
    """
    claims = _of(checks, "claim")
    if not claims:
        return "untested here"
    setups, mechanisms, controls = (_of(checks, kind) for kind in ("set-up", "mechanism", "control"))
    if any(check.holds is False for check in setups):
        return "bed says nothing"
    if any(check.holds is False for check in mechanisms):
        return "untested here"
    decisive = [claims[0], *controls]
    if any(check.holds is False for check in decisive):
        return "not reproduced"
    if any(check.holds is None for check in (*decisive, *setups, *mechanisms)):
        return "inconclusive"
    return "reproduced" if all(check.holds for check in claims) else "partly"


def reason_of(checks: Sequence[Check], figures: str = "") -> str:
    """Why the verdict is what it is: what failed and what is open, by kind, then the figures it rests on."""
    parts = []
    for kind, said in (
        ("set-up", "the bed can't tell, for this does not hold"),
        ("mechanism", "a fault of ours, for this must hold"),
        ("control", "the control does as well, for this does not hold"),
        ("claim", "does not hold here"),
    ):
        failed = [check.text for check in checks if check.kind == kind and check.holds is False]
        if failed:
            parts.append(f"{said}: {'; '.join(failed)}")
    unsure = [check.text for check in checks if check.holds is None]
    if unsure:
        parts.append(f"open, for the interval holds both: {'; '.join(unsure)}")
    return ". ".join([*(parts or ["every statement holds"]), *([figures] if figures else [])])


def _of(checks: Sequence[Check], kind: str) -> list[Check]:
    return [check for check in checks if check.kind == kind]
