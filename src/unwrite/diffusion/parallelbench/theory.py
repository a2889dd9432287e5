"""What parallel decoding must lose: a bound in bits, and what a perfect model still gets right.

Tokens revealed in one step are drawn independently, so their dependence is lost. For positions S_1 .. S_T revealed in turn

    min KL(data || written) = L_T = sum_i E_{S_<i} [ C(S_i | S_<i) ],     C(S | Z) = sum_{y in S} H(y | Z) - H(S | Z)

with equality for exact marginals (ParallelBench, arXiv 2510.04767). Here by enumeration of any joint distribution, and in
closed form for lists of n distinct items. Entropies are in bits.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import MethodError, unknown

Outcome = Sequence[Hashable]
DETERMINED = ("copy", "sort", "reverse", "insert_index", "remove_index", "replace_index")  # one right answer
CLOSED = (*DETERMINED, "replace_random", "shuffle")
MOST_POSITIONS = 16  # whose subsets `optimal_bound` goes through


@dataclass(frozen=True, eq=False)
class Joint:
    """A distribution over sequences of one length, with the entropies of its parts.

    Args:
        outcomes: [outcomes, n] small non-negative integers, no row twice.
        probabilities: [outcomes], positive, with the sum 1.

    Raises:
        MethodError: arrays of other shapes, probabilities that do not sum to 1.
    """

    outcomes: np.ndarray
    probabilities: np.ndarray
    _codes: dict[frozenset[int], np.ndarray] = field(default_factory=dict, repr=False)
    _entropies: dict[frozenset[int], float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.outcomes.ndim != 2 or not self.outcomes.size or self.probabilities.shape != self.outcomes.shape[:1]:
            raise MethodError(
                f"outcomes have the shape {self.outcomes.shape} and probabilities {self.probabilities.shape}. "
                "Give [outcomes, n] with n > 0, and one probability for each outcome."
            )
        if self.outcomes.min() < 0:
            raise MethodError(
                f"outcomes hold {self.outcomes.min()}. Number the tokens from 0, or pass a dict to Joint.of."
            )
        total = float(self.probabilities.sum())
        if not (self.probabilities > 0).all() or abs(total - 1) > 1e-9:
            raise MethodError(f"the probabilities sum to {total:.6g}. Give positive ones that sum to 1.")

    @classmethod
    def of(cls, joint: Joint | Mapping[Any, float]) -> Joint:
        """From {outcome: probability}, where an outcome is a sequence of tokens; outcomes of probability 0 are left out."""
        if isinstance(joint, Joint):
            return joint
        probabilities = {tuple(outcome): p for outcome, p in joint.items() if p != 0}
        lengths = {len(outcome) for outcome in probabilities}
        if len(lengths) != 1:
            raise MethodError(f"outcomes have lengths {sorted(lengths)}. Give at least one, all of one length.")
        ids: dict[Hashable, int] = {}
        rows = [[ids.setdefault(token, len(ids)) for token in outcome] for outcome in probabilities]
        return cls(np.asarray(rows), np.asarray(list(probabilities.values()), dtype=float))

    @property
    def length(self) -> int:
        """Positions of an outcome."""
        return self.outcomes.shape[1]

    def codes(self, positions: frozenset[int]) -> np.ndarray:
        """[outcomes] numbers from 0 that tell apart what stands at these positions."""
        if positions not in self._codes:
            if len(positions) == self.length:
                codes = np.arange(len(self.outcomes), dtype=np.int32)
            elif len(positions) < 2:
                codes = _numbered(
                    self.outcomes[:, min(positions)] if positions else np.zeros(len(self.outcomes), np.int8)
                )
            else:
                last = max(positions)
                before, own = self.codes(positions - {last}), self.codes(frozenset({last}))
                codes = _numbered(before.astype(np.int64) * (int(own.max()) + 1) + own)
            self._codes[positions] = codes
        return self._codes[positions]

    def marginal(self, positions: frozenset[int]) -> np.ndarray:
        """[codes] probability of each of them."""
        return np.bincount(self.codes(positions), weights=self.probabilities)

    def entropy(self, positions: frozenset[int]) -> float:
        """H of what stands at these positions."""
        if positions not in self._entropies:
            p = self.marginal(positions)
            p = p[p > 0]
            self._entropies[positions] = float(-(p * np.log2(p)).sum())
        return self._entropies[positions]

    def lost(self, revealed: frozenset[int], together: frozenset[int]) -> float:
        """E_{revealed} [ C(together | revealed) ]."""
        before = self.entropy(revealed)
        single = sum(self.entropy(revealed | {y}) - before for y in together)
        return single - (self.entropy(revealed | together) - before)


def total_correlation(joint: Joint | Mapping[Any, float]) -> float:
    """C(Y) in bits: what writing all positions at once loses. joint: {outcome: probability}."""
    joint = Joint.of(joint)
    return joint.lost(frozenset(), frozenset(range(joint.length)))


def lower_bound(joint: Joint | Mapping[Any, float], partition: Sequence[Sequence[int]]) -> float:
    """L_T in bits for the positions revealed in each step, in order.

    Raises:
        MethodError: a position that is missing, repeated or outside.
    """
    joint = Joint.of(joint)
    steps = _steps(joint, partition)
    return sum(joint.lost(before, together) for before, together in steps)


def optimal_bound(joint: Joint | Mapping[Any, float], steps: int) -> float:
    """The smallest L_T of any ordered partition into that many steps, over all of them.

    Raises:
        MethodError: steps outside 1 to n, or too many positions to go through their subsets.
    """
    joint = Joint.of(joint)
    n = joint.length
    if not 1 <= steps <= n:
        raise MethodError(f"steps is {steps}; with {n} positions use 1 to {n}.")
    if n > MOST_POSITIONS:
        raise MethodError(
            f"the outcomes have {n} positions, and all their subsets are tried. Use at most {MOST_POSITIONS}."
        )
    subsets = [frozenset(place for place in range(n) if bits >> place & 1) for bits in range(1 << n)]
    best = [0.0] + [math.inf] * (len(subsets) - 1)  # the least that is lost when exactly this subset is revealed
    for _ in range(steps):
        after = [math.inf] * len(subsets)
        for bits in range(1, len(subsets)):
            together = bits
            while together:  # every non-empty part of the subset as the last step
                before = bits ^ together
                if best[before] < math.inf:
                    after[bits] = min(after[bits], best[before] + joint.lost(subsets[before], subsets[together]))
                together = (together - 1) & bits
        best = after
    return best[-1]


def written_right(
    joint: Joint | Mapping[Any, float], partition: Sequence[Sequence[int]], greedy: bool = False
) -> float:
    """The probability that exact marginals, drawn from step by step, give an outcome that the joint has.

    Args:
        joint: {outcome: probability}.
        partition: the positions revealed in each step.
        greedy: take the likeliest token of each position (of equal ones any) instead of drawing one.
    """
    joint = Joint.of(joint)
    right = np.ones(len(joint.probabilities))
    for before, together in _steps(joint, partition):
        context = joint.codes(before)
        for place in together:
            here = joint.codes(before | {place})
            p = joint.marginal(before | {place})
            group = np.zeros(len(p), dtype=np.int64)
            group[here] = context  # which context each continuation belongs to
            if greedy:
                most = np.zeros(int(context.max()) + 1)
                np.maximum.at(most, group, p)
                p = (p >= most[group] * (1 - 1e-12)).astype(float)
            right *= p[here] / np.bincount(group, weights=p)[context]
    return float(right.sum())


def _numbered(values: np.ndarray) -> np.ndarray:
    """Non-negative integers replaced by their ranks, without sorting what may be millions of them."""
    present = np.zeros(int(values.max()) + 1, dtype=bool)
    present[values] = True
    return (np.cumsum(present, dtype=np.int32) - 1)[values]


def _steps(joint: Joint, partition: Sequence[Sequence[int]]) -> list[tuple[frozenset[int], frozenset[int]]]:
    """What is revealed before each step, and in it."""
    flat = [place for part in partition for place in part]
    if sorted(flat) != list(range(joint.length)):
        raise MethodError(f"the partition {partition!r} does not hold every position 0 to {joint.length - 1} once.")
    parts = [frozenset(part) for part in partition]
    return [(frozenset().union(*parts[:at]), part) for at, part in enumerate(parts) if part]


def correlation(task: str, n: int) -> float:
    """C(Y) of a list operation on n distinct items.

    Replace-Random: (n - 1)(log2 n - log2(n - 1)), towards log2 e. Shuffle: n log2 n - log2 n!, without bound.
    """
    return bound(task, n, n)


def bound(task: str, n: int, k: int) -> float:
    """L_T of a list operation with k positions a step."""
    _checked(task, n, k)
    if task == "shuffle":
        return sum(k * math.log2(left) for left in range(n, 0, -k)) - math.log2(math.factorial(n))
    if task == "replace_random":
        # With m positions left the new item is among them with probability m / n; each has it with 1 / m.
        return sum(m / n * (k * _binary(1 / m) - _binary(k / m) - k / m * math.log2(k)) for m in range(n, 0, -k))
    return 0.0


def accuracy(task: str, n: int, k: int, greedy: bool = False) -> float:
    """How often a perfect model is right with k positions a step, in whatever order.

    Args:
        task: a list operation that has a closed form.
        n: items.
        k: positions a step; divides n.
        greedy: the likeliest token of each position, ties broken at random, instead of a draw.
    """
    _checked(task, n, k)
    if task == "shuffle":  # greedy draws as well: what is left is equally likely
        return math.prod(math.perm(left, k) / left**k for left in range(n, 0, -k))
    if task != "replace_random":
        return 1.0
    if greedy:  # the old items are likelier until two positions are left
        return {1: 1.0, 2: 0.5}.get(k, 0.0)
    right, none_yet = 0.0, 1.0
    for m in range(n, 0, -k):
        right += none_yet * k / m * ((m - 1) / m) ** (k - 1)
        none_yet *= ((m - 1) / m) ** k
    return right


def threshold_accuracy(task: str, n: int, gamma: float, inclusive: bool = False) -> float:
    """How often a perfect greedy model is right that reveals all positions surer than gamma, and always one.

    Args:
        task: a list operation that has a closed form.
        n: items.
        gamma: the threshold.
        inclusive: reveal at exactly gamma too, as `Threshold` and Fast-dLLM do; the paper's rule does not.
    """
    _checked(task, n, 1)
    if task not in ("shuffle", "replace_random"):
        return 1.0

    def passes(confidence: float) -> bool:
        return confidence >= gamma if inclusive else confidence > gamma

    for m in range(n, 1, -1):  # positions left
        sure = 1 / m if task == "shuffle" else max(1 / m, (m - 1) / m)
        if passes(sure):  # all of them, in this step
            return accuracy(task, m, m, greedy=True)
    return 1.0


def _binary(p: float) -> float:
    """Entropy of a coin."""
    return 0.0 if p <= 0 or p >= 1 else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def _checked(task: str, n: int, k: int) -> None:
    if task not in CLOSED:
        raise MethodError(unknown("closed form", task, CLOSED))
    least = 2 if task == "shuffle" else 1
    if n < least:
        raise MethodError(f"a {task} list has {n} items; use at least {least}.")
    if k < 1 or n % k:
        raise MethodError(f"k is {k}, which does not divide {n} items. The closed forms take equal steps.")
