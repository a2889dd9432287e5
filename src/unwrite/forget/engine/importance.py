"""What importances of texts and images are taken of: each row's loss, or the norm of what the model says of it.

A batch begins with `(inputs, target)`: pixels and labels or regression targets, or a mapping of token ids and attention
mask with token labels (`Work.batches`). So a method that goes by importances has one implementation for both.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.curvature import evaluating, outputs
from ...models.vision_layout import logits_of

if TYPE_CHECKING:
    from ...models.curvature.losses import LabelledBatch
    from .work import Work

__all__ = ["accuracy", "image_loss", "logit_norms", "squared_logit_norms"]


def image_loss(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """Cross-entropy in nats, or the squared error of a regressor, `[rows]`."""
    logits, target = logits_of(model, batch[0]), batch[1]
    if target.is_floating_point():
        return (logits[:, 0] - target).square()  # a column against [rows] would broadcast to [rows, rows]
    return F.cross_entropy(logits, target, reduction="none")


def squared_logit_norms(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """`||f(x)||^2`, `[rows]`, which reads no labels; of texts the mean over all positions but padding."""
    return _over_positions(_outputs(model, batch).square().sum(-1), batch)


def logit_norms(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """`||f(x)||`, `[rows]`, which reads no labels; of texts the mean over all positions but padding."""
    return _over_positions(torch.linalg.vector_norm(_outputs(model, batch), dim=-1), batch)


@torch.no_grad()
def accuracy(work: Work, rows: Sized, size: int) -> float:
    """Share of rows, or of the label tokens of texts, whose largest logit is the label's; in evaluation mode."""
    right = total = 0
    with evaluating(work.model), torch.no_grad():
        for batch in work.batches(rows, size):
            predictions, labels = _outputs(work.model, batch).argmax(-1), batch[1]
            if predictions.dim() == 2:
                predictions, labels = predictions[:, :-1], labels[:, 1:]
            labels = labels.to(predictions.device)
            right += int((predictions == labels).sum())  # no prediction is -100
            total += int((labels != -100).sum())
    work.cost.add(len(rows))
    return right / max(1, total)


def _outputs(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """`[rows, outputs]` of pixels, `[rows, tokens, vocab]` of texts."""
    logits = outputs(model, batch) if isinstance(batch[0], dict) else logits_of(model, batch[0])
    return logits.float() if logits.element_size() < 4 else logits


def _over_positions(values: Tensor, batch: LabelledBatch) -> Tensor:
    if values.dim() == 1:
        return values
    mask = batch[0]["attention_mask"].to(values)  # [rows, tokens]
    return (values * mask).sum(1) / mask.sum(1)
