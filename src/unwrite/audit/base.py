"""What an audit is made of: a score, the metrics that give one, the attacks, and the suites that list metrics.

A metric is a frozen dataclass called with a `Context` (one model, whose passes are shared and cached) and the contexts
of other models by role. It returns one `Score` with its per-example values, so that any later test (a bootstrap, a
paired comparison, a Kolmogorov-Smirnov test against a retrained model) needs no second pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from ..errors import MethodError, setting
from ..scoring.intervals import mean_interval
from ..scoring.rouge import Words
from .context import Context

if TYPE_CHECKING:
    from .report.parts import Picture, Remark, Verdict
    from .report.report import Report

Better = Literal["higher", "lower", "toward_reference"]
Panel = Literal["recovery", "forgotten", "kept", "fluency", "privacy"]
Point = dict[str, float]
Evidence = Callable[["Report"], "Remark | None"]
Judge = Callable[["Report"], "Verdict | None"]
C = TypeVar("C", bound=Context)

ALONE: Mapping[str, Any] = MappingProxyType({})  # no other model
ROLES = {
    "before": "the model before unlearning",
    "oracle": "a retrained model",
    "control": "the model before with only its head changed",
    "random": "an untrained model",
}


@dataclass(frozen=True)
class Score:
    """One metric's result on one model.

    Args:
        value: the aggregate; None where it can't be computed, and `note` says why.
        per_example: one value per row, None for rows without one. `value` is their mean unless the metric says
            otherwise (truth ratio, AUC).
        better: which way is good; "toward_reference" means close to the retrained model (or the stated constant).
        note: what a reader must know to read the value.
        bounds: its 95 % interval, where the value is not the mean of its rows; None where there is none, or where the
            rows give it.
    """

    name: str
    value: float | None
    per_example: list[float | None] = field(default_factory=list)
    better: Better = "higher"
    note: str = ""
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.bounds is not None:  # JSON has lists
            finite_bounds = tuple(self.bounds) if all(map(math.isfinite, self.bounds)) else None
            object.__setattr__(self, "bounds", finite_bounds)
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)
            object.__setattr__(self, "note", f"{self.note} The value is not finite.".strip())
        finite = [v if v is not None and math.isfinite(v) else None for v in self.per_example]
        object.__setattr__(self, "per_example", finite)

    @classmethod
    def mean(cls, name: str, values: Sequence[float | None], better: Better, note: str = "") -> Score:
        """The score that is the mean of the values that exist."""
        known = [v for v in values if v is not None and math.isfinite(v)]
        if not known:
            return cls(name, None, list(values), better, note or "No row could be scored.")
        return cls(name, float(np.mean(known)), list(values), better, note)

    def interval(self, resamples: int = 1000, seed: int = 0) -> tuple[float, float] | None:
        """The 95 % interval: the score's own, or the bootstrap's of the mean over rows; None where there is neither."""
        if self.bounds is not None:
            return self.bounds
        known = np.array([v for v in self.per_example if v is not None], dtype=float)
        if self.value is None or len(known) < 2 or not math.isclose(known.mean(), self.value, abs_tol=1e-9):
            return None
        return mean_interval(known, resamples, seed)


class Metric(ABC, Generic[C]):
    """Base of all metrics: one class a metric, a frozen dataclass whose fields are its settings.

    A subclass gives `name` and `measure`, and says by class variables or properties what differs from here.

    Class attributes:
        reads: the kind of context it measures.
    """

    reads: ClassVar[type[Context]]

    @property
    @abstractmethod
    def name(self) -> str:
        """The metric's name, unique within a suite."""

    @property
    def better(self) -> Better:
        """Which way is good."""
        return "higher"

    @property
    def panel(self) -> Panel:
        """The part of the report it stands in."""
        return "forgotten"

    @property
    def about(self) -> str:
        """What the report says of the metric, in one line."""
        return ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The sets of the split it reads."""
        return ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Other models it can't do without; "oracle|before" is either."""
        return ()

    @property
    def goes_first(self) -> bool:
        """Whether its passes serve the other metrics, too."""
        return False

    def applies(self, split: Any) -> bool:
        """Whether the split has the rows and columns this metric reads; a suite leaves out what doesn't apply."""
        return all(self.reads.rows_named(split, name) for name in self.needs)

    def caution(self, split: Any) -> str:
        """What a reader must know of the figure on these rows; empty for nothing."""
        return ""

    def lack(self, references: Mapping[str, C]) -> str:
        """The models it needs and that are not among the references, in words; empty where all are there."""
        return _in_words(_missing(self.roles, references))

    def __call__(self, context: C, references: Mapping[str, C] = ALONE) -> Score:
        """Measures one model.

        Args:
            context: the model, with its rows.
            references: the contexts of other models, by role.

        Raises:
            MethodError: a model that the metric needs isn't among the references.
        """
        need_roles(self.name, self.roles, references)
        return replace(self.measure(context, references), name=self.name, better=self.better)

    @abstractmethod
    def measure(self, context: C, references: Mapping[str, C]) -> Score:
        """Computes the score of one model; the references it needs are there, name and direction are put on it afterwards."""

    def described(self) -> dict[str, Any]:
        """What the report says about this metric."""
        return {"name": self.name, "better": self.better, "about": self.about, "panel": self.panel}


