"""What a method chose to change of an image model, as something an audit is given to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..base import Exhibit
from ..context import Context
from ..report.parts import Picture
from .context import ImageContext
from .pictures import selection_picture

__all__ = ["Selection"]


@dataclass(frozen=True, eq=False)
class Selection(Exhibit):
    """`evaluate(..., references={"selected": Selection(shares)})` draws what a method selected.

    Args:
        shares: by parameter name a share in 0..1, or booleans a weight: `changed_weights(before, model)`, or
            `SSD().select(before, forget, retain).shares`.
    """

    shares: Mapping[str, float | Tensor]
    reads: ClassVar[type[Context]] = ImageContext

    def pictures(self, contexts: Mapping[str, ImageContext]) -> Sequence[Picture]:
        return [selection_picture(contexts.get("before", contexts["after"]).model, self.shares)]
