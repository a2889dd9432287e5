"""Membership inference on texts: six attacks side by side."""

from __future__ import annotations

from ..base import Suite
from ..text.membership import ATTACKS, Membership

MEMBERSHIP = Suite(
    "membership",
    [Membership(attack, 0.2 if attack == "min_k++" else 0.4) for attack in ATTACKS],
    "Six membership-inference attacks between forget and holdout rows.",
    attacks=("relearning",),
    roles=("oracle|before",),
    requires=("loss_auc",),
    needs="holdout rows, like the forget rows and never trained on",
)
