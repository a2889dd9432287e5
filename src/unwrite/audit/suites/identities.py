"""MUFAC's suite: persons forgotten by a classifier of something else (arXiv 2311.02240), with what NoMUS leaves out.

The split has identities, none of them in two of forget, retain, test and holdout (unseen persons). `shadow_models` add LiRA.
"""

from __future__ import annotations

from ...data.images.splits import ImageSplit
from ..base import Headline, Suite
from ..images import identities as who
from ..images import metrics as of
from ..images.metrics import ImageMetric
from .vision import RIGHT

__all__ = ["MUFAC"]


def _metrics(split: ImageSplit) -> list[ImageMetric]:
    if split.forget.labels is None:
        return []
    who.check_identities(split)
    return [
        who.NoMUS(),
        of.Accuracy("test retain"),
        who.TopTwo(),
        who.ForgettingScore(),
        who.IdentityAttack(),
        *(who.RetrainGap(name) for name in who.GAPS),
        who.ForgetDivergence(),
        of.Accuracy("forget"),
        of.Accuracy("retain"),
        of.BoostedTreesAttack(),
    ]


MUFAC = Suite(
    "mufac",
    _metrics,
    "Image classifiers that forget persons and not labels: NoMUS, its loss attack, distances to the retrained model.",
    of="images",
    gone=RIGHT,
    kept=Headline("TA", "higher", 100.0, noun="labels"),
    axes=("forget_accuracy", "TA"),
    scale=100.0,
    requires=("nomus",),
    needs="identities of forget, retain, test and holdout rows",
)
