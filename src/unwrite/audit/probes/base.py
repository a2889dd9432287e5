"""What a probe is, and its recovery index: where a model lies between one that never learnt the rows and one that knows them.

    RI = (S(unlearned) - S(reference)) / (S(target) - S(reference)),   S = mean score of the forget rows not shown to the probe

0 is like never trained, 1 like never unlearned. The same rows are drawn again for all three models (a paired bootstrap), so
that the interval holds what they have in common. The index and its bounds are unwrite's; the survey that asks for a test of
removal against suppression prescribes none (arXiv 2506.09227).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from ...data.text.examples import Example, Examples, ForgetSplit, excerpt, first_overlap
from ...errors import DataError, MethodError, ModelError
from ...scoring.intervals import draws, ends
from ..base import Better, Panel, Score
from ..text.context import TextContext
from ..text.metric import TextMetric

__all__ = ["FEWEST", "Findings", "Probe", "Recovery", "need_apart"]

Values = list[float | None]  # one a forget row; None for those shown or without one
Floats = np.ndarray[Any, Any]

FEWEST = 30  # rows below which an index says nothing
ROOM = 0.05  # between target and reference, below which there is nothing to recover
LOWEST, HIGHEST = -1.0, 1.5  # where an index is cut off
RESAMPLES = 1000


def need_apart(shown: Examples, tested: Sequence[Example], what: str) -> None:
    """Refuses rows of which one would be learnt from and tested on.

    Raises:
        DataError: the first such row, by its place and text.
    """
    for row in first_overlap(Examples(tested), shown):
        raise DataError(
            f"{what} would be shown a row that it is tested on: {row.source or f'row {row.index}'}, "
            f'"{excerpt(row.question or row.answer)}". Remove it from one of the two.'
        )


@dataclass(frozen=True)
class Findings:
    """What a probe found in one model: a value a forget row, of which the figure is the mean.

    Args:
        note: why there is none.
        course: the same at stages on the way to it, by number (steps of fine-tuning); empty where there are none.
    """

    per_row: Values
    note: str = ""
    course: tuple[tuple[int, Values], ...] = ()

    def on(self, rows: Floats) -> Floats:
        """The figure on rows drawn again. rows: [resamples, rows], numbers of forget rows; result: [resamples]."""
        values = np.array([np.nan if value is None else value for value in self.per_row], dtype=float)
        return np.asarray(values[rows].mean(1))


class Probe(TextMetric):
    """Base of all probes: a score for every forget row it was not fitted on, high where the model knows.

    A subclass gives `name`, `about` and `look`, or `observe` where the figure is no mean of rows.

    Class attributes:
        weights: whether it looks at the weights, which of a guard are those inside.
    """

    weights: ClassVar[bool] = False
    better: ClassVar[Better] = "lower"
    panel: ClassVar[Panel] = "forgotten"

    @property
    @abstractmethod
    def way(self) -> str:
        """What it does, as the subject of a sentence: "asking in other words"."""

    @property
    def attack(self) -> bool:
        """Whether knowledge that it alone brings back is suppressed, and not gone."""
        return False

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        """The value of every forget row, None for those shown or without one."""
        raise NotImplementedError

    def observe(self, context: TextContext, references: Mapping[str, TextContext]) -> Findings:
        """What it sees of a model; of a guard, where it looks at weights, of the model inside."""
        if self.weights:
            context, references = context.bare, {role: one.bare for role, one in references.items()}
        return Findings(self.look(context, references))

    def findings(self, context: TextContext, references: Mapping[str, TextContext]) -> Findings:
        """As `observe`; no value, and the reason, for a model that it can't look into."""

        def find() -> Findings:
            try:
                return self.observe(context, references)
            except ModelError as error:
                return Findings([None] * len(context.split.forget), str(error))

        others = tuple((role, id(references[role])) for role in ("before", "oracle") if role in references)
        return context.once((self, others), find)

    def tested(self, split: ForgetSplit) -> list[Example]:
        """The forget rows that it is scored on."""
        return list(split.forget)

    def applies(self, split: ForgetSplit) -> bool:
        return super().applies(split) and len(self.tested(split)) > 1

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        seen = self.findings(context, references)
        rows = np.array([i for i, value in enumerate(seen.per_row) if value is not None], dtype=int)
        if not len(rows):
            return Score(self.name, None, seen.per_row, self.better, seen.note or "No row has a score.")
        return Score(self.name, float(seen.on(rows[None])[0]), seen.per_row, self.better)


