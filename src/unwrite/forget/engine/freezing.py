"""Which parameters a training moves: those that an objective chooses, of those that may be moved at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ...errors import MethodError

__all__ = ["only"]


@contextmanager
def only(
    model: nn.Module, chosen: Sequence[Tensor] | None, method: str, *, thaw: bool = False
) -> Iterator[list[Tensor]]:
    """Leaves only the chosen parameters trainable inside, and gives them; afterwards each has its flag again.

    Args:
        chosen: None for all. What didn't require a gradient before is not trained, unless `thaw`.
        method: who chooses, for the message.
        thaw: whether what is chosen is trained even if it didn't require a gradient.

    Raises:
        MethodError: there is nothing to train.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    ids = None if chosen is None else {id(parameter) for parameter in chosen}
    if ids is not None and not ids & {id(parameter) for parameter, _ in before}:
        raise MethodError(f"{method} selects no parameter of this model to train.")
    try:
        for parameter, flag in before:
            parameter.requires_grad_((flag or thaw) and (ids is None or id(parameter) in ids))
            parameter.grad = None  # one from before would be added to the first step's
        trained: list[Tensor] = [parameter for parameter, _ in before if parameter.requires_grad]
        if not trained:
            raise MethodError(
                "no parameter of this model is to be trained: all of them are frozen. Let some require a gradient."
            )
        yield trained
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
            parameter.grad = None
