"""The base of all metrics of language models."""

from __future__ import annotations

from typing import ClassVar

from ..base import Metric
from ..context import Context
from .context import TextContext

__all__ = ["TextMetric"]


class TextMetric(Metric[TextContext]):
    """A metric that reads a `TextContext`; see `Metric`."""

    reads: ClassVar[type[Context]] = TextContext
