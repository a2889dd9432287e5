"""How far a secret stands out among all it might have been: Carlini et al.'s exposure (arXiv 1802.08232).

    exposure = log2 |R| - log2 rank(secret among R),   by log-likelihood

0 to log2 |R| bits. A secret that was never read has any rank as likely as any other: 1.44 bits on average.
"""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["CHANCE", "exposure"]

CHANCE = 1 / math.log(2)  # what a secret that nobody knows has on average, for many possible ones


def exposure(likelihoods: Tensor, secret: int) -> float:
    """The exposure of one secret, in bits.

    Args:
        likelihoods: log-likelihood of everything that the secret might have been. [possible]
        secret: which of them it is. Those as likely as it share the middle of their ranks.
    """
    own = likelihoods[secret]
    above, same = int((likelihoods > own).sum()), int((likelihoods == own).sum())
    return math.log2(len(likelihoods)) - math.log2(above + (same + 1) / 2)
