"""Texts as vectors of counted words: TF-IDF over hashed words, which keeps numbers and never the words it was made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from ....scoring.words import grams, words_of

__all__ = ["BUCKETS", "HashedTfidf", "hashed", "unit_rows"]

BUCKETS = 1 << 18


def hashed(words: Sequence[str]) -> int:
    """64 bits of a run of words, the same on every machine."""
    return int.from_bytes(blake2b("\x1f".join(words).encode(), digest_size=8).digest(), "big", signed=True)


@dataclass(frozen=True)
class HashedTfidf:
    """Counts of words times how rare they are, each text's vector of length 1.

    Args:
        weights: log((1 + texts) / (1 + texts with it)) + 1 of every word bucket, [buckets].
        longest: runs of up to so many words are counted.
    """

    weights: np.ndarray[Any, Any]
    longest: int = 1

    @classmethod
    def of(cls, texts: Iterable[str], longest: int = 1) -> HashedTfidf:
        """Counts in how many texts each word is."""
        counts, number = np.zeros(BUCKETS), 0
        for text in texts:
            counts[[*set(_buckets(text, longest))]] += 1
            number += 1
        return cls(np.log((1 + number) / (1 + counts)) + 1, longest)

    def __call__(self, texts: Sequence[str]) -> Any:
        """The vectors, a sparse matrix [texts, buckets]."""
        from scipy.sparse import csr_matrix

        rows, columns, values = [], [], []
        for i, text in enumerate(texts):
            counted = Counter(_buckets(text, self.longest))
            weighed = {bucket: count * self.weights[bucket] for bucket, count in counted.items()}
            length = math.sqrt(sum(value * value for value in weighed.values())) or 1.0
            rows += [i] * len(weighed)
            columns += list(weighed)
            values += [value / length for value in weighed.values()]
        return csr_matrix((values, (rows, columns)), shape=(len(texts), BUCKETS))


def _buckets(text: str, longest: int) -> list[int]:
    forms = [word.form for word in words_of(text)]
    return [hashed(run) % BUCKETS for n in range(1, longest + 1) for run in grams(forms, n)]


def unit_rows(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of length 1; those of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray[Any, Any] = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit
