"""What an objective sees of a step on images, with the face that a step on texts has.

A row's nll is its cross-entropy, its tokens are one, its positions one; so what reads nll and logits alone (gradient
ascent, NPO) forgets texts and images by the same lines. For regressors `outputs` are the predictions and there is no nll.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ....data.images.images import Images
from ....errors import MethodError
from ..batch import PairedBatch
from ..loss import Loss, PerRow

__all__ = ["ImagePart", "PairedImages", "Table", "add_losses", "outputs_loss"]


@dataclass
class ImagePart:
    """The rows of one kind in a step, after the forward pass.

    Args:
        index: the rows' own names, `[rows]`.
        pixels: `[rows, channels, height, width]`
        target: labels or regression targets, `[rows]`.
        epoch: how many passes over data were begun before this one, over all phases.
        logits: `[rows, outputs]`; for a regressor `[rows, 1]`.
        features: what goes into the head, `[rows, dim]`, where asked for.
        blocks: what comes out of each block before the head, where asked for.
        reference: cross-entropy under the model before unlearning, `[rows]`, or None.
        reference_logits, reference_features: of the model before unlearning, in evaluation mode, or None.
    """

    index: Tensor
    pixels: Tensor
    target: Tensor
    epoch: int = 0
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    features: Tensor | None = None
    blocks: tuple[Tensor, ...] = ()
    reference: Tensor | None = None
    reference_logits: Tensor | None = None
    reference_features: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """`[rows]`, int64.

        Raises:
            MethodError: regression targets.
        """
        if self.target.is_floating_point():
            raise MethodError("these rows have regression targets, not labels. Use a method for regressors.")
        return self.target

    @property
    def targets(self) -> Tensor:
        """The labels, under the name they have in texts."""
        return self.labels

    @property
    def token_nll(self) -> Tensor:
        """Cross-entropy of each row, `[rows]`, in nats."""
        return F.cross_entropy(self.logits.float(), self.labels, reduction="none")

    @property
    def nll(self) -> Tensor:
        """The same: an image has one label, as an answer of one token has."""
        return self.token_nll

    @property
    def tokens(self) -> Tensor:
        """Ones, `[rows]`."""
        return torch.ones_like(self.index)

    @property
    def outputs(self) -> Tensor:
        """Predictions of a regressor, `[rows]`.

        Raises:
            MethodError: a model with more outputs.
        """
        if self.logits.shape[1] != 1:
            raise MethodError(f"the model has {self.logits.shape[1]} outputs; a regressor has one.")
        return self.logits[:, 0]


PairedImages = PairedBatch[ImagePart]  # what a loss on images sees


@dataclass(frozen=True)
class Table:
    """Values of rows, found by the rows' names.

    Args:
        index: `[rows]`, sorted.
        values: `[rows, ...]`.
    """

    index: Tensor
    values: Tensor

    @classmethod
    def of(cls, rows: Images, values: Tensor) -> Table:
        """`values[i]` belongs to row i of `rows`."""
        order = torch.argsort(rows.index)
        return cls(rows.index[order].to(values.device), values[order.to(values.device)])

    def at(self, index: Tensor) -> Tensor:
        """`[len(index), ...]`"""
        return self.values[torch.searchsorted(self.index, index)]


def outputs_loss(part: ImagePart) -> Tensor:
    """What an ordinary training minimises, each row's, `[rows]`: cross-entropy, or the absolute error of a regressor."""
    if part.target.is_floating_point():
        return (part.outputs - part.target).abs()
    return part.token_nll


def add_losses(batch: PairedImages) -> Loss:
    """The ordinary loss of all rows of a step together, whatever parts they are of."""
    parts = {name: PerRow(outputs_loss(part), "all") for name, part in batch.present()}
    return Loss({}, **parts)
