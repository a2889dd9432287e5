"""Audits: metrics, attacks and benchmark suites that say whether knowledge is gone, and the report of one.

    report = evaluate(unlearned, split, tokenizer=tok, before=original, attacks=[Relearn(), Quantise()])
    report.save("audit")          # report.json and a self-contained report.html

Metrics and suites are in `base`, `basic`, `tofu`, `muse`, `memorisation`, `membership` and `multiple_choice`; attacks
in `relearning` and `quantisation`. Names are imported when first used, so `import unwrite.audit` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Metric, Score, Suite
    from .context import Context
    from .evaluation import evaluate
    from .multiple_choice import MultipleChoice, answer_choices
    from .muse import muse_suite
    from .quantisation import Quantise, quantise
    from .relearning import Relearn, relearn
    from .report import Report
    from .requests import scalability, sustainability
    from .suites import SUITES
    from .tofu import tofu_suite

_HOME = {
    "Context": "context",
    "Metric": "base",
    "MultipleChoice": "multiple_choice",
    "Quantise": "quantisation",
    "Relearn": "relearning",
    "Report": "report",
    "SUITES": "suites",
    "Score": "base",
    "Suite": "base",
    "answer_choices": "multiple_choice",
    "evaluate": "evaluation",
    "muse_suite": "muse",
    "quantise": "quantisation",
    "relearn": "relearning",
    "scalability": "requests",
    "sustainability": "requests",
    "tofu_suite": "tofu",
}

__all__ = [
    "SUITES",
    "Context",
    "Metric",
    "MultipleChoice",
    "Quantise",
    "Relearn",
    "Report",
    "Score",
    "Suite",
    "answer_choices",
    "evaluate",
    "muse_suite",
    "quantise",
    "relearn",
    "scalability",
    "sustainability",
    "tofu_suite",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
