"""The default suite of texts: did the forget answers go, did the rest stay, does the model still write sentences?"""

from __future__ import annotations

from ...data.text.examples import ForgetSplit
from ..base import Metric, Suite, kept_sets
from ..text.basic import ParaphraseProbability, Perplexity, Probability, Repetition, RougeRecall, Utility
from ..text.membership import Membership
from ..text.memorisation import ExactMemorisation, ExtractionStrength

KEPT_ROWS = 200


def basic_metrics(split: ForgetSplit) -> list[Metric]:
    """What the default suite measures on this split. Kept sets are sampled at 200 evenly spaced rows."""
    metrics: list[Metric] = [Probability("forget"), ParaphraseProbability(), RougeRecall("forget")]
    metrics += [ExtractionStrength(), ExactMemorisation(), Utility(KEPT_ROWS)]
    for on in kept_sets(split):
        metrics += [Probability(on, KEPT_ROWS), RougeRecall(on, KEPT_ROWS)]
    return [*metrics, Repetition(), Perplexity(), Membership("min_k++", 0.2)]


BASIC = Suite("basic", basic_metrics, "Did the answers go, did the rest stay, does it still write sentences?")
