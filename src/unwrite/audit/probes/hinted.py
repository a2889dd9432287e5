"""P8: what a model knows once its prompt tells what is related to the answer, and not the answer itself.

A hint that leaves the answer out gives a model that never learnt it little to go by; what another makes of the same hint beyond
that is knowledge it still has. (UnUnlearning, arXiv 2407.00106; see `audit.attacks.reintroduction`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...data.text.examples import Example, ForgetSplit
from ...errors import MethodError
from ..attacks.reintroduction import Reintroduce, reintroduced
from ..text.context import TextContext
from ..text.hints import STATING, HintLevel
from .base import Probe, Values
from .prompts import asked

__all__ = ["Hinted"]


@dataclass(frozen=True)
class Hinted(Probe):
    """P8: the probability of the answer after a hint that does not state it.

    Args:
        level: of the hint, see `Reintroduce`: related facts of the same entity, with every word of the answer taken out.
    """

    level: HintLevel = "related"

    name: ClassVar[str] = "hinted"
    way: ClassVar[str] = "telling it what is related"
    about: ClassVar[str] = "The prompt tells related facts, the answer left out."

    def __post_init__(self) -> None:
        if self.level in STATING:
            raise MethodError(f"the hint {self.level!r} states the answer, which any model can copy. Use 'related'.")
        self.attack_by_hint()

    def attack_by_hint(self) -> Reintroduce:
        """The attack at this level alone."""
        return Reintroduce(levels=(self.level,))

    def tested(self, split: ForgetSplit) -> list[Example]:
        return [row for row in asked(split) if row.entity]

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        return reintroduced(context, self.attack_by_hint())[self.level]
