"""Corrective machine unlearning: whether a model answers as if nothing had been manipulated, though only a part is known.

A retrained model still has the rows that nobody identified, so it is a row of the table and no goal. Every accuracy is of true
labels, but for `wrong_labels`, which counts the forget rows that are still given the label somebody put on them.
(arXiv 2402.14015; the rows: `data.split_identified`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import Better, Headline, Panel, Score, Suite
from ..images.accuracy import accuracy
from ..images.context import ImageContext
from ..images.metrics import ImageMetric

__all__ = ["CORRECTIVE", "TrueLabelAccuracy", "WrongLabels"]

Shown = Literal["corrected", "corrected others", "clean", "manipulated", "identified"]
ABOUT: Mapping[Shown, tuple[str, str]] = {
    "corrected": (
        "corrected_accuracy",
        "Unseen rows that the manipulation harms, right by their true labels (Acc_corr).",
    ),
    "corrected others": (
        "corrected_accuracy_others",
        "The same without rows whose true label is the one the trigger gives.",
    ),
    "clean": ("clean_accuracy", "Unseen rows that the manipulation leaves alone (Acc_retain)."),
    "manipulated": (
        "manipulated_accuracy",
        "All manipulated training rows, identified or not, right by their true labels.",
    ),
    "identified": ("identified_accuracy", "The identified training rows, right by their true labels."),
}


@dataclass(frozen=True)
class TrueLabelAccuracy(ImageMetric):
    """Percentage of a set's rows that get their true label.

    Args:
        on: the set, as `data.split_identified` names it.
    """

    on: Shown = "corrected"

    @property
    def name(self) -> str:
        return ABOUT[self.on][0]

    @property
    def about(self) -> str:
        return ABOUT[self.on][1]

    @property
    def better(self) -> Better:
        return "higher"

    @property
    def panel(self) -> Panel:
        return "kept" if self.on == "clean" else "recovery"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.on,)

    def measure(self, context: ImageContext, references: Mapping[str, ImageContext]) -> Score:
        return accuracy(*context.labelled(self.on), self.name)


@dataclass(frozen=True)
class WrongLabels(ImageMetric):
    """Percentage of the identified rows that are still given the label they were manipulated to.

    A row whose label was true all the same (a trigger on the class it gives) counts neither way.
    """

    name: ClassVar[str] = "wrong_labels"
    about: ClassVar[str] = "Identified rows that are still given their wrong label."
    better: ClassVar[Better] = "lower"
    needs: ClassVar[tuple[str, ...]] = ("forget", "identified")

    def measure(self, context: ImageContext, references: Mapping[str, ImageContext]) -> Score:
        logits, labels = context.labelled("forget")
        true = context.set("identified").subset(context.set("forget").index).target.numpy()
        given = logits.argmax(1)
        rows = [None if same else 100.0 * hit for hit, same in zip(given == labels, labels == true, strict=True)]
        return Score.mean(
            self.name, rows, self.better, "No identified row has a wrong label." if all(labels == true) else ""
        )


CORRECTIVE = Suite(
    "corrective",
    [
        WrongLabels(),
        TrueLabelAccuracy("identified"),
        TrueLabelAccuracy("manipulated"),
        TrueLabelAccuracy("corrected"),
        TrueLabelAccuracy("corrected others"),
        TrueLabelAccuracy("clean"),
    ],
    "Manipulated rows of which some are known: accuracies by true labels, with the trigger or of the confused classes, and without.",
    of="images",
    gone=Headline("wrong_labels", "lower", 100.0, noun="wrong labels"),
    kept=Headline("clean_accuracy", "higher", 100.0, noun="labels"),
    scale=100.0,
    requires=("corrected_accuracy",),
    needs="manipulated rows and test rows, as data.split_identified gives them",
)
