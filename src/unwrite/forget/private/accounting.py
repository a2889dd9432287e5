"""What private training costs: (epsilon, delta) of the subsampled Gaussian mechanism, by its Renyi divergences.

A step takes each record with probability q, sums the clipped gradients and adds Gaussian noise of sigma times the clip norm. With one
record more, the sum of a step is at worst a mixture of two Gaussians a clip norm apart, whose divergence of order alpha is an integral
over one variable; divergences add up over steps. (Mironov et al., arXiv 1908.10530; into epsilon by arXiv 2004.00010, proposition 12)

    rdp(alpha) = steps / (alpha - 1) * log E_{z ~ N(0, sigma^2)} [ (1 - q + q exp((2z - 1) / (2 sigma^2)))^alpha ]
    epsilon    = min over alpha of  rdp(alpha) + log(1 - 1/alpha) - (log delta + log alpha) / (alpha - 1)

Two data sets are neighbours where one has a record that the other lacks. A record is one example: a person in five records is in five.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...errors import MethodError, setting

__all__ = ["ORDERS", "GroupPrivacy", "epsilon_of", "group_privacy", "noise_for", "renyi_divergence", "second_opinions"]

ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *map(float, range(11, 64)), 128.0, 256.0, 512.0, 1024.0)
_POINTS = 8  # of the integral, a standard deviation of the noise: the trapezoid rule is exact to the last bits
_REACH = 12  # deviations beyond which nothing counts
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e6
AGREEMENT = 0.02  # how far two accountants may lie apart


def renyi_divergence(q: float, sigma: float, order: float) -> float:
    """The Renyi divergence of one step, in nats.

    Args:
        q: probability with which a record is in the step, 0 to 1.
        sigma: standard deviation of the noise over the clip norm, > 0.
        order: alpha, > 1.
    """
    if q == 0:
        return 0.0
    if q == 1:
        return order / (2 * sigma**2)
    step = sigma / _POINTS
    z = np.arange(-_REACH * sigma, order + _REACH * sigma, step)
    density = -0.5 * (z / sigma) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(sigma)
    ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * z - 1) / (2 * sigma**2))
    terms = density + order * ratio
    peak = float(terms.max())
    return max(0.0, peak + math.log(float(np.exp(terms - peak).sum()) * step)) / (order - 1)


def epsilon_of(q: float, sigma: float, steps: int, delta: float) -> float:
    """The epsilon that `steps` steps spend at this delta; infinite without noise.

    Raises:
        MethodError: a delta outside (0, 1), a q outside [0, 1], negative noise or steps.
    """
    if not 0 < delta < 1:
        raise MethodError(f"{setting('delta')} is {delta}; it must be above 0 and below 1.")
    if not 0 <= q <= 1 or not sigma >= 0 or steps < 0:
        raise MethodError(
            f"q={q}, sigma={sigma}, steps={steps} is no private training: q is 0 to 1, the others at least 0."
        )
    if steps == 0 or q == 0:
        return 0.0
    if sigma == 0:
        return math.inf
    epsilons = [
        steps * renyi_divergence(q, sigma, order)
        + math.log1p(-1 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in ORDERS
    ]
    return max(0.0, min(epsilons))


def noise_for(epsilon: float, delta: float, q: float, steps: int, tolerance: float = 1e-3) -> float:
    """The least sigma with which `steps` steps spend at most `epsilon`; 0 for an infinite one.

    Args:
        tolerance: how far below the target, as a share of it, the epsilon may end.

    Raises:
        MethodError: an epsilon that is not positive; one that no noise reaches.
    """
    if not epsilon > 0:
        raise MethodError(
            f"{setting('epsilon')} is {epsilon}; it must be above 0. Smaller is more private: 1 to 8 are common."
        )
    if math.isinf(epsilon):
        return 0.0
    low, high = 0.0, 1.0
    while epsilon_of(q, high, steps, delta) > epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise MethodError(
                f"no noise reaches {setting('epsilon', epsilon)} in {steps} steps. Take fewer, or a larger one."
            )
    while high > _LEAST_NOISE:
        spent = epsilon_of(q, high, steps, delta)
        if spent >= (1 - tolerance) * epsilon:
            break
        middle = (low + high) / 2
        if epsilon_of(q, middle, steps, delta) > epsilon:
            low = middle
        else:
            high = middle
        if high - low < 1e-9 * high:
            break
    return high


@dataclass(frozen=True)
class GroupPrivacy:
    """What (epsilon, delta) for one record gives for several at once.

    Args:
        records: how many.
        epsilon, delta: of the whole group; a delta above 1 is cut there.
        empty: whether it says nothing: delta is 1, or epsilon is infinite.
    """

    records: int
    epsilon: float
    delta: float
    empty: bool


def group_privacy(epsilon: float, delta: float, records: int) -> GroupPrivacy:
    """(k epsilon, k exp((k - 1) epsilon) delta) for k records; delta stays 0 where it is 0.

    Raises:
        MethodError: fewer than one record.
    """
    if records < 1:
        raise MethodError(f"a group has at least one record, not {records}.")
    whole = records * epsilon
    exponent = (records - 1) * epsilon + math.log(records) + math.log(delta) if delta > 0 else -math.inf
    together = 0.0 if delta == 0 else 1.0 if not exponent < 0 else math.exp(exponent)
    return GroupPrivacy(records, whole, together, math.isinf(whole) or together >= 1)


def second_opinions(q: float, sigma: float, steps: int, delta: float) -> Mapping[str, float]:
    """The epsilon by ours, and by opacus and dp-accounting where they are installed.

    Raises:
        MethodError: ours says less than another by more than 2 %: a guarantee that two accountants don't share is none.
    """
    opinions = {"unwrite": epsilon_of(q, sigma, steps, delta)}
    for name, ask in (("opacus", _opacus), ("dp-accounting", _dp_accounting)):
        try:
            opinions[name] = float(ask(q, sigma, steps, delta))
        except ImportError:
            continue
    if (most := max(opinions.values())) > opinions["unwrite"] * (1 + AGREEMENT) and math.isfinite(most):
        raise MethodError(
            f"the accountants disagree on sigma {sigma:g}: {', '.join(f'{who} {what:.4g}' for who, what in opinions.items())}. "
            "Take another number of steps or noise, and report it."
        )
    return opinions


def _opacus(q: float, sigma: float, steps: int, delta: float) -> float:
    from opacus.accountants.analysis import rdp

    spent = rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=ORDERS)
    return float(rdp.get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)[0])


def _dp_accounting(q: float, sigma: float, steps: int, delta: float) -> float:
    """By privacy loss distributions, which are tighter than Renyi divergences."""
    import dp_accounting
    from dp_accounting import pld

    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    accountant = pld.PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    return float(accountant.get_epsilon(delta))
