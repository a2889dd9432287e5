"""The suites by name. A user's own is a `Suite` handed to `evaluate`."""

from __future__ import annotations

from ..errors import MethodError, unknown
from .base import Suite
from .basic import BASIC
from .membership import ATTACKS, Membership
from .muse import MUSE
from .tofu import TOFU
from .vision import VISION, VISION_REGRESSION

MEMBERSHIP = Suite(
    "membership",
    [Membership(attack, 0.2 if attack == "min_k++" else 0.4) for attack in ATTACKS],
    "Six membership-inference attacks between forget and holdout rows.",
)

SUITES: dict[str, Suite] = {suite.name: suite for suite in (BASIC, TOFU, MUSE, MEMBERSHIP, VISION, VISION_REGRESSION)}
SUITES["landmarks"] = BASIC  # the shipped set has what the default suite reads


def suite_named(suite: str | Suite) -> Suite:
    """A suite by name, or the suite itself; an unknown name is refused with the nearest known one."""
    if isinstance(suite, Suite):
        return suite
    if suite not in SUITES:
        raise MethodError(unknown("suite", suite, SUITES))
    return SUITES[suite]
