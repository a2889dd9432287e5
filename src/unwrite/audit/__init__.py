"""Audits: metrics, attacks and benchmark suites that say whether knowledge is gone, and the report of one.

    report = evaluate(unlearned, split, tokenizer=tok, before=original, attacks=[Relearn(), Quantise()])
    report.save("audit")          # report.json and a self-contained report.html

`base` says what a metric, an attack and a suite are, `context` what an audit asks of a model, `kinds` which kinds of
data there are. What is measured on language models is in `text`, on image models in `images`; then there are
`attacks`, `suites` and the `report`. Names are imported when first used, so `import unwrite.audit` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .attacks.quantisation import Quantise, quantise
    from .attacks.relearning import Relearn, relearn
    from .attacks.relearning_time import ain
    from .base import Attack, Exhibit, Headline, Metric, Score, Suite
    from .context import Context
    from .evaluation import evaluate
    from .images.accuracy import accuracies, average_gap, zero_retrain_forgetting
    from .images.context import ImageContext
    from .images.features import knn_accuracy, linear_cka, neighbours
    from .images.lira import lira, logit_confidence
    from .images.membership import attack_success_rate, entropy_attack, membership_attack
    from .images.pictures import changed_weights, selection_picture
    from .images.selection import Selection
    from .images.shadows import Shadows, shadow_models
    from .report.report import Report
    from .requests import scalability, sustainability
    from .suites.known import SUITES
    from .suites.muse import muse_suite
    from .suites.tofu import tofu_suite
    from .text.context import TextContext
    from .text.multiple_choice import MultipleChoice, answer_choices

_HOMES = {
    "base": ("Attack", "Exhibit", "Headline", "Metric", "Score", "Suite"),
    "context": ("Context",),
    "evaluation": ("evaluate",),
    "text.multiple_choice": ("MultipleChoice", "answer_choices"),
    "suites.muse": ("muse_suite",),
    "attacks.quantisation": ("Quantise", "quantise"),
    "attacks.relearning": ("Relearn", "relearn"),
    "report.report": ("Report",),
    "requests": ("scalability", "sustainability"),
    "suites.known": ("SUITES",),
    "suites.tofu": ("tofu_suite",),
    "images.context": ("ImageContext",),
    "images.selection": ("Selection",),
    "text.context": ("TextContext",),
    "images.accuracy": ("accuracies", "average_gap", "zero_retrain_forgetting"),
    "images.features": ("knn_accuracy", "linear_cka", "neighbours"),
    "images.lira": ("lira", "logit_confidence"),
    "images.membership": ("attack_success_rate", "entropy_attack", "membership_attack"),
    "images.pictures": ("changed_weights", "selection_picture"),
    "attacks.relearning_time": ("ain",),
    "images.shadows": ("Shadows", "shadow_models"),
}

__all__ = [
    "SUITES",
    "Attack",
    "Context",
    "Exhibit",
    "Headline",
    "ImageContext",
    "Metric",
    "MultipleChoice",
    "Quantise",
    "Relearn",
    "Report",
    "Score",
    "Selection",
    "Shadows",
    "Suite",
    "TextContext",
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
