"""Are the secrets in source files gone, and is the code around them, and other code, still there?

Memorisation accuracy and extraction likelihood of secrets, beside the accuracy on the other tokens of the same files, on retained
files, and on files the model has never seen. (arXiv 2509.13755)
"""

from __future__ import annotations

from ...data.text.examples import ForgetSplit
from ..base import Headline, Suite
from ..text.memorisation import ExtractionLikelihood, MemorisationAccuracy
from ..text.metric import TextMetric
from ..text.rows import has_rows

NGRAMS = (3, 5, 10)


def secret_metrics(split: ForgetSplit) -> list[TextMetric]:
    """What the suite measures on this split."""
    metrics: list[TextMetric] = [MemorisationAccuracy("forget", "secrets")]
    metrics += [ExtractionLikelihood(n) for n in NGRAMS]
    metrics += [MemorisationAccuracy("forget", "rest")]
    metrics += [MemorisationAccuracy(on) for on in ("retain", "holdout") if has_rows(split, on)]
    return metrics


SECRETS = Suite(
    "secrets",
    secret_metrics,
    "Are the secrets in source files gone, and is the code around them still there?",
    gone=Headline("forget_secret_accuracy", "lower", noun="files"),
    kept=Headline("retain_accuracy|forget_code_accuracy", "higher", noun="files"),
    axes=("forget_secret_accuracy", "forget_code_accuracy"),
    requires=("forget_secret_accuracy", "forget_secret_el10"),
    needs="source files with secrets, marked or found by unwrite.data.detect_secrets",
)
