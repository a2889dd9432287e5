"""The suite that looks at the parameters in which knowledge lies, beside what the model says.

Behaviour can change while the vectors that hold a concept stay, and then the knowledge comes back. Each metric compares
those value vectors with the model before, by `vector_change`; a vector counts as a row.
(Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv 2406.11614)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...data.text.encoding import IGNORE
from ...data.text.examples import Example
from ...errors import DataError, MethodError, setting
from ...models.value_vectors import VectorPlace, rank_by_tokens
from ..base import Better, Headline, Score, Suite
from ..text.basic import Probability, RougeRecall
from ..text.concept_vectors import VectorChange, vector_change
from ..text.context import TextContext
from ..text.metric import TextMetric


@dataclass(frozen=True)
class ConceptMetric(TextMetric):
    """Base of what is measured on value vectors; a vector counts as a row.

    Args:
        layers, units: the vectors, pair by pair, counted from 0. Both empty: those of the model before whose
            projections name most of the tokens that forget answers have and retain answers don't (ours).
        count: how many are taken then.
        top: tokens of a projection that count; 200 in the paper.
    """

    layers: tuple[int, ...] = ()
    units: tuple[int, ...] = ()
    count: int = 5
    top: int = 200
    better: ClassVar[Better] = "lower"
    roles: ClassVar[tuple[str, ...]] = ("before",)

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.units):
            raise MethodError(
                f"{setting('layers')} has {len(self.layers)} entries and {setting('units')} {len(self.units)}; a vector needs "
                "one of each."
            )

    def changes(self, context: TextContext, before: TextContext) -> dict[VectorPlace, VectorChange]:
        """What became of every vector."""
        return {place: vector_change(before.model, context.model, place, k=self.top) for place in self.places(before)}

    def places(self, before: TextContext) -> tuple[VectorPlace, ...]:
        """The vectors that are looked at.

        Raises:
            DataError: none is named, and none of the model's names a token of the forget answers.
        """
        if self.layers:
            return tuple(map(VectorPlace, self.layers, self.units))
        forget, retain = _answer_ids(before, before.split.forget), _answer_ids(before, before.split.retain or ())
        tokens = sorted((forget - retain) or forget)

        def compute() -> list[tuple[int, int]]:
            found = rank_by_tokens(before.model, [tokens], k=self.top, count=self.count)[0]
            return [tuple(vector.place) for vector in found]

        found = before.remember("concept vectors", [tokens, self.top, self.count], compute)
        if not found:
            raise DataError("no value vector names a token of the forget answers. Name the vectors: layers and units.")
        return tuple(VectorPlace(*place) for place in found)

    def scored(self, context: TextContext, references: Mapping[str, TextContext], figure: str) -> Score:
        """The mean of one figure of `VectorChange` over the vectors, with each."""
        changes = self.changes(context, references["before"])
        where = ", ".join(f"{place.layer}/{place.unit}" for place in changes)
        return Score.mean(
            self.name, [getattr(one, figure) for one in changes.values()], self.better, f"Layer/unit: {where}."
        )


@dataclass(frozen=True)
class ConceptCosine(ConceptMetric):
    """Mean cosine between the concept's value vectors before and after; 1 where nothing changed."""

    name: ClassVar[str] = "concept_cosine"
    about: ClassVar[str] = "How far the vectors that hold the knowledge still point where they did; 1 is unchanged."

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        return self.scored(context, references, "cosine")


@dataclass(frozen=True)
class ConceptDistance(ConceptMetric):
    """Mean length of the change of the concept's value vectors; 0 where nothing changed."""

    name: ClassVar[str] = "concept_distance"
    better: ClassVar[Better] = "higher"
    about: ClassVar[str] = "How far the vectors that hold the knowledge have moved; 0 is unchanged."

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        return self.scored(context, references, "distance")


@dataclass(frozen=True)
class ConceptJaccard(ConceptMetric):
    """Mean overlap of the tokens that the concept's value vectors name before and after; 1 where nothing changed."""

    name: ClassVar[str] = "concept_jaccard"
    about: ClassVar[str] = "How many of the tokens that these vectors stand for they still stand for; 1 is all."

    def measure(self, context: TextContext, references: Mapping[str, TextContext]) -> Score:
        return self.scored(context, references, "jaccard")


def _answer_ids(context: TextContext, rows: Sequence[Example]) -> set[int]:
    labels = {label for windows in context.encoded(rows) for row in windows for label in row.labels}
    return labels - {IGNORE, *context.tokenizer.all_special_ids}


def concept_suite(layers: tuple[int, ...] = (), units: tuple[int, ...] = (), *, top: int = 200) -> Suite:
    """Makes the suite for given vectors, beside what the model says of the forget rows; see `ConceptMetric`."""
    return Suite(
        "conceptvectors",
        [
            ConceptCosine(layers, units, top=top),
            ConceptJaccard(layers, units, top=top),
            ConceptDistance(layers, units, top=top),
            Probability(),
            RougeRecall("retain"),
        ],
        "Whether the parameters that hold the knowledge changed, beside what the model says.",
        gone=Headline("concept_jaccard", "lower", noun="vectors"),
        kept=Headline("retain_rouge", "higher"),
        roles=("before",),
    )


CONCEPT_VECTORS = concept_suite()
