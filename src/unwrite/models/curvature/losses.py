"""The losses that importances are usually taken of, each row's own; a batch is `(inputs, labels)`.

`inputs` are a tensor, or a mapping of arguments for the model; what comes back has `.logits`, or is logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "LabelledBatch",
    "cross_entropy",
    "logit_norm",
    "next_token",
    "outputs",
    "squared_error",
    "squared_logit_norm",
]

LabelledBatch = tuple[Tensor | Mapping[str, Any], Tensor, *tuple[Any, ...]]  # inputs, labels, and what else comes along


def outputs(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """What the model says of a batch's inputs: `[rows, ...]`, on its own device."""
    inputs = batch[0]
    device = next(model.parameters()).device
    if isinstance(inputs, Mapping):
        output = model(
            **{key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        )
    else:
        output = model(inputs.to(device))
    return getattr(output, "logits", output)


def cross_entropy(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """Of classifiers, in nats; labels `[rows]`."""
    logits = outputs(model, batch)
    return F.cross_entropy(logits, batch[1].to(logits.device), reduction="none")


def squared_error(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """Of regressors, the mean over a row's outputs; labels in the outputs' shape."""
    predictions = outputs(model, batch)
    return (predictions - batch[1].to(predictions.device)).square().flatten(1).mean(1)


def squared_logit_norm(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """`||f(x)||^2`: LFSSD's loss (arXiv 2402.19308), which reads no labels."""
    return outputs(model, batch).flatten(1).square().sum(1)


def logit_norm(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """`||f(x)||`: Potion's loss (arXiv 2406.09173), which reads no labels."""
    return torch.linalg.vector_norm(outputs(model, batch).flatten(1), dim=1)


def next_token(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """Of causal language models: the mean over a row's labelled tokens, in nats; labels `[rows, tokens]`, -100 for none.

    A row without a label has loss 0.
    """
    logits, labels = outputs(model, batch)[:, :-1], batch[1][:, 1:]
    labels = labels.to(logits.device)
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return nll.sum(1) / (labels != -100).sum(1).clamp(min=1)
