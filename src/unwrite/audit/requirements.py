"""Requirements: bounds that an audit's figures must keep, so that a pipeline can stop where a model still knows too much.

    forget_probability<=0.1x, utility>=0.95x, relearn<=0.15

A figure is a metric's name, or an attack's: then the series that says whether the rows came back (another one is
`relearn.shown`), at the point of its curve that keeps the bound worst. A bound ends in x where it is a share of what the same
figure was before unlearning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .. import catalog
from ..errors import MethodError, setting, unknown
from .base import Attack, Metric, need_roles
from .report.parts import RequirementOutcome

if TYPE_CHECKING:
    from .report.report import Report

__all__ = ["Requirement", "check_requirements", "outcomes", "parse_requirements"]

Relation = Literal["<=", ">="]
FORM = re.compile(r"(?P<figure>[^<>=]+?)\s*(?P<relation><=|>=)\s*(?P<bound>[^<>=]+?)(?P<relative>x?)")
EXAMPLE = "forget_probability<=0.1x,utility>=0.95x"


@dataclass(frozen=True)
class Requirement:
    """A bound on one figure.

    Args:
        figure: a metric's name, or an attack's (`relearn`, `relearning`), also with a series of its curve (`relearn.shown`).
        relation: which side of the bound is allowed; the bound itself is.
        bound: finite.
        relative: whether the bound is a multiple of the figure before, and not a value.
    """

    figure: str
    relation: Relation
    bound: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.bound) or (self.relative and self.bound < 0):
            raise MethodError(
                f"{setting('require')}: the bound of {self.figure} is {self.bound:g}; it must be "
                f"{'at least 0' if self.relative else 'finite'}."
            )

    def __str__(self) -> str:
        return f"{self.figure}{self.relation}{self.bound:g}{'x' if self.relative else ''}"

    def keeps(self, value: float, limit: float) -> bool:
        """Whether a value is on the allowed side of a limit."""
        return value <= limit if self.relation == "<=" else value >= limit

    def worst(self, values: Sequence[float]) -> float:
        """The value that keeps the bound worst."""
        return max(values) if self.relation == "<=" else min(values)


def parse_requirements(text: str) -> tuple[Requirement, ...]:
    """Reads requirements that commas separate; spaces around a relation are allowed.

    Raises:
        MethodError: what is no requirement, and how one is written; one figure bounded twice on one side.
    """
    requirements: list[Requirement] = []
    for part in (one.strip() for one in text.split(",")):
        if not part:
            continue
        match = FORM.fullmatch(part)
        bound = None if match is None else _number(match["bound"])
        if match is None or bound is None:
            raise MethodError(f"{setting('require')}: {part!r} is no requirement. Write them as {EXAMPLE}.")
        relation: Relation = "<=" if match["relation"] == "<=" else ">="
        requirements.append(Requirement(match["figure"], relation, bound, bool(match["relative"])))
    if not requirements:
        raise MethodError(f"{setting('require')} names no requirement. Write them as {EXAMPLE}.")
    sides = [(one.figure, one.relation) for one in requirements]
    for figure, relation in sides:
        if sides.count((figure, relation)) > 1:
            raise MethodError(f"{setting('require')} bounds {figure} by {relation} twice. Leave one out.")
    return tuple(requirements)


def check_requirements(
    requirements: Iterable[Requirement],
    metrics: Sequence[Metric],
    attacks: Sequence[Attack],
    references: Collection[str],
) -> None:
    """Refuses requirements that an audit will have no figure for, before anything is measured.

    Args:
        metrics, attacks: of the audit.
        references: the models there are beside the audited one, by role.

    Raises:
        MethodError: an unknown figure or series, or one that needs a model that isn't there.
    """
    by_name = {metric.name: metric for metric in metrics}
    by_attack = {name: attack for attack in attacks for name in _names(attack)}
    for one in requirements:
        if metric := by_name.get(one.figure):
            need_roles(one.figure, metric.roles, references)
        else:
            name, _, series = one.figure.partition(".")
            if name not in by_attack:
                raise MethodError(f"{setting('require')}: {unknown('figure', one.figure, [*by_name, *by_attack])}")
            _need_series(one, by_attack[name], series)
        if one.relative:
            need_roles(str(one), ("before",), references)


def outcomes(requirements: Iterable[Requirement], report: Report) -> tuple[RequirementOutcome, ...]:
    """What became of every requirement in a report, in order."""
    return tuple(_outcome(one, report) for one in requirements)


def _outcome(one: Requirement, report: Report) -> RequirementOutcome:
    value = _figure(one, report, report.main)
    before = _figure(one, report, "before") if one.relative else None
    limit = one.bound if not one.relative else None if before is None else one.bound * before
    met = value is not None and limit is not None and one.keeps(value, limit)
    return RequirementOutcome(str(one), one.relation, value, limit, met)


def _figure(one: Requirement, report: Report, role: str) -> float | None:
    """One model's figure; None where it wasn't or couldn't be measured."""
    if any(metric["name"] == one.figure for metric in report.metrics):
        return report.value(one.figure, role)
    name, _, series = one.figure.partition(".")
    attacks = {alias: attack for attack in report.attacks for alias in (attack.name, *_slugs(attack.name))}
    if name not in attacks:
        return None
    attack = attacks[name]
    values = [
        point[series or attack.judged] for point in attack.curves.get(role, ()) if (series or attack.judged) in point
    ]
    return one.worst(values) if values and all(map(math.isfinite, values)) else None


def _need_series(one: Requirement, attack: Attack, series: str) -> None:
    """Refuses a series that an attack's curves don't have."""
    if series == "" and attack.judged:
        return
    if series not in attack.series:
        known = ", ".join(f"{one.figure.partition('.')[0]}.{name}" for name in attack.series)
        raise MethodError(f"{setting('require')}: {one.figure} is no figure of {attack.name}. Known: {known}.")


def _names(attack: Attack) -> tuple[str, ...]:
    return (attack.name, *_slugs(attack.name))


def _slugs(name: str) -> list[str]:
    """What the catalogue calls the attacks of a name."""
    return [slug for slug, record in catalog.attacks().items() if record.load().name == name]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
