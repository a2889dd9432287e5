"""The suite of a forgotten class as arXiv 2405.15662 reports it: accuracies, the forgetting rate, and the simplest attack.

Accuracies come first, for the attacks have few rows. Neither looks at features: a trained head passes both.
"""

from __future__ import annotations

from ..base import Headline, Suite
from ..images import metrics as of
from ..images.transferred import ForgettingRate, LossGap
from .vision import RIGHT

__all__ = ["CLASS_MEMBERSHIP"]

CLASS_MEMBERSHIP = Suite(
    "class-membership",
    [
        of.Accuracy("forget"),
        of.Accuracy("test forget"),
        of.Accuracy("retain"),
        of.Accuracy("test retain"),
        ForgettingRate(),
        LossGap(),
        of.FeatureLikeness("forget"),
    ],
    "A forgotten class: accuracies, an attack transferred from the model before, an attack on the loss, features.",
    of="images",
    gone=RIGHT,
    kept=Headline("RA", "higher", 100.0, noun="labels"),
    axes=("forget_accuracy", "TA"),
    scale=100.0,
    roles=("before",),
)
