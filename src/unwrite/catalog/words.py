"""The words that a record may use of what a method needs and of how it goes about."""

from __future__ import annotations

__all__ = ["APPROACHES", "NEEDS"]

NEEDS = (
    "forget set",
    "retain set",
    "paraphrases",
    "wrong answers",
    "classifier",
    "gradient access",
    "logits only",
    "text only",
    "retrain reference",
    "labels",
    "original training data",
    "training recipe",
)


APPROACHES = (
    "gradient ascent",
    "preference optimisation",
    "divergence or relabelling",
    "localised editing",
    "task arithmetic",
    "representation steering",
    "auxiliary model",
    "logit arithmetic",
    "adapters",
    "prompting",
    "input corruption",
    "guardrail",
    "fine-tuning",
    "retraining",
    "another",
)