def need_roles(what: str, roles: Iterable[str], references: Collection[str]) -> None:
    """Refuses to go on without the models that something needs.

    Args:
        what: needs them, by its name.
        roles: as a metric or a suite declares them.
        references: the models that are there, by role.

    Raises:
        MethodError: which are missing.
    """
    if missing := _missing(roles, references):
        named = " and ".join(" or ".join(map(setting, role.split("|"))) for role in missing)
        raise MethodError(f"{what} needs {_in_words(missing)}: pass {named}.{_stand_in(missing)}")


def _missing(roles: Iterable[str], references: Collection[str]) -> list[str]:
    return [role for role in roles if not any(one in references for one in role.split("|"))]


def _stand_in(roles: Collection[str]) -> str:
    """What to do where nothing was retrained, as a sentence; empty where no retrained model is asked for."""
    if "oracle" not in roles:
        return ""
    base = setting("reference", "base")
    return f" Where none was retrained, give the model from before it learnt any of the rows, and say {base}."


def _in_words(roles: Iterable[str]) -> str:
    words = (" or ".join(ROLES.get(one, f"the model {one!r}") for one in role.split("|")) for role in roles)
    return " and ".join(words)


class Attack(ABC, Generic[C]):
    """Base of what tries to bring forgotten rows back, on every model of an audit alike: `Relearn()`, `Quantise()`, your own.

    Class attributes:
        reads: the kind of context it attacks.
        name: in messages and reports.
        about: one line for the report.
        x, label: the key of the x axis in a point, and its words.
        series: the other keys of a point, each a share or a probability by which one can see what came back.
        judged: the one that says whether the forgotten rows came back, which a requirement on the attack bounds; empty for none.
    """

    reads: ClassVar[type[Context]]
    name: ClassVar[str]
    about: ClassVar[str] = ""
    x: ClassVar[str]
    label: ClassVar[str]
    series: ClassVar[tuple[str, ...]] = ()
    judged: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, context: C) -> list[Point]:
        """Attacks one model and returns the points of a curve: key `x`, and one key a series."""

    def remark(self, curves: Mapping[str, list[Point]], main: str) -> Remark | None:
        """What the summary says of the attack, in a clause; None where there is nothing to say.

        Args:
            curves: by column of the report.
            main: the column that the report is about.
        """
        return None


