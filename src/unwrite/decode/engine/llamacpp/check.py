"""How many rows of llama.cpp agree bit for bit with one, and what they cost: found by trying, once for a file and machine."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..planning.costs import SHAPE, SIZES
from ..runtime import Output
from ..tree import ROOT, DraftTree, Ints

MOST_ROWS = 63  # from 64 on, llama.cpp's attention runs in tiles and its last bits differ
_TIMED = 9  # pairs of a lone row and one with a twin
_REPEATS = 3  # of a forward of several rows, so that one hiccup makes none dear
_SIZES = (2, 3, 5, 8, 13, 21, 34, MOST_ROWS)
_CELLS = 256  # behind so many, llama.cpp splits a lone row's attention between threads


class CheckedRuntime(Protocol):
    """What the check runs its forwards on.

    Attributes:
        vocab: width of the logits.
        twin_from: cached tokens from which a lone row runs beside a twin; None for never.
    """

    vocab: int
    twin_from: int | None

    def prefill(self, rows: Sequence[Ints], room: int) -> Tensor:
        """See `Runtime.prefill`."""

    def forward(self, trees: DraftTree) -> Output:
        """See `Runtime.forward`."""

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """See `Runtime.commit`."""

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` cached tokens."""

    def try_lone(self, token: int, length: int, twin: bool) -> None:
        """Runs one token behind `length` cached ones, with a twin or without, and keeps nothing of it."""


@dataclass(frozen=True)
class Checked:
    """What `check` measured.

    Args:
        rows: the most a forward may have; 1 for plain decoding.
        twin_from: cached tokens from which a lone row needs a twin to agree with more rows; None for never.
        twin_costs: seconds of two rows over seconds of one; 1 where no twin is needed.
        shape: seconds of as many rows as each of `SIZES` over seconds of one, as the check's own forwards took.
    """

    rows: int
    twin_from: int | None
    twin_costs: float = 1.0
    shape: tuple[float, ...] = SHAPE

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Checked:
        """What was stored.

        Raises:
            ValueError, TypeError, KeyError: it is no result of a check.
        """
        rows, twin_from, twin_costs = stored["rows"], stored["twin_from"], float(stored["twin_costs"])
        shape = tuple(float(ratio) for ratio in stored["shape"])
        counts = [rows] if twin_from is None else [rows, twin_from]
        if not all(type(count) is int for count in counts) or not 1 <= rows <= MOST_ROWS or min(counts) < 0:
            raise ValueError(f"{rows} rows, and twins from {twin_from}, are no result of a check")
        if len(shape) != len(SIZES) or not all(0 < one < math.inf for one in (twin_costs, *shape)):
            raise ValueError("its costs are none")
        return cls(rows, twin_from, twin_costs, shape)


def check(runtime: CheckedRuntime, seed: int = 0) -> Checked:
    """Compares forwards of a random tree, cut to several sizes, with its paths decoded one token at a time.

    Twice: within the first 256 cells of the cache, and behind them. What the forwards take is the planner's first belief: where
    two rows cost twice as much as one, learning that from drafts would cost what it saves.
    """
    rows, twin_from = MOST_ROWS, None  # type: int, int | None
    seconds: dict[int, list[float]] = {}
    draw = np.random.default_rng(seed)
    for length, twin_if_needed in ((_CELLS - MOST_ROWS, 0), (_CELLS + 16, _CELLS)):
        prompt = draw.integers(runtime.vocab, size=length)
        tree = _random_tree(draw, runtime.vocab)
        together = _together(runtime, prompt, tree, seconds)
        agreeing = _agreeing(together, _one_by_one(runtime, prompt, tree, twin_from, seconds))
        if agreeing == 1 and twin_from is None:
            twin_from = twin_if_needed
            agreeing = _agreeing(together, _one_by_one(runtime, prompt, tree, twin_from, seconds))
        rows = min(rows, agreeing)
    if rows == 1:
        return Checked(1, None)
    twin_costs = 1.0 if twin_from is None else _twin_costs(runtime, twin_from)
    return Checked(rows, twin_from, twin_costs, _shape(seconds))


