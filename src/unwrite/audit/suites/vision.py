"""The suites of image models: what they say of forgotten, kept and unseen rows, and what their features still hold.

The control is the model with nothing but its head changed: it passes the accuracies, and the features (CKA, nearest
neighbours) show it for what it is.
"""

from __future__ import annotations

from functools import partial

from ..base import Headline, Suite
from ..images import metrics as of
from ..images.evidence import feature_evidence, gap_evidence

RIGHT = Headline("forget_accuracy", "toward_reference", 100.0, says="it is right on {value} of {rows}", unit=" %")
ERROR = Headline("forget_mae", "toward_reference", None, says="its error on {rows} is {value}")

VISION = Suite(
    "vision",
    [
        of.UnlearningAccuracy(),
        of.Accuracy("forget"),
        of.Accuracy("test forget"),
        of.ZeroRetrainForgetting(),
        of.NeighbourAccuracy(),
        of.FeatureLikeness("forget"),
        of.Accuracy("retain"),
        of.Accuracy("test retain"),
        of.FeatureLikeness("retain"),
        of.MembershipByFeature("confidence"),
        of.MembershipByFeature("entropy"),
        of.MembershipByFeature("modified_entropy"),
        of.MembershipByFeature("published_modified_entropy"),
        of.EntropyAttack(),
        of.BoostedTreesAttack(),
        of.AverageGap(),
    ],
    "Image classifiers: accuracies, distance to the retrained model, membership attacks, features.",
    of="images",
    gone=RIGHT,
    kept=Headline("RA", "higher", 100.0, noun="labels"),
    axes=("forget_accuracy", "TA"),
    scale=100.0,
    evidence=(gap_evidence, partial(feature_evidence, gone=RIGHT)),
)

VISION_REGRESSION = Suite(
    "vision-regression",
    [
        of.RegressionError("forget"),
        of.RegressionError("test forget"),
        of.PredictionDistance(),
        of.RelativeDifference(),
        of.FeatureLikeness("forget"),
        of.RegressionError("retain"),
        of.RegressionError("test retain"),
        of.RegressionMembership(),
    ],
    "Image regressors: errors, distance to the retrained model's predictions, a membership attack.",
    of="images",
    gone=ERROR,
    kept=Headline("retain_mae", "lower", None, says="its error on {rows} is {value}"),
    evidence=(partial(feature_evidence, gone=ERROR),),
)
