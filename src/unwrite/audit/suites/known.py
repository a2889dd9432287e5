"""The suites by name. A user's own is a `Suite` handed to `evaluate`."""

from __future__ import annotations

from ...data.text.examples import ForgetSplit
from ...errors import MethodError, notice, unknown
from ..base import Suite
from ..text.membership import Membership
from .basic import BASIC
from .membership import MEMBERSHIP
from .muse import MUSE
from .tofu import TOFU
from .vision import VISION, VISION_REGRESSION

SUITES: dict[str, Suite] = {suite.name: suite for suite in (BASIC, TOFU, MUSE, MEMBERSHIP, VISION, VISION_REGRESSION)}
SUITES["landmarks"] = BASIC  # the shipped set has what the default suite reads


def suite_named(suite: str | Suite) -> Suite:
    """A suite by name, or the suite itself; an unknown name is refused with the nearest known one."""
    if isinstance(suite, Suite):
        return suite
    if suite not in SUITES:
        raise MethodError(unknown("suite", suite, SUITES))
    return SUITES[suite]


def check_suite(suite: str | Suite, split: ForgetSplit, *, references: bool = True) -> None:
    """Refuses rows a suite of texts can't give its figures on, before a model is trained for them.

    Args:
        references: whether a model before unlearning or an oracle will be there.

    Raises:
        MethodError: what the suite needs and the split has not.
    """
    suite = suite_named(suite)
    metrics = suite.for_split(split)
    names = {metric.name for metric in metrics}
    if not metrics or not names.issuperset(suite.requires):
        needs = f"it needs {suite.needs}" if suite.needs else "no metric of it applies"
        raise MethodError(f"suite {suite.name!r} can't be measured on {split.name}: {needs}. Use suite 'basic'.")
    if not references and any(isinstance(metric, Membership) and metric.needs_reference for metric in metrics):
        raise MethodError(f"suite {suite.name!r} compares with another model. Give the model before, or an oracle.")
    if "forget_truth_ratio" in names and (plain := [row for row in split.forget if row.paraphrased_answer is None]):
        notice(
            f"{len(plain)} of {len(split.forget)} forget rows have no paraphrased_answer: their truth ratio takes the "
            "answer itself for the right one, which is not TOFU's number."
        )
