"""In which orders a shard's slices are trained, what of them a deletion leaves, and how many deletions a plan outlives.

Training in one order makes a chain of increments, each of which saw the slices up to its own. A deletion cuts every order
before the slice it hits, so what counts is which slices come early: orders whose first slices differ die one by one.
(S3T, arXiv 2406.16257, section 4)

    E[uniform slice deletions until every shard is dead] = m L * H(m min(B, L)),   H(n) = 1 + 1/2 + ... + 1/n
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate

import numpy as np

from ...errors import MethodError, setting
from ..engine.checks import require

__all__ = [
    "Order",
    "drawn_orders",
    "expected_deletions",
    "matched_orders",
    "order_score",
    "prefixes",
    "rotated_orders",
    "rotations",
    "simulated_deletions",
    "surviving",
    "truncated",
]

Order = tuple[int, ...]
DRAWS, AT_ONCE = 10_000, 20  # among which different orders are looked for


def rotations(n_slices: int) -> list[Order]:
    """The rotations of 0, 1, ... to the right, a Latin square: no slice stands twice at one place.

    >>> rotations(4)
    [(0, 1, 2, 3), (3, 0, 1, 2), (2, 3, 0, 1), (1, 2, 3, 0)]
    """
    return [tuple((place - turn) % n_slices for place in range(n_slices)) for turn in range(n_slices)]


def rotated_orders(n_slices: int, budget: int) -> list[Order]:
    """As many orders as the budget: the rotations, then those with the first slice kept and the rest rotated, then two kept, ...

    At the full budget, L!, they are all permutations, each once.

    Raises:
        MethodError: a budget below 1 or above L!.
    """
    _check_budget(n_slices, budget)
    orders = rotations(n_slices)
    for kept in range(1, n_slices - 1):
        if len(orders) >= budget:
            break
        turns = range(n_slices - kept)
        orders = [_with_rest_turned(order, kept, turn) for turn in turns for order in orders]
    return orders[:budget]


def matched_orders(probabilities: Sequence[float], budget: int, power: float = 100.0) -> list[Order]:
    """Orders for slices of unequal risk: grown by one slice at a time, by the assignment of slices to orders of the highest score.

    No slice stands twice at one place, as in the rotations; the orders of the highest score come first.

    Args:
        probabilities: that a deletion hits the slice, one a slice.
        budget: how many of the L orders to take.
        power: see `order_score`.

    Raises:
        MethodError: probabilities outside 0 to 1; a budget below 1 or above L.
    """
    from scipy.optimize import linear_sum_assignment

    _check_probabilities(probabilities)
    n_slices = len(probabilities)
    if not 1 <= budget <= n_slices:
        raise MethodError(f"{setting('budget')} is {budget}, and matching makes {n_slices} orders. Take 1 to that.")
    orders: list[Order] = [(first,) for first in range(n_slices)]
    for _ in range(n_slices - 1):
        gains = np.full((n_slices, n_slices), -np.inf)
        for row, order in enumerate(orders):
            for following in set(range(n_slices)) - {*order}:
                gains[row, following] = order_score((*order, following), probabilities, power)
        rows, chosen = linear_sum_assignment(gains, maximize=True)
        orders = [(*orders[row], int(column)) for row, column in zip(rows, chosen, strict=True)]
    return sorted(orders, key=lambda order: -order_score(order, probabilities, power))[:budget]


def order_score(order: Order, probabilities: Sequence[float], power: float = 100.0) -> float:
    """How long an order's prefixes are expected to live: sum_n n (1 - p of its first n slices)^power.

    Args:
        power: the number of deletions that a prefix is to outlive.
    """
    hit = accumulate(probabilities[part] for part in order)
    return sum(length * max(0.0, 1.0 - risk) ** power for length, risk in enumerate(hit, 1))


def drawn_orders(probabilities: Sequence[float], budget: int, seed: int) -> list[Order]:
    """Different orders, each drawn slice by slice in proportion to 1 - p among those left.

    Raises:
        MethodError: probabilities outside 0 to 1; a budget outside 1 to L!, or one that drawing does not reach.
    """
    _check_probabilities(probabilities)
    _check_budget(len(probabilities), budget)
    weights = np.maximum(1.0 - np.array(probabilities), 1e-12)
    # Who arrives first, at these rates, is drawn in proportion to them; so is who comes next among those left.
    generator, drawn = np.random.default_rng(seed), dict[Order, None]()
    for _ in range(DRAWS // AT_ONCE):
        arrivals = generator.exponential(size=(AT_ONCE, len(weights))) / weights
        drawn |= dict.fromkeys(tuple(map(int, row)) for row in arrivals.argsort(axis=1))
        if len(drawn) >= budget:
            break
    orders = list(drawn)[:budget]
    if len(orders) < budget:
        raise MethodError(
            f"{setting('budget')} is {budget}, and {DRAWS:,} draws gave {len(orders)} different orders. Lower it, or take "
            f"{setting('orders', 'rotation')}."
        )
    return orders


def prefixes(orders: Iterable[Order]) -> list[Order]:
    """The distinct non-empty beginnings of the orders, each behind its own: the stages to train, shared where orders agree."""
    return list(dict.fromkeys(order[:length] for order in orders for length in range(1, len(order) + 1)))


def truncated(order: Order, deleted: int) -> Order:
    """The order before a slice; whole where that slice isn't in it.

    >>> truncated((2, 0, 3, 1), 3)
    (2, 0)
    """
    return order[: order.index(deleted)] if deleted in order else order


def surviving(orders: Iterable[Order], deleted: Collection[int]) -> list[Order]:
    """What deletions of slices leave of the orders: their beginnings before the first deleted slice; empty ones are dropped."""
    left: list[Order] = []
    for order in orders:
        for one in deleted:
            order = truncated(order, one)
        if order:
            left.append(order)
    return left


def expected_deletions(n_shards: int, n_slices: int, budget: int) -> float:
    """How many uniform slice deletions, repeats counted, it takes until every shard is dead: m L * H(m min(B, L)).

    A shard dies with the last of its orders' first slices, so all of m min(B, L) slices must be hit; a budget above L buys
    longer prefixes, not a longer life.
    """
    coupons = n_shards * min(budget, n_slices)
    return n_shards * n_slices * math.fsum(1 / n for n in range(1, coupons + 1))


def simulated_deletions(n_shards: int, orders: Sequence[Order], runs: int, seed: int = 0) -> np.ndarray:
    """The same by simulation: `[runs]`, slices deleted at random until no shard has a prefix left."""
    generator = np.random.default_rng(seed)
    n_slices = len(orders[0])
    places = np.argsort(np.array(orders), axis=1)  # [orders, slices]: where each order has each slice
    lengths = np.full((runs, n_shards, len(orders)), n_slices)
    count = np.zeros(runs, dtype=np.int64)
    while (alive := np.flatnonzero(lengths.any(axis=(1, 2)))).size:
        shard = generator.integers(n_shards, size=alive.size)
        part = generator.integers(n_slices, size=alive.size)
        lengths[alive, shard] = np.minimum(lengths[alive, shard], places[:, part].T)
        count[alive] += 1
    return count


def _with_rest_turned(order: Order, kept: int, turn: int) -> Order:
    rest = order[kept:]
    return order[:kept] + rest[len(rest) - turn :] + rest[: len(rest) - turn]


def _check_budget(n_slices: int, budget: int) -> None:
    most = math.factorial(n_slices)
    if not 1 <= budget <= most:
        raise MethodError(
            f"{setting('budget')} is {budget}, and {n_slices} slices have {most:,} orders. Take 1 to that."
        )


def _check_probabilities(probabilities: Sequence[float]) -> None:
    for one in probabilities:
        require("probabilities", one, at_least=0, at_most=1)
