"""What a report is made of besides figures: samples, curves of attacks, pictures, and the sentences on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Mark = Literal["", "good", "mixed", "bad", "unknown"]


@dataclass(frozen=True)
class Sample:
    """One question, its reference answer and what each model says (by role); earlier turns as (role, content)."""

    part: str
    asked: str
    reference: str
    answers: Mapping[str, str]
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Remark:
    """A clause of the summary, and how it reads; "" judges nothing."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class AttackResult:
    """One attack on every model alike.

    Args:
        x, label: the key of the x axis in a point, and its words.
        curves: by column of the report.
        remark: what the summary says of it.
        judged: the series that says whether the rows came back; empty where none does.
    """

    name: str
    about: str
    x: str
    label: str
    curves: Mapping[str, list[dict[str, float]]]
    remark: Remark | None = None
    judged: str = ""


@dataclass(frozen=True)
class RequirementOutcome:
    """What became of a requirement.

    Args:
        text: the requirement as it was asked for.
        relation: which side of the limit is allowed.
        value: what was measured; None where nothing could be.
        limit: the bound as a value; None where it is a share of what couldn't be measured.
        met: whether the value keeps the limit.
    """

    text: str
    relation: str
    value: float | None
    limit: float | None
    met: bool

    @property
    def figures(self) -> str:
        """Value and limit in words."""
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        side = "at most" if self.relation == "<=" else "at least"
        limit = "a share of what was not measured before" if self.limit is None else f"{side} {self.limit:.3g}"
        return f"{value} ({limit})"


@dataclass(frozen=True)
class Verdict:
    """What the figures of a suite say as a whole.

    Args:
        label: in a word or two: "removal-like", "suppression-like", "mixed".
        sentence: why, for a reader who runs no models.
        mark: how it reads.
    """

    label: str
    sentence: str
    mark: Mark = "unknown"


@dataclass(frozen=True)
class Tile:
    """A small image: a data URI, and what stands under it."""

    image: str
    caption: str


@dataclass(frozen=True)
class Strip:
    """Tiles in a row, with what stands before them (a role, or words)."""

    label: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Picture:
    """A drawing (SVG made here), or strips of tiles."""

    title: str
    about: str
    svg: str = ""
    strips: tuple[Strip, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Three sentences a non-specialist understands, and how each reads."""

    removed: str = "Removed: not measured by this suite."
    kept: str = "Kept: not measured by this suite."
    sure: str = "How sure: nothing to judge by."
    removed_mark: Mark = "unknown"
    kept_mark: Mark = "unknown"
    sure_mark: Mark = "unknown"

    @property
    def headline(self) -> str:
        """All three in one line."""
        return f"{self.removed} {self.kept} {self.sure}"
