"""Terms and draws of methods whose losses are no means over rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..loss import Term

__all__ = ["WholeStep", "row_normals"]


class WholeStep(Term):
    """A value of a whole step, `[]` or `[parts]` to sum, divided by nothing: a penalty, or a sum that is no mean."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(values, ())

    def total(self, counts: Mapping[str, Tensor]) -> Tensor:
        """The sum itself."""
        return self.values.sum()


def row_normals(index: Tensor, width: int, *seed: int) -> Tensor:
    """Standard normal draws `[rows, width]`, float32: each row's own are a function of the seed numbers and its name.

    Args:
        index: the rows' names, `[rows]`.
        seed: whatever tells these draws from others: the seed, the epoch, a number for what they are for.
    """
    keys = [abs(number) for number in seed]
    names = [name % 2**64 for name in index.tolist()]  # names may be negative, keys not
    drawn = [np.random.default_rng([*keys, name]).standard_normal(width, dtype=np.float32) for name in names]
    return torch.from_numpy(np.stack(drawn)).to(index.device)
