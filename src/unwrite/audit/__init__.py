"""Audits: metrics, attacks and benchmark suites that say whether knowledge is gone, and the report of one.

    report = evaluate(unlearned, split, tokenizer=tok, before=original, attacks=[Relearn(), Quantise()])
    report.save("audit")          # report.json and a self-contained report.html

Metrics and suites are in `base`, `basic`, `tofu`, `muse`, `memorisation`, `membership` and `multiple_choice`; attacks
in `relearning` and `quantisation`; what is measured on image models in the `vision_*` modules. Names are imported when first
used, so `import unwrite.audit` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

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
    from .vision_accuracy import accuracies, average_gap, zero_retrain_forgetting
    from .vision_features import knn_accuracy, linear_cka, neighbours
    from .vision_lira import lira, logit_confidence
    from .vision_membership import attack_success_rate, entropy_attack, membership_attack
    from .vision_pictures import changed_weights, selection_picture
    from .vision_relearning import ain
    from .vision_shadows import Shadows, shadow_models

_HOMES = {
    "base": ("Metric", "Score", "Suite"),
    "context": ("Context",),
    "evaluation": ("evaluate",),
    "multiple_choice": ("MultipleChoice", "answer_choices"),
    "muse": ("muse_suite",),
    "quantisation": ("Quantise", "quantise"),
    "relearning": ("Relearn", "relearn"),
    "report": ("Report",),
    "requests": ("scalability", "sustainability"),
    "suites": ("SUITES",),
    "tofu": ("tofu_suite",),
    "vision_accuracy": ("accuracies", "average_gap", "zero_retrain_forgetting"),
    "vision_features": ("knn_accuracy", "linear_cka", "neighbours"),
    "vision_lira": ("lira", "logit_confidence"),
    "vision_membership": ("attack_success_rate", "entropy_attack", "membership_attack"),
    "vision_pictures": ("changed_weights", "selection_picture"),
    "vision_relearning": ("ain",),
    "vision_shadows": ("Shadows", "shadow_models"),
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
    "Shadows",
    "Suite",
    "accuracies",
    "ain",
    "answer_choices",
    "attack_success_rate",
    "average_gap",
    "changed_weights",
    "entropy_attack",
    "evaluate",
    "knn_accuracy",
    "linear_cka",
    "lira",
    "logit_confidence",
    "membership_attack",
    "muse_suite",
    "neighbours",
    "quantise",
    "relearn",
    "scalability",
    "selection_picture",
    "shadow_models",
    "sustainability",
    "tofu_suite",
    "zero_retrain_forgetting",
]


__getattr__, __dir__ = lazily(__name__, _HOMES)