P = TypeVar("P", bound=Probe)


@dataclass(frozen=True)
class Recovery(TextMetric, Generic[P]):
    """The recovery index of a probe, with its interval over rows.

    Args:
        probe: gives the scores.
        fewest: rows that must have a score in all three models.
        room: the least distance between target and reference by which an index is defined.
        resamples: of the bootstrap.
    """

    probe: P
    fewest: int = FEWEST
    room: float = ROOM
    resamples: int = RESAMPLES

    better: ClassVar[Better] = "lower"
    panel: ClassVar[Panel] = "recovery"
    roles: ClassVar[tuple[str, ...]] = ("before", "oracle")

    def __post_init__(self) -> None:
        if self.fewest < 2 or not self.room > 0 or self.resamples < 1:
            raise MethodError(
                f"a recovery index needs fewest of at least 2, room above 0 and resamples of at least 1, not {self.fewest}, "
                f"{self.room} and {self.resamples}."
            )

    @property
    def name(self) -> str:
        return f"recovery_{self.probe.name}"

    @property
    def about(self) -> str:
        return self.probe.about

    @property
    def goes_first(self) -> bool:
        return self.probe.goes_first

    def applies(self, split: ForgetSplit) -> bool:
        return self.probe.applies(split)

    def lack(self, references: Mapping[str, TextContext]) -> str:
        return super().lack(references) or self.probe.lack(references)

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        before, oracle = references["before"], references["oracle"]
        here, target, reference = (self.probe.findings(one, references) for one in (context, before, oracle))
        rows = self._common(here, target, reference)
        if len(rows) < self.fewest:
            why = here.note or target.note or reference.note
            return Score(self.name, None, note=why or f"{len(rows)} rows have a score; {self.fewest} are needed.")
        values = [float(seen.on(rows[None])[0]) for seen in (here, target, reference)]
        if not np.isfinite(values).all() or values[1] - values[2] < self.room:
            return Score(self.name, None, note=self._no_room(values))
        again = rows[draws(len(rows), self.resamples)]
        now, high, low = (seen.on(again) for seen in (here, target, reference))
        index = float(np.clip((values[0] - values[2]) / (values[1] - values[2]), LOWEST, HIGHEST)) + 0.0  # no -0
        bounds = ends(np.clip((now - low) / np.maximum(high - low, self.room), LOWEST, HIGHEST))
        told = f"{values[0]:.3f}; {values[1]:.3f} before, {values[2]:.3f} in the reference; {len(rows)} rows."
        told += self._course(here, target, reference, rows)
        return Score(self.name, index, [], self.better, told, bounds)

    def _course(self, here: Findings, target: Findings, reference: Findings, rows: Floats) -> str:
        """The index at every stage and its mean over the way (the area under it by trapezia); empty without stages."""
        stages, indices = [], []
        for (stage, *_), *three in zip(here.course, *(one.course for one in (here, target, reference)), strict=True):
            now, high, low = (float(Findings(values).on(rows[None])[0]) for _, values in three)
            if high - low >= self.room:
                stages.append(stage)
                indices.append(float(np.clip((now - low) / (high - low), LOWEST, HIGHEST)))
        if len(stages) < 2:
            return ""
        area = np.trapezoid(indices, stages) / (stages[-1] - stages[0])
        return (
            f" After {', '.join(f'{n}: {i:.2f}' for n, i in zip(stages, indices, strict=True))} steps; mean {area:.2f}."
        )

    @staticmethod
    def _common(*seen: Findings) -> Floats:
        """The numbers of the rows that all three models have a value for."""
        columns = zip(*(one.per_row for one in seen), strict=True)
        return np.array([i for i, column in enumerate(columns) if None not in column], dtype=int)

    def _no_room(self, values: Sequence[float]) -> str:
        return (
            f"Undefined: {values[1]:.3f} before and {values[2]:.3f} in the reference are less than {self.room:g} apart."
        )
