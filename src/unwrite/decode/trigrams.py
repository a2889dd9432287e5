"""A table of trigrams that drafts from: which tokens followed a pair of tokens, and how strongly.

Fitted on a corpus it holds conditional probabilities; every step of decoding then adds a little weight to the trigrams
of the latest text, so weights may pass 1 and are never normalised again.  (ADED, arXiv 2407.12021)

    fit: table[(a, b)][c] = count(a, b, c) / count(a, b),     add: table[(a, b)][c] <- min(table[(a, b)][c] + 0.04, 3)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MethodError, setting
from ..runs import hash_json, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INCREMENT, CAP = 0.04, 3.0
CHUNK = 1 << 22  # trigrams counted at once while fitting
MEMO = 1 << 16  # pairs whose ranked successors are kept ready
LARGEST_VOCAB = 2_000_000  # three ids must fit into 63 bits


class Successors:
    """What followed one pair, strongest first, equal weights by id. Never changed: a changed pair gets a new one."""

    __slots__ = ("cumulative", "tokens", "total", "weights")

    def __init__(self, weights: dict[int, float]) -> None:
        self.weights = weights
        self.tokens = list(weights)
        self.total = sum(weights.values())
        self.cumulative = list(accumulate(weight / self.total for weight in weights.values()))

    def share(self, token: int) -> float:
        """A token's part of the pair's weight, in [0, 1]."""
        return self.weights.get(token, 0.0) / self.total if self.tokens else 0.0


NOTHING = Successors({})


class TrigramTable:
    """Weights of the successors of pairs of tokens: a fitted part in arrays, and what was learned since.

    Args:
        vocab: size of the vocabulary the ids belong to (the width of the target's logits).
        tokenizer: the tokenizer the ids come from; only its fingerprint is kept.
        max_keys: pairs learned while decoding that are kept; the one longest without news is forgotten first.

    Raises:
        MethodError: a vocabulary or a number of keys below 1, or a vocabulary above two million.
    """

    def __init__(self, vocab: int, tokenizer: PreTrainedTokenizerBase | None = None, max_keys: int = 1 << 18) -> None:
        if not 1 <= vocab <= LARGEST_VOCAB:
            raise MethodError(f"the vocabulary size must lie between 1 and {LARGEST_VOCAB}, not {vocab}")
        if max_keys < 1:
            raise MethodError(f"{setting('max_keys')} must be at least 1, not {max_keys}")
        self.vocab, self.max_keys = vocab, max_keys
        self.tokenizer = None if tokenizer is None else hash_json(tokenizer.get_vocab())
        self._keys: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # [pairs] ascending, first * vocab + second
        self._starts: NDArray[np.int64] = np.zeros(1, dtype=np.int64)  # [pairs + 1] into the two below
        self._tokens: NDArray[np.int32] = np.zeros(0, dtype=np.int32)  # [trigrams] strongest first in every pair
        self._weights: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self._learned: dict[int, dict[int, float]] = {}  # replaces the fitted part pair by pair
        self._ranked: dict[int, Successors] = {}

    @staticmethod
    def fit(
        texts: Iterable[Sequence[int]],
        vocab: int,
        keep: int = 12,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_keys: int = 1 << 18,
    ) -> TrigramTable:
        """Counts the trigrams inside every text and normalises them per pair.

        Args:
            texts: token ids, one sequence a document.
            keep: largest successors kept per pair, at least 1; their probabilities are not normalised again.

        Raises:
            MethodError: keep below 1.
            DataError: an id outside the vocabulary.
        """
        if keep < 1:
            raise MethodError(f"keep must be at least 1 successor a pair, not {keep}")
        table = TrigramTable(vocab, tokenizer, max_keys)
        codes, counts = _counted(texts, vocab)
        keys = codes // vocab
        pairs, place = np.unique(keys, return_inverse=True)
        table._store(keys, codes % vocab, counts / np.bincount(place, counts, len(pairs))[place], keep)
        return table

    def __len__(self) -> int:
        """Pairs that have successors."""
        learned = np.fromiter(self._learned, np.int64, len(self._learned))
        return len(self._keys) + int((~np.isin(learned, self._keys)).sum())

    def key(self, first: int, second: int) -> int:
        """The number a pair goes by."""
        return first * self.vocab + second

    def successors(self, key: int) -> Successors:
        """Successors of a pair; the same object until the pair's weights change."""
        successors = self._ranked.get(key)
        if successors is None:
            weights = self._learned.get(key)
            if weights is None:
                successors = self._fitted(key)
            else:
                successors = Successors(dict(sorted(weights.items(), key=lambda entry: (-entry[1], entry[0]))))
            if len(self._ranked) >= MEMO:
                self._ranked.clear()
            self._ranked[key] = successors
        return successors

    def weight(self, first: int, second: int, third: int) -> float:
        """One trigram's weight, 0 if it is unknown."""
        return self.successors(self.key(first, second)).weights.get(third, 0.0)

    def set(self, first: int, second: int, weights: dict[int, float]) -> None:
        """Replaces a pair's successors; all weights must be above 0."""
        if not weights or not all(weight > 0 for weight in weights.values()):
            raise DataError(f"weights of the pair ({first}, {second}) must be above 0, got {weights}")
        self._learn(self.key(first, second), dict(weights))

    def add(self, ids: Sequence[int], increment: float = INCREMENT, cap: float = CAP) -> None:
        """Adds weight to every trigram of a text, each time it occurs, up to a cap."""
        for first, second, third in zip(ids, ids[1:], ids[2:], strict=False):
            key = first * self.vocab + second
            weights = self._learned.get(key)
            if weights is None:
                weights = dict(self._fitted(key).weights)
            before = weights.get(third, 0.0)
            if before < cap:
                weights[third] = min(before + increment, cap)
                self._learn(key, weights)

    def _learn(self, key: int, weights: dict[int, float]) -> None:
        self._learned.pop(key, None)  # the newest lies last
        self._learned[key] = weights
        self._ranked.pop(key, None)
        if len(self._learned) > self.max_keys:
            oldest = next(iter(self._learned))
            del self._learned[oldest]
            self._ranked.pop(oldest, None)

    def _fitted(self, key: int) -> Successors:
        at = int(np.searchsorted(self._keys, key))
        if at == len(self._keys) or self._keys[at] != key:
            return NOTHING
        own = slice(int(self._starts[at]), int(self._starts[at + 1]))
        return Successors(dict(zip(self._tokens[own].tolist(), self._weights[own].tolist(), strict=True)))

    def nbytes(self) -> int:
        """Bytes of the fitted arrays and of the dictionaries that hold what was learned."""
        arrays = (self._keys, self._starts, self._tokens, self._weights)
        learned = sys.getsizeof(self._learned) + sum(sys.getsizeof(weights) for weights in self._learned.values())
        return sum(array.nbytes for array in arrays) + learned

    def save(self, path: str | Path) -> None:
        """Writes fitted and learned weights together as a safetensors file."""
        from safetensors.numpy import save_file

        whole = self._merged()
        metadata = {
            "format": "unwrite trigram table",
            "vocab": str(self.vocab),
            "max_keys": str(self.max_keys),
            "tokenizer": self.tokenizer or "",
        }
        arrays = {"keys": whole._keys, "starts": whole._starts, "tokens": whole._tokens, "weights": whole._weights}
        save_file(arrays, str(path), metadata)

    @staticmethod
    def load(path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> TrigramTable:
        """Reads what `save` wrote.

        Raises:
            DataError: the file is no trigram table, is damaged, or belongs to another tokenizer.
        """
        kinds = {"keys": ("int64", 1), "starts": ("int64", 1), "tokens": ("int32", 1), "weights": ("float32", 1)}
        arrays, metadata = read_tensors(path, "trigram table", DataError, kinds, framework="np")
        try:
            table = TrigramTable(int(metadata["vocab"]), max_keys=int(metadata["max_keys"]))
        except (KeyError, ValueError, MethodError) as error:
            raise DataError(f"{path} is no trigram table: {error}") from None
        table._keys, table._starts, table._tokens, table._weights = (arrays[name] for name in kinds)
        table.tokenizer = metadata.get("tokenizer") or None
        if not table._sound():
            raise DataError(f"{path} is a damaged trigram table: its ids or weights are out of range")
        table.check(tokenizer)
        return table

    def check(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Refuses a tokenizer that isn't the table's, where both are known.

        Raises:
            DataError: they differ.
        """
        other = None if tokenizer is None else hash_json(tokenizer.get_vocab())
        if self.tokenizer and other and self.tokenizer != other:
            raise DataError(
                f"the trigram table was made with another tokenizer ({self.tokenizer}, here {other}): "
                "its ids mean other words. Fit a new one."
            )

    def _store(
        self, keys: NDArray[np.int64], tokens: NDArray[np.int64], weights: NDArray[np.float64], keep: int | None = None
    ) -> None:
        """Makes the fitted part from one entry per trigram, in any order: [trigrams] each."""
        order = np.lexsort((tokens, -weights, keys))
        pairs, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)
        if keep is not None:
            order = order[np.arange(len(keys)) - np.repeat(starts, sizes) < keep]
            sizes = np.minimum(sizes, keep)
        self._keys = pairs.astype(np.int64)
        self._starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        self._tokens, self._weights = tokens[order].astype(np.int32), weights[order].astype(np.float32)

    def _merged(self) -> TrigramTable:
        """A table whose fitted part holds what was learned too."""
        learned = np.fromiter(self._learned, np.int64, len(self._learned))
        stays = ~np.repeat(np.isin(self._keys, learned), np.diff(self._starts))
        sizes = [len(weights) for weights in self._learned.values()]
        more = [entry for weights in self._learned.values() for entry in weights.items()]
        whole = TrigramTable(self.vocab, max_keys=self.max_keys)
        whole._store(
            np.concatenate((np.repeat(self._keys, np.diff(self._starts))[stays], np.repeat(learned, sizes))),
            np.concatenate((self._tokens[stays], np.array([token for token, _ in more], dtype=np.int32))),
            np.concatenate((self._weights[stays], np.array([weight for _, weight in more], dtype=np.float32))),
        )
        return whole

    def _sound(self) -> bool:
        keys, starts, tokens, weights = self._keys, self._starts, self._tokens, self._weights
        kinds = [array.dtype.name for array in (keys, starts, tokens, weights)]
        if kinds != ["int64", "int64", "int32", "float32"] or any(a.ndim != 1 for a in (keys, starts, tokens, weights)):
            return False
        return bool(
            len(starts) == len(keys) + 1
            and len(tokens) == len(weights) == starts[-1]
            and starts[0] == 0
            and (np.diff(starts) > 0).all()
            and (np.diff(keys) > 0).all()
            and (keys >= 0).all()
            and (keys < self.vocab**2).all()
            and (tokens >= 0).all()
            and (tokens < self.vocab).all()
            and np.isfinite(weights).all()
            and (weights > 0).all()
        )


def _counted(texts: Iterable[Sequence[int]], vocab: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All trigrams as (first * vocab + second) * vocab + third, ascending, and how often each occurs."""
    codes, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    waiting: list[NDArray[np.int64]] = []
    pending = 0

    def merge() -> None:
        nonlocal codes, counts
        fresh, number = np.unique(np.concatenate(waiting), return_counts=True)
        waiting.clear()
        merged, place = np.unique(np.concatenate((codes, fresh)), return_inverse=True)
        counts = np.bincount(place, np.concatenate((counts, number)), len(merged)).astype(np.int64)
        codes = merged

    for number, text in enumerate(texts):
        ids = np.asarray(text, dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab:
            wrong = int(ids.max() if ids.max() >= vocab else ids.min())
            raise DataError(f"text {number} holds the id {wrong}, outside the vocabulary of {vocab}")
        if len(ids) >= 3:
            waiting.append((ids[:-2] * vocab + ids[1:-1]) * vocab + ids[2:])
            pending += len(ids) - 2
        if pending >= CHUNK:
            merge()
            pending = 0
    if waiting:
        merge()
    return codes, counts
