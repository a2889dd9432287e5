"""An edit of a few matrices by products of few vectors, that can be taken back to the bit and kept as an adapter.

    W' = fl(W + D),   D = left right^T,   left [out, n], right [in, n]

W' - D is not W: both steps round. What the way back misses is kept beside the factors, one byte a weight of the edited
matrices (a quarter of a copy in float32), and the few weights that a byte can't say as they were. So `undo` restores W
bit by bit, on any device, for D is computed by products and sums of single numbers in a fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..runs import hash_tensors, new_folder
from .layout import Projection, anatomy

__all__ = ["Factors", "LowRankEdit", "edits_of"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ON_MODEL = "low_rank_edits"  # the attribute a model carries its edits under; copies of the model have copies of it


@dataclass(frozen=True)
class Factors:
    """One matrix's change, `left @ right.T`.

    Args:
        layer: the block, whose MLP's output matrix it is.
        left: `[out, n]`, float32.
        right: `[in, n]`, float32.
    """

    layer: int
    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)

    @property
    def rank(self) -> int:
        """How many of its products are not zero."""
        return int(((self.left != 0).any(0) & (self.right != 0).any(0)).sum())

    def delta(self, device: torch.device | None = None) -> Tensor:
        """The change itself, `[out, in]`, the same bits on every device."""
        left, right = self.left.to(device), self.right.to(device)
        total = torch.zeros(len(left), len(right), device=left.device)
        for j in range(left.shape[1]):
            total = total + left[:, j, None] * right[:, j]
        return total


@dataclass(frozen=True)
class _Rounding:
    """What `fl(W' - D)` misses of W.

    Args:
        steps: W's bits less those, as an integer, where that is within a byte, `[out, in]`.
        places, values: the weights where it isn't, and what they were.
        after: hash of W', by which one sees whether it is still there.
    """

    steps: Tensor
    places: Tensor
    values: Tensor
    after: str


@dataclass(eq=False)
class LowRankEdit:
    """What `applied` did to a model: its factors, its keys, and the way back.

    Args:
        model: the edited model.
        factors: the changes, by block.
        keys: {block: what was redirected, `[in, n]`}, which a later edit of the same model must not disturb.
    """

    model: nn.Module = field(repr=False)
    factors: tuple[Factors, ...]
    keys: Mapping[int, Tensor] = field(repr=False)
    _rounding: tuple[_Rounding, ...] = field(default=(), repr=False)

    @classmethod
    def started(cls, model: nn.Module) -> LowRankEdit:
        """An edit of nothing yet."""
        return cls(model, (), {})

    @property
    def nbytes(self) -> int:
        """What the edit keeps, counted from storage: factors, keys, and the rounding."""
        kept = [t for f in self.factors for t in (f.left, f.right)] + list(self.keys.values())
        kept += [t for r in self._rounding for t in (r.steps, r.places, r.values)]
        return sum(t.untyped_storage().nbytes() for t in kept)

    @torch.no_grad()
    def add(self, factors: Factors) -> None:
        """Changes one more matrix of the model, in its dtype."""
        down = self._down(factors.layer)
        before = down.read()
        down.write_((before.float() + factors.delta(before.device)).to(before.dtype))
        after = down.read()
        self._rounding += (_missed(before, _taken_off(after, factors), after),)
        self.factors += (factors,)

    @torch.no_grad()
    def undo(self) -> None:
        """Gives the model its weights from before the edit, bit by bit; later edits of the same matrices go first.

        Raises:
            ModelError: the edit was undone already, or a matrix is no longer as the edit left it.
        """
        if not self._rounding:
            raise ModelError("this edit was undone already.")
        changed = [f.layer for f, r in zip(self.factors, self._rounding, strict=True) if self._hash(f.layer) != r.after]
        if changed:
            raise ModelError(
                f"the weights of block {changed[0]} have changed since this edit, so it can't be taken off exactly. Undo "
                "what came later first, last edit first."
            )
        for factors, rounding in zip(self.factors, self._rounding, strict=True):
            down = self._down(factors.layer)
            down.write_(_restored(_taken_off(down.read(), factors), rounding))
        self._rounding = ()
        edits = getattr(self.model, _ON_MODEL, [])
        edits[:] = [edit for edit in edits if edit is not self]

    def remembered(self) -> LowRankEdit:
        """The edit, which the model now carries, so that a later one spares it: see `edits_of`."""
        if not hasattr(self.model, _ON_MODEL):
            setattr(self.model, _ON_MODEL, [])
        getattr(self.model, _ON_MODEL).append(self)
        return self

    def save_adapter(self, folder: str | Path) -> Path:
        """Writes the change as a LoRA adapter of peft, for the model as it was before the edit.

        Raises:
            ModelError: an edit of nothing; a folder that is there.
        """
        from peft import LoraConfig
        from safetensors.torch import save_file

        if not self.factors:
            raise ModelError("an edit of nothing has no adapter.")
        folder = Path(folder)
        if folder.exists():
            raise ModelError(f"{folder} is there already. Choose another folder.")
        parts = anatomy(self.model)
        paths = {id(module): path.removesuffix(".base_layer") for path, module in parts.model.named_modules()}
        names = [paths[id(self._down(f.layer).module)] for f in self.factors]
        rank = self.factors[0].left.shape[1]
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=names,
            fan_in_fan_out=self._down(self.factors[0].layer).transposed,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        tensors = {}
        for name, factors in zip(names, self.factors, strict=True):
            tensors[f"base_model.model.{name}.lora_A.weight"] = factors.right.T.contiguous().cpu()
            tensors[f"base_model.model.{name}.lora_B.weight"] = factors.left.contiguous().cpu()
        with new_folder(folder) as fresh:
            config.save_pretrained(fresh)
            save_file(tensors, fresh / "adapter_model.safetensors")
        return folder

    def _down(self, layer: int) -> Projection:
        return anatomy(self.model).blocks[layer].down

    def _hash(self, layer: int) -> str:
        return hash_tensors({"": self._down(layer).weight})


def edits_of(model: nn.Module) -> Sequence[LowRankEdit]:
    """The edits that a model carries, oldest first.

    They stay with the model in memory and in copies of it; a saved folder holds the edited weights alone.
    """
    return tuple(getattr(model, _ON_MODEL, ()))


def _taken_off(weight: Tensor, factors: Factors) -> Tensor:
    return (weight.float() - factors.delta(weight.device)).to(weight.dtype)


def _bits(weight: Tensor) -> Tensor:
    return weight.contiguous().view(_INTEGERS[weight.element_size()])


def _missed(before: Tensor, back: Tensor, after: Tensor) -> _Rounding:
    steps = _bits(before) - _bits(back)
    far = (steps > 127) | (steps < -127)  # no absolute value: that of the smallest integer is itself
    places = far.flatten().nonzero().flatten()
    return _Rounding(
        steps.masked_fill(far, 0).to(torch.int8), places, before.flatten()[places], hash_tensors({"": after})
    )


def _restored(back: Tensor, rounding: _Rounding) -> Tensor:
    bits = _bits(back)
    whole = (bits + rounding.steps.to(bits)).view(back.dtype)
    whole.view(-1)[rounding.places.to(back.device)] = rounding.values.to(back)
    return whole
