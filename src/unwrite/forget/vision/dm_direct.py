"""DM-Direct: add to the model's outputs what an attributor predicts would have changed without the forget set.

The prediction alone, which datamodel matching is then trained to: the weights stay, and only rows of the training set and the
holdout can be corrected, for a datamodel says nothing of a row that it wasn't fitted on. (DM-Direct, arXiv 2410.23232)

    f_hat(x) = f(x; theta_0) - multiplier * sum_{i in F} beta_i(x)   for known x,   f(x; theta_0) for others
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import MethodError
from ..base import Guard
from ..engine.checks import require
from ..engine.images.attribution import Attributor, check_change
from ..engine.images.corrected import CorrectedModel, row_keys
from ..engine.images.head_influence import HeadInfluence
from ..engine.images.work import ImageWork

__all__ = ["DMDirect"]


@dataclass(frozen=True, kw_only=True)
class DMDirect(Guard[ImageWork]):
    """Corrects outputs on forget, retain and holdout rows by a predicted change; what it hides is still in the weights.

    Args:
        attributor: as of `DMM`: a datamodel that knows these rows, or None for the influence of the last layer.
        multiplier: of the predicted change, >= 0.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    trains: ClassVar[bool] = False
    attributor: Attributor | None = None
    multiplier: float = 1.0

    def __post_init__(self) -> None:
        require("multiplier", self.multiplier, at_least=0)
        if self.attributor is not None and not isinstance(self.attributor, Attributor):
            raise MethodError(
                f"attributor is {self.attributor!r:.60}, which has no change(work, rows). Fit a datamodel."
            )

    @torch.no_grad()
    def _apply(self, work: ImageWork) -> nn.Module:
        attributor = HeadInfluence() if self.attributor is None else self.attributor
        keys, corrections = [], []
        for rows in self._known(work):
            change = check_change(attributor.change(work, rows), rows, rows.num_outputs, attributor)
            keys.append(row_keys(rows.pixels))
            corrections.append(self.multiplier * change)
        first = _firsts(torch.cat(keys))
        parts = (torch.cat(one).to(work.device)[first] for one in (keys, corrections))
        return CorrectedModel(work.model, *parts).eval()

    @staticmethod
    def _known(work: ImageWork) -> list[Images]:
        return [rows for rows in (work.forget, work.retained, work.holdout) if rows is not None]


def _firsts(keys: Tensor) -> Tensor:
    """Where each number stands first: of rows with the same pixels, forget rows go before others."""
    seen: dict[int, int] = {}
    for place, key in enumerate(keys.tolist()):
        seen.setdefault(key, place)
    return torch.tensor(list(seen.values()))
