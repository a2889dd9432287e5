"""The suites by name, from the catalogue. A user's own is a `Suite` handed to `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ... import catalog
from ...data.images.splits import ImageSplit
from ...data.text.examples import ForgetSplit
from ...errors import MethodError, notice
from ..base import Suite, need_roles
from .vision import VISION, VISION_REGRESSION

if TYPE_CHECKING:
    from ..context import Split

DEFAULT = "basic"


def _basic_of_images(split: ImageSplit) -> Suite:
    return VISION if split.forget.labels is not None else VISION_REGRESSION


# What "basic" is for other kinds of data than texts.
BASICS: dict[str, Callable[[Any], Suite]] = {"images": _basic_of_images}


def suite_named(suite: str | Suite) -> Suite:
    """A suite by name, or the suite itself; an unknown name is refused with the nearest known one."""
    if isinstance(suite, Suite):
        return suite
    result: Suite = catalog.suite(suite).load()
    return result


def suite_for(suite: str | Suite, kind: str, split: Split) -> Suite:
    """As `suite_named`, for a split of this kind of data; "basic" is the default suite of every kind.

    Raises:
        MethodError: a suite for other data.
    """
    chosen = BASICS[kind](split) if suite == DEFAULT and kind in BASICS else suite_named(suite)
    if chosen.of != kind:
        raise MethodError(f"suite {chosen.name!r} is for {chosen.of}; this split is of {kind}. Use a suite for {kind}.")
    return chosen


def check_suite(suite: str | Suite, split: ForgetSplit, *, references: Collection[str] = ("before",)) -> None:
    """Refuses rows a suite of texts can't give its figures on, before a model is trained for them.

    Args:
        references: the models there will be besides the audited one, by role.

    Raises:
        MethodError: what the suite needs and the split has not.
    """
    suite = suite_named(suite)
    metrics = suite.for_split(split)
    if not metrics or not {metric.name for metric in metrics}.issuperset(suite.requires):
        needs = f"it needs {suite.needs}" if suite.needs else "no metric of it applies"
        raise MethodError(f"suite {suite.name!r} can't be measured on {split.name}: {needs}. Use suite 'basic'.")
    need_roles(f"suite {suite.name!r}", suite.roles, references)
    for caution in dict.fromkeys(metric.caution(split) for metric in metrics):
        if caution:
            notice(caution)
