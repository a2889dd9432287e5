"""Linear layers laid out once for small products, beside a model that is never touched.

A product of few rows costs what reading the weights costs, unless the library first reorders them, every time; oneDNN
can keep them reordered. A structural copy of the model shares all parameters and buffers and has its Linear and Conv1D
modules replaced by ones that multiply by their pack.

Packs are held weakly, per module. A weight can change without any trace (`.data`, an optimiser, an unlearning edit), so
every call hashes what it packed from, and what no longer agrees is packed again: a stale pack would speak the
forgotten text. The hash (XXH3, 64 bits) reads every bit of every packed weight, in order: one pass over memory.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import psutil
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

__all__ = ["MEMORY_SHARE", "Pack", "fits_memory", "pack_of", "packable", "packed_copy", "structural_copy"]

MEMORY_SHARE = 0.25  # of the memory that is free; packs that would take more are not made
ROWS_HINT = 16  # the row count oneDNN chooses the layout for: best or level from 1 to 64 rows on AVX2
MANY_ROWS = 8  # below, mm(weight, x.T) reads an unpacked weight faster than linear(x, weight)


@dataclass(frozen=True)
class Pack:
    """One or several linear maps of the same input, as one product.

    Args:
        digest: of the weights it was made from.
        weight: [out, in] in oneDNN's own order.
        bias: [out] or None.
        nbytes: what the pack takes.
    """

    digest: int
    weight: Tensor
    bias: Tensor | None
    nbytes: int

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """residual + product, [rows, out], in one pass."""
        return torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")


@dataclass(frozen=True)
class Unpacked:
    """The same face over the modules' own weights, for models whose packs would take too much memory.

    Args:
        modules: linear layers of the same input; their outputs are concatenated.
    """

    modules: Sequence[nn.Module]

    def __call__(self, rows: Tensor) -> Tensor:
        """[rows, in] to [rows, out]."""
        products = [self._product(module, rows) for module in self.modules]
        return products[0] if len(products) == 1 else torch.cat(products, -1)

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """residual + product, [rows, out]."""
        return residual + self(rows)

    def _product(self, module: nn.Module, rows: Tensor) -> Tensor:
        if len(rows) > MANY_ROWS:
            return F.linear(rows, _weight(module), _bias(module))
        product, bias = torch.mm(_weight(module), rows.T).T, _bias(module)
        return product if bias is None else product + bias


class PackedLinear(nn.Linear):
    """A Linear that multiplies by its pack where its input allows."""

    pack: Pack

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.pack(input) if _plain(input) else super().forward(input)


class PackedConv1D(Conv1D):
    """GPT-2's Conv1D likewise."""

    pack: Pack

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.pack(x) if _plain(x) else super().forward(x)


_PACKS: weakref.WeakKeyDictionary[nn.Module, Pack] = weakref.WeakKeyDictionary()


def pack_of(owner: nn.Module, modules: Sequence[nn.Module]) -> Pack:
    """The pack of some linear layers of the same input: the one held, if their weights are as they were, else a new one.

    Args:
        owner: what the pack is held for, weakly; the layer itself, or the module that holds all of them.
    """
    digest = digest_of(modules)
    pack = _PACKS.get(owner)
    if pack is None or pack.digest != digest:
        pack = _PACKS[owner] = _make(modules, digest)
    return pack


def packable(module: nn.Module) -> bool:
    """Whether a module is exactly a Linear or Conv1D whose weight is an ordinary float32 tensor in main memory."""
    if type(module) not in (nn.Linear, Conv1D) or not _available():
        return False
    tensors = [module.weight, module.bias]
    return all(
        type(tensor) in (nn.Parameter, Tensor)
        and tensor.dtype is torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.numel() > 0
        for tensor in tensors
        if tensor is not None
    )


def fits_memory(model: nn.Module) -> bool:
    """Whether the packs of a model that are yet to be made take at most `MEMORY_SHARE` of the memory that is free."""
    modules = list(model.modules())
    needed = sum(_stored(module).numel() * 4 for module in modules if packable(module))
    packed = sum(pack.nbytes for module in modules if (pack := _PACKS.get(module)))
    return needed - packed <= MEMORY_SHARE * psutil.virtual_memory().available


def packed_copy(model: nn.Module) -> tuple[nn.Module, dict[int, nn.Module]]:
    """A structural copy whose packable layers multiply by packs. See `structural_copy`."""

    def swap(clone: nn.Module, original: nn.Module) -> None:
        if packable(original):
            clone.__class__ = PackedConv1D if type(original) is Conv1D else PackedLinear
            cast(Any, clone).pack = pack_of(original, [original])

    return structural_copy(model, swap)


def structural_copy(
    model: nn.Module, change: Callable[[nn.Module, nn.Module], None] | None = None
) -> tuple[nn.Module, dict[int, nn.Module]]:
    """A copy of every module and no tensor: parameters and buffers are the model's own, also those assigned later.

    Hooks are copied as they are now; one added to the copy is not seen by the model.

    Args:
        change: called as change(copy, original) for every module, once.

    Returns:
        The copy, and {id of an original: its copy}.
    """
    copies: dict[int, nn.Module] = {}

    def clone(module: nn.Module) -> nn.Module:
        if id(module) not in copies:
            twin = object.__new__(type(module))
            copies[id(module)] = twin
            state = dict(module.__dict__)
            state["_modules"] = {name: child and clone(child) for name, child in module._modules.items()}
            state |= {name: value.copy() for name, value in state.items() if name.endswith("_hooks")}
            state.pop("_compiled_call_impl", None)  # it would run the original
            twin.__dict__ = state
            if change is not None:
                change(twin, module)
        return copies[id(module)]

    return clone(model), copies


def _make(modules: Sequence[nn.Module], digest: int) -> Pack:
    with torch.no_grad():
        weights = [_weight(module).detach() for module in modules]
        biases = [_bias(module) for module in modules]
        joined = weights[0].contiguous() if len(weights) == 1 else torch.cat(weights)
        bias = None
        if any(one is not None for one in biases):
            parts = [w.new_zeros(len(w)) if b is None else b.detach() for b, w in zip(biases, weights, strict=True)]
            bias = torch.cat(parts)
        packed = torch.ops.mkldnn._reorder_linear_weight(joined, ROWS_HINT)
    return Pack(digest, packed, bias, joined.numel() * 4)


def digest_of(modules: Sequence[nn.Module]) -> int:
    """A hash of every bit of their weights and biases, in order, and of the shapes."""
    hasher = xxhash.xxh3_64()
    for module in modules:
        for tensor in (_stored(module), _bias(module)):
            if tensor is not None:
                flat = tensor.detach().contiguous()
                hasher.update(repr(tuple(flat.shape)).encode())
                hasher.update(flat.numpy())
    return hasher.intdigest()


def _stored(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight)


def _weight(module: nn.Module) -> Tensor:
    """[out, in], whatever way the module stores it."""
    return _stored(module).T if isinstance(module, Conv1D) else _stored(module)


def _bias(module: nn.Module) -> Tensor | None:
    return cast("Tensor | None", module.bias)


def _plain(rows: Tensor) -> bool:
    return rows.dtype is torch.float32 and not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()


@functools.cache
def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
