"""How much of a text is of the forget set: by its runs of words, by whom it is about and what it says of them, by its vector.

A scorer takes a text to a number from 0 to 1. It keeps hashes of words and never the texts it was made of, and is stored as
tensors. (Stage names and defaults are ours; arXiv 2407.00106 asks for filters and names none)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ....data import Examples
from ....errors import DataError, MethodError, setting
from ....scoring.words import forms_of, grams, words_of
from .vectors import BUCKETS, HashedTfidf, hashed, unit_rows

Encoder = Callable[[list[str]], Any]  # texts to vectors, [texts, width]
COMMON = 0.05  # share of benign texts from which a word tells nothing


class Scorer(ABC):
    """Takes a text to how much of it is of the forget set.

    Class attributes:
        name: of the stage.

    Attributes:
        window: words that are looked at together; a text's score is that of its worst window.
    """

    name: ClassVar[str]
    window: int

    @abstractmethod
    def __call__(self, text: str) -> float:
        """The score of one text, 0 to 1."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is stored: tensors, and plain settings."""

    @classmethod
    @abstractmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """The scorer that was stored."""

    def worst(self, text: str, last: int | None = None) -> float:
        """The score of the worst window of a text.

        Args:
            last: look at windows that end within so many last words alone, where those before were looked at already.
        """
        words = words_of(text)
        if len(words) <= self.window:
            return self(text)
        first = 0 if last is None else max(0, len(words) - self.window - last)
        starts = range(first, len(words) - self.window + 1, self.stride)
        ends = {*starts, len(words) - self.window}
        return max(self(text[words[i].start : words[i + self.window - 1].end]) for i in ends)

    @property
    def stride(self) -> int:
        """Words from one window to the next."""
        return max(1, self.window // 4)


class ExactSet:
    """Hashes of runs of words, all of them."""

    def __init__(self, hashes: Iterable[int]) -> None:
        self.hashes = frozenset(hashes)

    def __contains__(self, one: int) -> bool:
        return one in self.hashes

    def tensor(self) -> Tensor:
        return torch.tensor(sorted(self.hashes), dtype=torch.int64)


class BloomFilter:
    """A set in a few bits an element that may hold more than was put in, and never less.

    Args:
        bits: [bytes], uint8.
        probes: bits an element sets.
    """

    def __init__(self, bits: np.ndarray[Any, Any], probes: int) -> None:
        self.bits, self.probes = bits, probes

    @classmethod
    def of(cls, hashes: Iterable[int], false_positives: float) -> Self:
        """With the fewest bits for a share of false positives: -n ln p / (ln 2)^2, and bits / n * ln 2 probes."""
        elements = {*hashes}
        count = max(8, math.ceil(-len(elements) * math.log(false_positives) / math.log(2) ** 2))
        made = cls(np.zeros(-(-count // 8), dtype=np.uint8), max(1, round(count / max(1, len(elements)) * math.log(2))))
        for one in elements:
            for place in made._places(one):
                made.bits[place >> 3] |= 1 << (place & 7)
        return made

    def __contains__(self, one: int) -> bool:
        return all(self.bits[place >> 3] >> (place & 7) & 1 for place in self._places(one))

    def _places(self, one: int) -> list[int]:
        first, step = one & 0xFFFFFFFF, (one >> 32 & 0xFFFFFFFF) | 1
        return [(first + i * step) % (8 * len(self.bits)) for i in range(self.probes)]


class NGramScorer(Scorer):
    """The share of a text's runs of n words that stand in the forget texts.

    Args:
        known: their hashes.
        n: words a run.
        window: at least n.
    """

    name = "ngrams"

    def __init__(self, known: ExactSet | BloomFilter, n: int, window: int) -> None:
        self.known, self.n, self.window = known, n, window

    @classmethod
    def of(cls, texts: Iterable[str], n: int, window: int, false_positives: float | None = None) -> Self:
        """From the forget texts.

        Args:
            false_positives: of a Bloom filter; None for the exact set.

        Raises:
            DataError: no text has n words.
        """
        hashes = [hashed(run) for text in texts for run in grams([word.form for word in words_of(text)], n)]
        if not hashes:
            raise DataError(
                f"no forget text has {n} words, so there is no run of {n} to look for. Lower {setting('n')}, or use the stage "
                "'aliases'."
            )
        return cls(ExactSet(hashes) if false_positives is None else BloomFilter.of(hashes, false_positives), n, window)

    @property
    def stride(self) -> int:
        return 1

    def __call__(self, text: str) -> float:
        present = self.present(text)
        return sum(present) / len(present) if present else 0.0

    def present(self, text: str) -> list[bool]:
        """For every run of n words in order, whether the forget texts have it."""
        return [hashed(run) in self.known for run in grams([word.form for word in words_of(text)], self.n)]

    def worst(self, text: str, last: int | None = None) -> float:
        present = self.present(text)
        wide = self.window - self.n + 1
        if len(present) <= wide:
            return sum(present) / len(present) if present else 0.0
        sums = np.convolve(present, np.ones(wide), "valid")
        return float(sums.max() / wide)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        settings: dict[str, Any] = {"n": self.n, "window": self.window}
        if isinstance(self.known, BloomFilter):
            return {"bits": torch.from_numpy(self.known.bits)}, settings | {"probes": self.known.probes}
        return {"hashes": self.known.tensor()}, settings

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        bloom = "bits" in tensors
        known = (
            BloomFilter(tensors["bits"].numpy(), settings["probes"]) if bloom else ExactSet(tensors["hashes"].tolist())
        )
        return cls(known, settings["n"], settings["window"])


@dataclass(frozen=True)
class AliasFact:
    """One fact as hashes: the entity's name as a run of words, and the words that its answer adds."""

    name: int
    length: int
    words: frozenset[int]


class AliasScorer(Scorer):
    """Where an entity is named, the largest share of one of its facts' words that stand beside the name.

    Args:
        facts: one a forget row.
        window: words in which name and fact must stand together.
    """

    name = "aliases"

    def __init__(self, facts: Sequence[AliasFact], window: int) -> None:
        self.facts, self.window = tuple(facts), window

    @classmethod
    def of(cls, forget: Examples, benign: Sequence[str], window: int) -> Self:
        """From rows that name an entity; words that one in twenty benign texts has tell nothing and are left out.

        Raises:
            DataError: no row names an entity.
        """
        seen = Counter(form for text in benign for form in forms_of([text]))
        common = {form for form, count in seen.items() if count >= max(2, COMMON * len(benign))}
        facts = []
        for row in forget:
            name = [word.form for word in words_of(row.entity or "")]
            words = forms_of([row.answer, *row.aliases]) - forms_of([row.question or ""]) - {*name}
            words = words - common or words
            if name and words:
                facts.append(AliasFact(hashed(name), len(name), frozenset(hashed([word]) for word in words)))
        if not facts:
            raise DataError(
                "the stage 'aliases' looks for entities, and no forget row names one. Give a column 'entity'."
            )
        return cls(facts, window)

    def __call__(self, text: str) -> float:
        forms = [word.form for word in words_of(text)]
        there = {hashed([form]) for form in forms}
        lengths = {fact.length for fact in self.facts}
        named = {hashed(run) for length in lengths for run in grams(forms, length)}
        return max(
            (len(fact.words & there) / len(fact.words) for fact in self.facts if fact.name in named), default=0.0
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"window": self.window, "facts": [[one.name, one.length, sorted(one.words)] for one in self.facts]}

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        facts = [AliasFact(name, length, frozenset(words)) for name, length, words in settings["facts"]]
        return cls(facts, settings["window"])


class CosineScorer(Scorer):
    """The largest cosine of a text's vector with that of a forget text, at least 0.

    Args:
        vectors: of the forget texts, [texts, width], rows of length 1.
        encoder: texts to vectors, with any sentence encoder; None for TF-IDF over hashed words.
        words: that TF-IDF.
        window: words a vector is taken of.
    """

    name = "cosine"

    def __init__(
        self, vectors: Any, window: int, *, encoder: Encoder | None = None, words: HashedTfidf | None = None
    ) -> None:
        self.vectors, self.window, self.encoder, self.words = vectors, window, encoder, words

    @classmethod
    def of(cls, texts: Sequence[str], benign: Sequence[str], window: int, encoder: Encoder | None = None) -> Self:
        """From the forget texts; TF-IDF counts words over them and the benign texts."""
        if encoder is not None:
            return cls(unit_rows(np.asarray(encoder(list(texts)), dtype=float)), window, encoder=encoder)
        words = HashedTfidf.of([*texts, *benign])
        return cls(words(texts), window, words=words)

    def __call__(self, text: str) -> float:
        if self.encoder is not None:
            vector = unit_rows(np.asarray(self.encoder([text]), dtype=float))[0]
            return float(np.clip((self.vectors @ vector).max(), 0, 1))
        assert self.words is not None
        return float(min(1.0, (self.vectors @ self.words([text]).T).max()))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.encoder is not None or self.words is None:
            raise MethodError(
                "a filter with an encoder of your own can't be stored: nothing here could load the encoder."
            )
        parts = {"data": self.vectors.data, "indices": self.vectors.indices, "indptr": self.vectors.indptr}
        tensors = {name: torch.from_numpy(np.array(part)) for name, part in parts.items()}
        return tensors | {"weights": torch.from_numpy(self.words.weights)}, {"window": self.window}

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        from scipy.sparse import csr_matrix

        data, indices, indptr = (tensors[name].numpy() for name in ("data", "indices", "indptr"))
        vectors = csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, BUCKETS))
        return cls(vectors, settings["window"], words=HashedTfidf(tensors["weights"].numpy()))


SCORERS: dict[str, type[Scorer]] = {one.name: one for one in (NGramScorer, AliasScorer, CosineScorer)}
