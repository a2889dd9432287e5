"""A LoRA adapter that each row of a batch gets at its own strength.

    y = W0 x + w_row * (alpha / r) * B A x

The model's own modules stay; hooks add the second term for the time of a call, so that at w = 0 every number is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from ....errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["RowAdapter"]


@dataclass(frozen=True)
class RowAdapter:
    """Low-rank matrices by the name of the module they stand beside.

    Args:
        down: A of every module, [rank, inputs].
        up: B of every module, [outputs, rank].
        scaling: alpha / rank.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    scaling: float

    @classmethod
    def of(cls, model: PeftModel, name: str = "default") -> Self:
        """The matrices of a PeftModel's LoRA adapter, copied.

        Raises:
            ModelError: an adapter of another kind, or one whose modules scale differently.
        """
        layers = {
            path: module
            for path, module in model.base_model.model.named_modules()
            if name in getattr(module, "lora_A", ())
        }
        scalings = {float(module.scaling[name]) for module in layers.values()}
        if len(scalings) != 1:
            raise ModelError(f"the adapter has {len(scalings)} scalings; a row's strength needs LoRA with one.")
        down = {path: module.lora_A[name].weight.detach().clone() for path, module in layers.items()}
        up = {path: module.lora_B[name].weight.detach().clone() for path, module in layers.items()}
        return cls(down, up, scalings.pop())

    def put_into(self, model: PeftModel, name: str = "default") -> None:
        """Gives a PeftModel's adapter these matrices to go on from."""
        for path, module in model.base_model.model.named_modules():
            if name in getattr(module, "lora_A", ()):
                module.lora_A[name].weight.data.copy_(self.down[path])
                module.lora_B[name].weight.data.copy_(self.up[path])

    @contextmanager
    def applied(self, model: nn.Module, weights: Sequence[float]) -> Iterator[None]:
        """Within the block, row i of a batch gets the adapter at weights[i].

        Args:
            weights: a number a row, at least 0. Where a batch has a multiple of as many rows, as beams have, each stands for
                as many rows in turn.
        """
        if not any(weights):
            yield
            return
        modules = dict(model.named_modules())
        handles = [modules[path].register_forward_hook(partial(self._add, path, tuple(weights))) for path in self.down]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(
        self, path: str, weights: tuple[float, ...], _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        down, up, x = self.down[path], self.up[path], inputs[0]
        added = nn.functional.linear(nn.functional.linear(x.to(down.dtype), down.to(x.device)), up.to(x.device))
        if len({*weights}) == 1:
            return (output + added * (self.scaling * weights[0])).to(output.dtype)
        if x.dim() < 3 or x.shape[0] % len(weights):
            raise ModelError(
                f"{path} sees rows of a batch in one dimension ({list(x.shape)}), so they can't be told apart. Call it row by row."
            )
        rows = torch.tensor(weights, device=x.device, dtype=added.dtype).repeat_interleave(x.shape[0] // len(weights))
        strength = (rows * self.scaling).view(-1, *[1] * (x.dim() - 1))
        return (output + added * strength).to(output.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""
        return {f"{path}.A": one for path, one in self.down.items()} | {
            f"{path}.B": one for path, one in self.up.items()
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], scaling: float) -> Self:
        """The adapter that was stored."""
        down = {key[:-2]: one for key, one in tensors.items() if key.endswith(".A")}
        up = {key[:-2]: one for key, one in tensors.items() if key.endswith(".B")}
        if set(down) != set(up):
            raise ModelError("a stored adapter has modules with one matrix of two. Copy the folder whole.")
        return cls(down, up, scaling)
