"""What a report is made of besides figures: samples, curves of attacks, pictures, and the sentences on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One question, its reference answer and what each model says (by role); earlier turns as (role, content)."""

    part: str
    asked: str
    reference: str
    answers: Mapping[str, str]
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class AttackResult:
    """One attack on every model alike: a curve a role. `x` is the key of the x axis in a point, `label` its words."""

    name: str
    about: str
    x: str
    label: str
    curves: Mapping[str, list[dict[str, float]]]


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
    """The sentences, and how each reads: "good", "mixed", "bad" or "unknown"."""

    removed: str
    kept: str
    sure: str
    removed_mark: str = "unknown"
    kept_mark: str = "unknown"
    sure_mark: str = "unknown"

    @property
    def headline(self) -> str:
        """All three in one line."""
        return f"{self.removed} {self.kept} {self.sure}"
