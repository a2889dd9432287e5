"""What re-introduction says of a model beside the ones before and retrained: U and A by level, with intervals over entities.

    table = reintroduction(after, before, oracle)      contexts of three models on one split
    print(table.verdict)

Only A, beside a model that never learnt the rows, tells suppression from removal: that a model gives an answer that its prompt
holds is no evidence against an unlearning. (arXiv 2407.00106; the figures are ours)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.text.rendering import where
from ..errors import DataError
from ..scoring.intervals import Interval, draws, ends
from .attacks.reintroduction import HALF, LEAST, ItemScores, Reintroduce, copy_control, reintroduced
from .text.context import TextContext

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LevelFigures", "ReintroductionTable", "figures_of", "reintroduction"]

HINTING = ("topic", "related", "premises")  # levels that leave the answer out
RESAMPLES = 1000


@dataclass(frozen=True)
class LevelFigures:
    """One level of hints, on the rows that can give it.

    Args:
        level: its name.
        rows, entities: how many there are of each.
        after, before, oracle: mean scores at this level.
        rate, rate_interval: U, and its 95 % interval over entities.
        advantage, advantage_interval: A, likewise; None without a retrained model.
        reads, overrides: shares of the copy control, of the model after; None at levels that don't state the answer.
    """

    level: str
    rows: int
    entities: int
    after: float
    before: float
    oracle: float | None
    rate: float
    rate_interval: Interval
    advantage: float | None = None
    advantage_interval: Interval | None = None
    reads: float | None = None
    overrides: float | None = None


@dataclass(frozen=True)
class ReintroductionTable:
    """All levels, and what follows.

    Args:
        levels: in the attack's order; one that no row can give is left out.
        stand_in: whether a base model stands in for the retrained one.
    """

    levels: tuple[LevelFigures, ...]
    stand_in: bool = False

    def __getitem__(self, level: str) -> LevelFigures:
        return next(one for one in self.levels if one.level == level)

    @property
    def minimal(self) -> str | None:
        """The first level that brings half of what had gone back; None where none does."""
        return next((one.level for one in self.levels if one.level != "none" and one.rate >= HALF), None)

    @property
    def verdict(self) -> str:
        """What the figures say, in one line."""
        if all(one.advantage_interval is None for one in self.levels):
            return "cannot separate: without a retrained model, what hints bring back may be read or remembered"
        sides = {one.level: one.advantage_interval for one in self.levels if one.advantage_interval is not None}
        more = [level for level in HINTING if level in sides and sides[level][0] > 0]
        less = [level for level in ("paraphrase", "verbatim") if level in sides and sides[level][1] < 0]
        said = []
        if more:
            said.append(f"suppressed, not removed: it knows more than the retrained model at {' and '.join(more)}")
        elif any(level in sides for level in HINTING):
            said.append("hints bring back no more than in a retrained model")
        else:
            said.append("cannot separate: no hint that leaves the answer out could be made")
        if less:
            said.append(f"it reads less of what it is told than the retrained model at {' and '.join(less)}")
        name = " (a base model stands in for the retrained one)" if self.stand_in else ""
        return "; ".join(said) + name

    def records(self) -> list[dict[str, Any]]:
        """A mapping a level, as a data frame takes them."""
        return [{**vars(one)} for one in self.levels]

    def table(self) -> Table:
        """The figures as a rich table."""
        from rich.table import Table

        names = ("level", "rows", "after", "before", "retrained", "U", "A", "reads", "overrides")
        shown = Table(*names, title=self.verdict, title_justify="left", box=None)
        for one in self.levels:
            shown.add_row(
                one.level,
                str(one.rows),
                *(_text(value) for value in (one.after, one.before, one.oracle)),
                _text(one.rate, one.rate_interval),
                _text(one.advantage, one.advantage_interval),
                *(_text(value) for value in (one.reads, one.overrides)),
            )
        return shown


def _text(value: float | None, interval: Interval | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if interval is None else f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def reintroduction(
    after: TextContext,
    before: TextContext,
    oracle: TextContext | None = None,
    *,
    attack: Reintroduce | None = None,
    stand_in: bool = False,
) -> ReintroductionTable:
    """Gives three models the same hints.

    Args:
        after, before, oracle: contexts of the unlearned model, the one before, and one that never learnt the forget rows.
        attack: levels and score.
        stand_in: whether the oracle is the base model before any training on the rows, and not a retrained one.

    Raises:
        DataError: forget rows without an entity, over which intervals are drawn; whatever the attack refuses.
    """
    attack = attack or Reintroduce()
    entities = _entities(after)
    models = {"after": after, "before": before, **({"oracle": oracle} if oracle is not None else {})}
    scores = {name: reintroduced(context, attack) for name, context in models.items()}
    control = copy_control(after, attack)
    return ReintroductionTable(figures_of(scores, entities, control), stand_in)


def _entities(context: TextContext) -> list[str]:
    rows = context.split.forget
    bare = [row for row in rows if not row.entity]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(rows)} forget rows name no entity (first: {where(bare[0])}), and intervals are drawn over "
            "entities. Give a column 'entity': whom or what a row is about."
        )
    return [str(row.entity) for row in rows]


def figures_of(
    scores: Mapping[str, ItemScores],
    entities: Sequence[str],
    control: Mapping[str, Mapping[str, Sequence[float | None]]] | None = None,
) -> tuple[LevelFigures, ...]:
    """U and A of scores by model ("after", "before", perhaps "oracle") and level; each level on the rows that have it.

    Args:
        entities: whom each row is about; a drawn entity brings all of its rows.
        control: as `copy_control` gives it.
    """
    start = {name: by_level["none"] for name, by_level in scores.items() if "none" in by_level}
    if "after" not in start or "before" not in start:
        raise DataError("the rate U is measured from the level 'none'. Add it to the levels.")
    figures = []
    for level in scores["after"]:
        lists = [scores["after"][level], start["after"], scores["before"][level], start["before"]]
        lists += [scores["oracle"][level]] if "oracle" in scores else []
        there = [i for i in range(len(entities)) if all(one[i] is not None for one in lists)]
        if not there:
            continue
        values = np.array([[one[i] for i in there] for one in lists], dtype=float)  # [list, row]
        told = (control or {}).get(level, {})
        figures.append(_level(level, values, [entities[i] for i in there], told))
    return tuple(figures)


def _level(
    level: str, values: np.ndarray[Any, Any], entities: Sequence[str], control: Mapping[str, Sequence[float | None]]
) -> LevelFigures:
    names = sorted({*entities})
    place = {name: i for i, name in enumerate(names)}
    sums = np.zeros((len(values) + 1, len(names)))  # the last counts rows
    for row, entity in enumerate(entities):
        sums[:-1, place[entity]] += values[:, row]
        sums[-1, place[entity]] += 1
    drawn = sums[:, draws(len(names), RESAMPLES)].sum(2)
    drawn = drawn[:-1] / drawn[-1]  # means of a draw. [list, draws]
    means = values.mean(1)
    oracle = float(means[4]) if len(means) > 4 else None
    shares = {name: [one for one in of if one is not None] for name, of in control.items()}
    return LevelFigures(
        level,
        values.shape[1],
        len(names),
        after=float(means[0]),
        before=float(means[2]),
        oracle=oracle,
        rate=float(_rates(means)),
        rate_interval=ends(_rates(drawn)),
        advantage=None if oracle is None else float(means[0] - means[4]),
        advantage_interval=None if oracle is None else ends(drawn[0] - drawn[4]),
        **{name: float(np.mean(of)) for name, of in shares.items() if of},
    )


def _rates(means: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """U of means [list] or [list, draws]."""
    rates: np.ndarray[Any, Any] = (means[0] - means[1]) / np.maximum(means[3] - means[1], LEAST)
    return rates