def _shape(seconds: Mapping[int, Sequence[float]]) -> tuple[float, ...]:
    """For each of `SIZES`, in seconds of one row: between the sizes that ran in proportion, beyond them on the last slope."""
    rows = sorted(seconds)
    known = np.maximum.accumulate([median(seconds[size]) for size in rows])  # more rows are never cheaper
    slope = (known[-1] - known[-2]) / (rows[-1] - rows[-2])
    sizes = np.array(SIZES, dtype=float)
    seconds_by_size = np.interp(sizes, rows, known) + slope * np.maximum(0, sizes - rows[-1])
    return tuple((seconds_by_size / known[0]).tolist())


def _twin_costs(runtime: CheckedRuntime, length: int) -> float:
    """Seconds of a row with a twin over seconds of a lone one, behind so many cached tokens; medians, in turns."""
    prompt = np.arange(max(2, length)) % runtime.vocab
    runtime.prefill([prompt], 4)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(_TIMED):
        for rows in seconds:
            start = time.perf_counter()
            runtime.try_lone(1, len(prompt), twin=rows == 2)
            seconds[rows].append(time.perf_counter() - start)
            runtime.rewind(len(prompt))
    return median(seconds[2]) / median(seconds[1])


def _random_tree(draw: np.random.Generator, vocab: int) -> DraftTree:
    parents = [ROOT, *(int(draw.integers(max(0, node - 6), node)) for node in range(1, MOST_ROWS))]
    return DraftTree.of(draw.integers(vocab, size=MOST_ROWS), parents)


def _together(runtime: CheckedRuntime, prompt: Ints, tree: DraftTree, seconds: dict[int, list[float]]) -> list[Tensor]:
    """[rows, vocab] of the tree's first nodes, for every size tried; `seconds` gets what each took."""
    runtime.prefill([prompt], MOST_ROWS)
    logits_by_size = []
    for rows in _SIZES:
        for _ in range(_REPEATS):
            start = time.perf_counter()
            logits = runtime.forward(tree.keep(np.arange(rows))).logits[0]
            seconds.setdefault(rows, []).append(time.perf_counter() - start)
            runtime.commit([[]])
        logits_by_size.append(logits)
    return logits_by_size


def _one_by_one(
    runtime: CheckedRuntime, prompt: Ints, tree: DraftTree, twin_from: int | None, seconds: dict[int, list[float]]
) -> Tensor:
    """[nodes, vocab]: every node's logits, decoded alone behind its own path, depth first; `seconds` gets what each took."""
    runtime.prefill([prompt], MOST_ROWS)
    runtime.twin_from = twin_from
    children: list[list[int]] = [[] for _ in range(tree.nodes)]
    for node in range(tree.nodes - 1, 0, -1):
        children[tree.parents[0, node]].append(node)
    logits = torch.empty(tree.nodes, runtime.vocab)
    waiting = [0]
    while waiting:
        node = waiting.pop()
        runtime.rewind(len(prompt) + int(tree.depths[0, node]))
        start = time.perf_counter()
        logits[node] = runtime.forward(DraftTree.of(tree.tokens[0, node : node + 1], [ROOT])).logits[0, 0]
        if twin_from is None:
            seconds.setdefault(1, []).append(time.perf_counter() - start)
        runtime.commit([[0]])
        waiting += children[node]
    runtime.twin_from = None
    return logits


def _agreeing(together: list[Tensor], alone: Tensor) -> int:
    """The largest size up to which all give the lone rows' logits, bit for bit; 1 if not even the smallest does."""
    limit = 1
    for logits in together:
        if not torch.equal(logits, alone[: len(logits)]):
            break
        limit = len(logits)
    return limit
