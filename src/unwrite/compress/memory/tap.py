"""The state that keys and memories read: what enters the feed-forward part of one block, after its norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...errors import ModelError, setting
from ...models import Block, anatomy, unwrap
from .checks import whole

__all__ = ["Tap", "inputs_of"]


@dataclass(frozen=True)
class Tap:
    """Where states are read.

    Args:
        layer: the block whose feed-forward part is read, from 0, or from the end below 0: -1 is the last, as published.
        module: the path of the module whose input is read instead, below the model, such as "model.layers.3.mlp"; for an
            architecture that this library has no record of, and for other places.
    """

    layer: int = -1
    module: str | None = None

    def __post_init__(self) -> None:
        whole("layer", self.layer, at_least=-(10**6))

    def of(self, model: nn.Module) -> nn.Module:
        """The module of a model whose input is read.

        Raises:
            ModelError: no such block or path, or an architecture without a record.
        """
        if self.module is not None:
            try:
                return unwrap(model).get_submodule(self.module)
            except AttributeError:
                raise ModelError(
                    f"{type(unwrap(model)).__name__} has no module {self.module!r}. Its modules are in named_modules()."
                ) from None
        block = self._block(model)
        return block.up.module if block.mlp is block.module else block.mlp  # OPT's feed-forward part is no module

    def width(self, model: nn.Module) -> int | None:
        """How wide the states are; None where only a forward can tell."""
        return None if self.module is not None else self._block(model).up.shape[1]

    def _block(self, model: nn.Module) -> Block:
        try:
            blocks = anatomy(model).blocks
        except ModelError as error:
            raise ModelError(
                f"{error} Or give the path of its feed-forward part: Tap({setting('module', 'model.layers.3.mlp')})."
            ) from None
        if not -len(blocks) <= self.layer < len(blocks):
            raise ModelError(
                f"{setting('layer')} is {self.layer} but the model has {len(blocks)} blocks. Use 0 to "
                f"{len(blocks) - 1}, or -1 for the last."
            )
        return blocks[self.layer]


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, the list of what enters a module, one tensor a call."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else next(iter(kwargs.values())))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