class Exhibit:
    """What an audit is given beside models, as a reference: shadow models' confidences, what a method selected.

    It may add metrics, pictures, a clause of the summary, and lines on where the figures come from.

    Class attributes:
        reads: the kind of context it goes with.
    """

    reads: ClassVar[type[Context]]

    def metrics(self) -> Sequence[Metric]:
        """Metrics that are measured beside the suite's."""
        return ()

    def pictures(self, contexts: Mapping[str, Any]) -> Sequence[Picture]:
        """Pictures for the report, from the contexts of the models with a column, by its name."""
        return ()

    def provenance(self) -> Mapping[str, str | float]:
        """What the figures depend on because of it, by name."""
        return {}

    def remark(self, report: Report) -> Remark | None:
        """What the summary says of it, in a clause; None where there is nothing to say."""
        return None


@dataclass(frozen=True)
class Headline:
    """One metric that the summary speaks of, and what is good.

    Args:
        metric: its name; after "|" stand patterns of others, the first of which is taken where the split has no such
            metric.
        better: "lower" or "higher" where rows are counted that are above half of the scale, or below;
            "toward_reference" where the retrained model's figure is the target.
        scale: 1 where it is a fraction, 100 where it is a percentage; None where it has no upper end: then figures
            are compared, not rows.
        noun: what a row of it is: "answers", "labels".
        says: how a figure reads, of "{value}" and "{rows}": "it is right on {value} of {rows}".
        unit: what stands behind a value there.
    """

    metric: str
    better: Better
    scale: float | None = 1.0
    noun: str = "answers"
    says: str = ""
    unit: str = ""

    @property
    def counts(self) -> bool:
        """Whether rows are counted."""
        return self.scale is not None and self.better != "toward_reference"


@dataclass(frozen=True)
class Suite:
    """A named list of metrics, or a function of the split that gives one, and what its summary is about.

    Args:
        of: the kind of data it is for, as contexts name it.
        gone: what says whether the forget rows are forgotten.
        kept: what says whether the rest stayed.
        axes: the metrics on the trade-off plot: what should go, what should stay; None takes those two.
        scale: 1 where the axes are fractions, 100 where they are percentages.
        evidence: functions of the report, each giving a clause on how sure one may be, or none.
        attacks: attacks that look for hidden traces; the summary says which of them was not run.
        roles: models besides the audited one without which there is no audit; "oracle|before" is either.
        judge: what the figures say as a whole, in one word and one sentence, which then comes first.
        requires: metrics without which the suite's figures aren't its own; `needs` says what they read.
        max_new_tokens: of texts, the longest generation; None picks twice the longest reference answer, 32 to 200.
        max_length: of texts, tokens a row may have, the same for every model.
        words: of texts, what ROUGE counts: "unicode", words of every script, or "ascii", rouge-score's own (published
            figures).
    """

    name: str
    metrics: Sequence[Metric] | Callable[[Any], Sequence[Metric]]
    about: str = ""
    of: str = "text"
    gone: Headline | None = None
    kept: Headline | None = None
    axes: tuple[str, str] | None = None
    scale: float = 1.0
    evidence: tuple[Evidence, ...] = ()
    attacks: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    judge: Judge | None = None
    requires: tuple[str, ...] = ()
    needs: str = ""
    max_new_tokens: int | None = None
    max_length: int = 512
    words: Words = "unicode"

    def for_split(self, split: Any) -> list[Metric]:
        """The metrics that apply to this split, in report order.

        Raises:
            MethodError: a metric for other data.
        """
        metrics = self.metrics(split) if callable(self.metrics) else self.metrics
        odd = next((metric for metric in metrics if not metric.reads.holds(split)), None)
        if odd is not None:
            raise MethodError(
                f"{odd.name} measures {odd.reads.kind}, and {split.name} is other data. Leave it out of suite {self.name!r}."
            )
        return [metric for metric in metrics if metric.applies(split)]

    def on_axes(self) -> tuple[str, str] | None:
        """The metrics on the trade-off plot; None where none are declared."""
        if self.axes is not None or self.gone is None or self.kept is None:
            return self.axes
        return self.gone.metric.split("|")[0], self.kept.metric.split("|")[0]


def harmonic_mean(values: Sequence[float]) -> float:
    """Returns n / sum(1/v), and 0 as soon as one value is 0."""
    if len(values) == 0 or min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / v for v in values)
