"""The default suite of texts: did the forget answers go, did the rest stay, does the model still write sentences?"""

from __future__ import annotations

from ...data.text.examples import ForgetSplit
from ..base import Headline, Suite
from ..text.basic import ParaphraseProbability, Perplexity, Probability, Repetition, RougeRecall, Utility
from ..text.membership import Membership
from ..text.memorisation import ExactMemorisation, ExtractionStrength
from ..text.metric import TextMetric
from ..text.rows import kept_sets

KEPT_ROWS = 200


def basic_metrics(split: ForgetSplit) -> list[TextMetric]:
    """What the default suite measures on this split. Kept sets are sampled at 200 evenly spaced rows."""
    metrics: list[TextMetric] = [Probability("forget"), ParaphraseProbability(), RougeRecall("forget")]
    metrics += [ExtractionStrength(), ExactMemorisation(), Utility(KEPT_ROWS)]
    for on in kept_sets(split):
        metrics += [Probability(on, KEPT_ROWS), RougeRecall(on, KEPT_ROWS)]
    return [*metrics, Repetition(), Perplexity(), Membership("min_k++", 0.2)]


BASIC = Suite(
    "basic",
    basic_metrics,
    "Did the answers go, did the rest stay, does it still write sentences?",
    gone=Headline("forget_rouge", "lower"),
    kept=Headline("retain_rouge|*_rouge", "higher"),
    axes=("forget_rouge", "utility"),
    attacks=("relearning",),
)
