"""Where private mechanisms take their chance from: a generator with a seed, or the operating system.

Whoever knows the seed can draw the noise again and take it off. A seed is for experiments and tests; what is given to others takes the
operating system's numbers.
"""

from __future__ import annotations

import math
import os
import secrets
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...runs import hash_json

__all__ = ["Chance"]

_FINE = 53  # bits of a uniform number


class Chance:
    """Samples, noise and choices.

    Args:
        seed: of what is drawn; without meaning where `secure`.
        secure: draw from the operating system.
    """

    def __init__(self, seed: int, secure: bool = False) -> None:
        self.seed, self.secure = seed, secure
        self.generator = torch.Generator().manual_seed(seed)
        self._choices = torch.Generator().manual_seed(seed * 1_000_003 + 1)

    def at(self, step: int) -> None:
        """Begins a step: what is drawn in it depends on the seed and its number alone, wherever a training was interrupted."""
        for name, generator in (("noise", self.generator), ("choices", self._choices)):
            generator.manual_seed(int(hash_json([name, self.seed, step]), 16) >> 1)

    def chosen(self, records: int, q: float) -> list[int]:
        """A Poisson sample: each record with probability q, on its own; often another number of them, and perhaps none."""
        if self.secure:
            bound = round(q * 2**_FINE)
            return [record for record in range(records) if secrets.randbits(_FINE) < bound]
        drawn = torch.rand(records, generator=self._choices, dtype=torch.float64)
        numbers: list[int] = torch.nonzero(drawn < q)[:, 0].tolist()
        return numbers

    def normal(self, std: float, shape: torch.Size) -> Tensor:
        """Gaussian noise in float32. From the system, four draws make one, so that their rounding gives nothing away
        (arXiv 2107.10138)."""
        if std == 0:
            return torch.zeros(shape)
        if not self.secure:
            return torch.normal(0.0, std, shape, generator=self.generator)
        total = sum(_system_normal(math.prod(shape)) for _ in range(4))
        return torch.from_numpy((total * (std / 2)).astype(np.float32)).reshape(shape)

    def one_of(self, probabilities: Tensor) -> int:
        """The number of one outcome. probabilities: [outcomes], in float64, of sum 1."""
        if not self.secure:
            return int(torch.multinomial(probabilities, 1, generator=self._choices))
        point = secrets.randbits(_FINE) / 2**_FINE
        passed = int(torch.searchsorted(probabilities.cumsum(0), torch.tensor(point, dtype=torch.float64), right=True))
        return min(passed, len(probabilities) - 1)


def _system_normal(count: int) -> Any:
    """Standard normal numbers from the operating system's generator, by Box and Muller."""
    pairs = (count + 1) // 2
    bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64).reshape(2, pairs) >> np.uint64(11)
    radius = np.sqrt(-2 * np.log((bits[0] + 1) / 2.0**_FINE))
    angle = 2 * np.pi * (bits[1] / 2.0**_FINE)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
