"""ROUGE-L by the field's reference library, with its stemmer choice made visible."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple


class Rouge(NamedTuple):
    """Precision, recall and F1 of the longest common subsequence, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


@lru_cache(maxsize=2)
def _scorer(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer)


def rouge_l(reference: str, output: str, *, stemmer: bool = True) -> Rouge:
    """ROUGE-L of an output against its reference (TOFU: recall with stemmer; MUSE: F1 without)."""
    score = _scorer(stemmer).score(reference, output)["rougeL"]
    return Rouge(score.precision, score.recall, score.fmeasure)
