"""One stretch of a training: which rows, which loss, which optimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.images.images import Images
from .loss import Loss
from .stream import Stream

__all__ = ["Phase"]


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Args:
        stream: which rows a step brings: "forget", "retain", "paired" (forget rows, each with a retain row),
            "covering" (retain rows, each with a forget row), "mixed" (forget and retain rows interleaved, the longer
            set cut to fit) or "union" (all rows of both, shuffled together).
        loss: what is minimised, a function of the batch.
        optimiser: builds an optimiser from the trainable parameters; None for the arguments' own. Phases with the same
            function share one optimiser, with its moments; images only.
        epochs: passes over the stream; None for the arguments' own.
        batch_size: rows a step; None for the arguments' own. Images only.
        forget, retain: other rows than the ones given, such as relabelled ones. Images only.
        lr: factor of the learning rate in this phase. Images only.
        then: what follows on the same rows in the same step, with another loss or optimiser. Images only.
    """

    stream: Stream
    loss: Callable[[Any], Loss]
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None
    epochs: float | None = None
    batch_size: int | None = None
    forget: Images | None = None
    retain: Images | None = None
    lr: float = 1.0
    then: Phase | None = None
