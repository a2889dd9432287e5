"""One stretch of a training: which rows, which loss, which optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ...errors import MethodError, unknown
from .checks import require
from .landscape import Descent
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
        optimiser: builds an optimiser from the trainable parameters; None for the arguments' own. On images, phases with
            the same function share one optimiser with its moments; on texts each phase has its own.
        epochs: passes over the stream; None for the arguments' own.
        batch_size: rows a step (on texts, a device and step of accumulation); None for the arguments' own.
        forget, retain: other rows than the ones given, such as relabelled ones, of the same kind.
        lr: factor of the learning rate in this phase.
        descent: what a step follows in place of the forget loss's gradient, found from that loss around the weights; None for
            the gradient. The loss is then asked of forget and of retain rows apart. Texts only.
        apart: the step's forget rows and its retain rows have an update each, in this order, by one optimiser; the loss is asked
            of either alone. Paired rows of texts only.
        then: what follows on the same rows in the same step, with another loss, optimiser or `lr`. Images only.
    """

    stream: Stream
    loss: Callable[[Any], Loss]
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None
    epochs: float | None = None
    batch_size: int | None = None
    forget: Sized | None = None
    retain: Sized | None = None
    lr: float = 1.0
    descent: Descent | None = None
    apart: bool = False
    then: Phase | None = None

    def __post_init__(self) -> None:
        if self.stream not in get_args(Stream):
            raise MethodError(unknown("stream", str(self.stream), get_args(Stream)))
        if self.epochs is not None:
            require("epochs", self.epochs, at_least=0)
        if self.batch_size is not None:
            require("batch_size", self.batch_size, at_least=1)
        require("lr", self.lr, at_least=0)
        if self.apart and (self.stream not in ("paired", "covering") or self.descent is not None):
            other = "a descent of its own" if self.descent is not None else f"the stream {self.stream!r}"
            raise MethodError(f"a phase with updates apart takes paired rows and the gradient; this one has {other}.")
        for name, rows in (("forget", self.forget), ("retain", self.retain)):
            if rows is not None and self.stream == {"forget": "retain", "retain": "forget"}[name]:
                raise MethodError(f"a phase of the stream {self.stream!r} brings no {name} rows. Leave out {name}.")

    def steps(self) -> list[Phase]:
        """This phase and all that follow it in a step, in order."""
        return [self] if self.then is None else [self, *self.then.steps()]
