"""What an audit is made of: a score, the metrics that give one, and the suites that list them.

A metric is a frozen dataclass called with a `Context` (one model, whose passes are shared and cached) and a
`ForgetSplit`. It returns one `Score` with its per-example values, so that any later test (a bootstrap, a paired
comparison, a Kolmogorov-Smirnov test against a retrained model) needs no second pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ..data.text.examples import Examples, ForgetSplit
from ..errors import DataError, unknown
from ..scoring.intervals import mean_interval
from ..scoring.rouge import Words

if TYPE_CHECKING:
    from .context import Context

Better = Literal["higher", "lower", "toward_reference"]
Panel = Literal["forgotten", "kept", "fluency", "privacy"]


@dataclass(frozen=True)
class Score:
    """One metric's result on one model.

    Args:
        value: the aggregate; None where it can't be computed, and `note` says why.
        per_example: one value per row, None for rows without one. `value` is their mean unless the metric says
            otherwise (truth ratio, AUC).
        better: which way is good; "toward_reference" means close to the retrained model (or the stated constant).
        note: what a reader must know to read the value.
    """

    name: str
    value: float | None
    per_example: list[float | None] = field(default_factory=list)
    better: Better = "higher"
    note: str = ""

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)
            object.__setattr__(self, "note", f"{self.note} The value is not finite.".strip())
        finite = [v if v is not None and math.isfinite(v) else None for v in self.per_example]
        object.__setattr__(self, "per_example", finite)

    @classmethod
    def mean(cls, name: str, values: Sequence[float | None], better: Better, note: str = "") -> Score:
        """The mean of the values that exist."""
        known = [v for v in values if v is not None and math.isfinite(v)]
        if not known:
            return cls(name, None, list(values), better, note or "No row could be scored.")
        return cls(name, float(np.mean(known)), list(values), better, note)

    def interval(self, resamples: int = 1000, seed: int = 0) -> tuple[float, float] | None:
        """Percentile bootstrap 95 % interval over rows; None for scores that are not the mean of their rows."""
        known = np.array([v for v in self.per_example if v is not None], dtype=float)
        if self.value is None or len(known) < 2 or not math.isclose(known.mean(), self.value, abs_tol=1e-9):
            return None
        return mean_interval(known, resamples, seed)


def rows_of(split: ForgetSplit, on: str, limit: int | None = None) -> Examples:
    """The rows of a split by name: forget, retain, holdout or one of its evaluation sets.

    With a `limit`, that many evenly spaced rows.
    """
    parts = {"forget": split.forget, "retain": split.retain, "holdout": split.holdout, **split.evaluation}
    rows = parts.get(on)
    if rows is None:
        raise DataError(unknown("set", on, [name for name, part in parts.items() if part is not None]))
    if limit is None or len(rows) <= limit:
        return rows
    return Examples((rows[i * len(rows) // limit] for i in range(limit)), rows.name)


def has_rows(split: ForgetSplit, on: str) -> bool:
    """Whether the split has rows under this name."""
    rows = {"forget": split.forget, "retain": split.retain, "holdout": split.holdout, **split.evaluation}.get(on)
    return rows is not None and len(rows) > 0


def kept_sets(split: ForgetSplit) -> list[str]:
    """The sets whose knowledge must stay: retain, and every evaluation set that isn't about the forget rows."""
    apart = ("forget", "holdout", "_icl", "privleak")
    names = [n for n in split.evaluation if not any(word in n for word in apart) and has_rows(split, n)]
    return (["retain"] if has_rows(split, "retain") else []) + names


@dataclass(frozen=True)
class Metric:
    """Base of all metrics. `applies` says whether a split has what it needs; a suite leaves out what doesn't apply.

    Class attributes: `moments`, whether it reads the deviation of log p; `about`, one line for the report;
    `panel`, the part of the report it stands in.
    """

    moments: ClassVar[bool] = False
    about: ClassVar[str] = ""
    better: ClassVar[Better] = "higher"
    panel: ClassVar[Panel] = "forgotten"

    @property
    def name(self) -> str:
        """Unique within a suite."""
        raise NotImplementedError

    def applies(self, split: ForgetSplit) -> bool:
        """Whether the split has the rows and columns this metric reads."""
        return True

    def __call__(self, context: Context, split: ForgetSplit) -> Score:
        """Measures one model."""
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """What the report says about this metric."""
        return {"name": self.name, "better": self.better, "about": self.about, "panel": self.panel}


@dataclass(frozen=True)
class Suite:
    """A named list of metrics, or a function of the split that gives one: `Metric`s for texts, `ImageMetric`s for images.

    Args:
        axes: the metrics on the trade-off plot and in the headline: what should go, what should stay.
        scale: 1 where those are fractions, 100 where they are percentages.
        max_new_tokens: the longest generation; None picks twice the longest reference answer, 32 to 200.
        max_length: tokens a row may have, the same for every model; longer answers are cut, longer texts read in windows.
        words: what ROUGE counts: "unicode", words of every script, or "ascii", rouge-score's own (published figures).
        of: the kind of data it is for, "text" or "images".
        requires: metrics without which the suite's figures aren't its own; `needs` says what they read.
    """

    name: str
    metrics: Sequence[Any] | Callable[[Any], Sequence[Any]]
    about: str = ""
    axes: tuple[str, str] = ("forget_rouge", "utility")
    answers: tuple[str, str] = ("forget_rouge", "retain_rouge")
    scale: float = 1.0
    max_new_tokens: int | None = None
    max_length: int = 512
    words: Words = "unicode"
    of: Literal["text", "images"] = "text"
    requires: tuple[str, ...] = ()
    needs: str = ""

    def for_split(self, split: Any) -> list[Any]:
        """The metrics that apply to this split, in report order."""
        listed = self.metrics(split) if callable(self.metrics) else self.metrics
        return [metric for metric in listed if metric.applies(split)]


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1/v); 0 as soon as one value is 0."""
    if len(values) == 0 or min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / v for v in values)
