"""The order of rows: which forget row, which retain partner, which refusal, as pure functions of (seed, epoch, row).

Nothing depends on a random state that training moves, so a run that is killed and resumed sees the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ...data.text.encoding import Encoded, pad

Stream = Literal["forget", "retain", "paired", "covering", "mixed", "union"]
Key = tuple[int, int]  # (epoch, row)
Item = dict[str, Encoded]


def permutation(n: int, *seed: int) -> np.ndarray:
    """A permutation of range(n) that is a function of the seed numbers alone."""
    return np.random.default_rng([abs(s) for s in seed]).permutation(n)


def partner(seed: int, epoch: int, index: int, forget: int, retain: int) -> int:
    """The retain row that goes with forget row `index` in `epoch`; with the two numbers of rows swapped, the other way.

    Successive draws walk through fresh permutations of the retain set, so it is covered evenly.

    >>> sorted(partner(0, e, i, 2, 4) for e in range(2) for i in range(2))
    [0, 1, 2, 3]
    """
    draw = epoch * forget + index
    return int(_walk(retain, seed, draw // retain)[draw % retain])


@lru_cache(maxsize=4)
def _walk(rows: int, seed: int, number: int) -> np.ndarray:
    return permutation(rows, seed, 1, number)


def epoch_order(stream: Stream, forget: int, retain: int, seed: int, epoch: int) -> list[int]:
    """Row numbers of one epoch; where a stream brings both kinds one by one, retain rows are numbered after forget rows."""
    if stream == "mixed":
        return interleave(
            permutation(forget, seed, 2, epoch).tolist(), (forget + permutation(retain, seed, 3, epoch)).tolist()
        )
    rows = {"retain": retain, "covering": retain, "union": forget + retain}.get(stream, forget)
    return permutation(rows, seed, 2, epoch).tolist()


def interleave(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Each element of the shorter list followed by round(long / short) of the longer; leftovers dropped.

    (ULD's batch order, arXiv 2406.08607: every batch holds both kinds.)
    """
    short, long = (first, second) if len(first) <= len(second) else (second, first)
    step = max(1, round(len(long) / len(short)))
    order: list[int] = []
    for i, element in enumerate(short):
        order += [element, *long[i * step : (i + 1) * step]]
    return order


class UnlearnRows(Dataset[Item]):
    """Rows by (epoch, row): a dict of the parts that the stream brings together."""

    def __init__(
        self,
        stream: Stream,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded] = (),
        alternate: Sequence[Encoded] = (),
        seed: int = 0,
    ) -> None:
        self.stream, self.seed = stream, seed
        self.forget, self.retain, self.alternate = forget, retain, alternate
        self._order: dict[int, list[int]] = {}

    def order(self, epoch: int) -> list[int]:
        """Row numbers of one epoch, see `epoch_order`."""
        if epoch not in self._order:
            rows = epoch_order(self.stream, len(self.forget), len(self.retain), self.seed, epoch)
            self._order = {epoch: rows}
        return self._order[epoch]

    def __len__(self) -> int:
        return len(self.order(0))

    def __getitem__(self, key: Key) -> Item:
        epoch, row = key
        if self.stream == "retain":
            return {"retain": self.retain[row]}
        if self.stream in ("mixed", "union") and row >= len(self.forget):
            return {"retain": self.retain[row - len(self.forget)]}
        if self.stream == "covering":
            index = partner(self.seed, epoch, row, len(self.retain), len(self.forget))
            item = {"forget": self.forget[index], "retain": self.retain[row]}
        else:
            item = {"forget": self.forget[row]}
            index = row
        if self.alternate:
            item["alternate"] = self.alternate[index]
        if self.stream == "paired" and self.retain:
            item["retain"] = self.retain[partner(self.seed, epoch, row, len(self.forget), len(self.retain))]
        return item

    def retain_rows(self, epochs: int) -> list[int]:
        """Which retain rows the given number of epochs touches."""
        if self.stream == "paired":
            n, r = len(self.forget), len(self.retain)
            return sorted({partner(self.seed, e, i, n, r) for e in range(epochs) for i in range(n)})
        return list(range(len(self.retain)))


class EpochSampler(Sampler[Key]):
    """Yields (epoch, row) in the dataset's own order; the trainer tells it the epoch."""

    def __init__(self, rows: UnlearnRows) -> None:
        self.rows, self.epoch = rows, 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, also after a resume."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Key]:
        return iter([(self.epoch, row) for row in self.rows.order(self.epoch)])

    def __len__(self) -> int:
        return len(self.rows)


class Collator:
    """Items to {part: {input_ids, attention_mask, labels: [rows, length], index: [rows]}}, right-padded."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Item]) -> dict[str, dict[str, torch.Tensor]]:
        parts: dict[str, Any] = {}
        for item in items:
            for name, row in item.items():
                parts.setdefault(name, []).append(row)
        return {name: pad(rows, self.pad_id) for name, rows in parts.items()}
