"""RotateKV: keys and values in 2 bits, turned first so that no number stands out, but for the tokens that attention leans on.

A few channels of keys are far larger than the rest and would set every group's range. A Hadamard transform across heads, before rope
mixes positions in, spreads them; channels of like size are then quantised together. Values are spread within each head. The tokens with
the largest numbers of a layer's input, where attention sinks are, stay as they came.  (RotateKV, arXiv 2501.16383)

    kept = Q((R(-position) k) H [order]),   used = R(position) ((Q^-1 kept)[order^-1] H),   H H = I
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor

from ..errors import MethodError, ModelError, setting, unknown
from .base import CompressedCache, CompressedLayer, Compression
from .engine.hadamard import is_power_of_two, walsh_hadamard
from .engine.key_order import KeyOrder, KeyRotation, rotated_heads
from .engine.massive import massive_tokens, real_columns
from .engine.quantising import WIDTHS, Quantiser
from .engine.rope import Rope, Turn, turn_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .engine.attention import Moment
    from .engine.support import KVShape

__all__ = ["RotateKV", "RotateKVCache", "RotatedLayer"]

Prefill = Literal["exact", "quantised"]
WHOLE = 16  # bits: nothing is quantised
LARGEST_GROUP = 128
CLIP_OF_TWO_BITS = 0.8


@dataclass(frozen=True)
class RotateKV(Compression):
    """Keys and values quantised behind a rotation. With all of it off it is rounding to nearest: `RotateKV.nearest(bits)`.

    Args:
        bits: of a number: 2, 3 or 4; 16 keeps the model's own type, rotated.
        rotate_keys: "grouped" across heads, "head" within each, or "none".
        groups: heads that are rotated together: they divide the model's key-value heads, and with the head's numbers make a power of
            two. None takes the most up to 4, which is the paper's figure; SmolLM2's three heads leave 1.
        rotate_values: whether values are rotated, within each head. Officially fused into weights; here while the model runs, so
            that weights stay as they are.
        order: of key channels, from `calibrate_key_order`; None quantises them as they stand.
        sinks: largest numbers of each layer's input at the first call, whose tokens are kept whole, so many at most; 0 for none.
        clip: share of a group's range that is covered, in (0, 1]; None for the paper's 0.8 at 2 bits and 1 above.
        group_size: numbers of a token that share a scale; None for the largest power of two up to 128, the official figure, that
            divides the numbers of a token.
        prefill: whether the first call's attention sees keys and values as they came, or as they were "quantised", as in the official
            simulation. Later calls always see what is kept. ("exact" is ours, for it costs nothing.)
        pre_rope: whether keys are rotated and quantised as they were before rope. Rope with changing frequencies (dynamic, longrope)
            turns all keys by those of the whole text, as a forward without a cache does.
        official_levels: the official code's steps at 3 bits; see `Quantiser`.
    """

    bits: int = 2
    rotate_keys: KeyRotation = "grouped"
    groups: int | None = None
    rotate_values: bool = True
    order: KeyOrder | None = None
    sinks: int = 20
    clip: float | None = None
    group_size: int | None = None
    prefill: Prefill = "exact"
    pre_rope: bool = True
    official_levels: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (*WIDTHS, WHOLE):
            raise MethodError(f"{setting('bits', self.bits)} can't be kept. Use 2, 3, 4, or 16 for whole numbers.")
        for name, kinds in (("rotate_keys", KeyRotation), ("prefill", Prefill)):
            if getattr(self, name) not in get_args(kinds):
                raise MethodError(unknown(f"value of {setting(name)}", str(getattr(self, name)), get_args(kinds)))
        if self.sinks < 0:
            raise MethodError(f"{setting('sinks', self.sinks)} is no count. Use 0 for none.")
        for name in ("groups", "group_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MethodError(f"{setting(name, value)} is no size. Use 1 or more, or leave it out.")
        if self.clip is not None and not 0 < self.clip <= 1:
            raise MethodError(f"{setting('clip', self.clip)} is no share of a range. Use one above 0 and up to 1.")
        if self.groups is not None and self.rotate_keys != "grouped":
            raise MethodError(
                f"{setting('groups', self.groups)} has no meaning with {setting('rotate_keys', self.rotate_keys)}. Leave one of them out."
            )
        if self.order is not None and not self.pre_rope:
            raise MethodError(
                f"an order of keys is of keys before rope, and {setting('pre_rope', False)} keeps them behind it. Leave one of them out."
            )

    @classmethod
    def nearest(cls, bits: int = 2, clip: float = 1.0, **fields: Any) -> RotateKV:
        """Rounding to nearest, the baseline: keys behind rope, no rotation, no order, no token kept whole."""
        return cls(bits, "none", rotate_values=False, sinks=0, clip=clip, pre_rope=False, **fields)

    def cache(self, model: PreTrainedModel) -> RotateKVCache:
        """See `Compression.cache`."""
        return RotateKVCache(model, self)

    def check(self, shape: KVShape, model: PreTrainedModel) -> None:
        """Refuses a model; see `Compression.check`.

        Raises:
            ModelError: heads that can't be rotated so, a group size that doesn't divide a token's numbers, an order of another model,
                keys that aren't turned by rope, values of other sizes than keys.
        """
        super().check(shape, model)
        config: Any = model.config.get_text_config(decoder=True)
        if getattr(config, "kv_lora_rank", None):
            raise ModelError(
                f"{type(model).__name__} has keys and values of two sizes, and its heads share a part of them. Use DynamicCache."
            )
        size = self.rotated(shape)
        if self.rotate_values and not is_power_of_two(shape.head_dim):
            raise ModelError(
                f"values of {shape.head_dim} numbers can't be rotated: a Hadamard transform is of a power of two. Use "
                f"{setting('rotate_values', False)}."
            )
        numbers, group = shape.kv_heads * shape.head_dim, self.group(shape)
        if numbers % group:
            raise ModelError(
                f"{setting('group_size', group)} doesn't divide a token's {numbers} numbers ({shape.kv_heads} heads of {shape.head_dim}). "
                f"Leave it out for {self.largest_group(numbers)}."
            )
        if self.order is not None:
            self.order.check(model, size)
        if self.pre_rope:
            Rope.of(model)

    def rotated(self, shape: KVShape) -> int:
        """Numbers of a key that are rotated together; 1 without a rotation."""
        return max(1, rotated_heads(shape, self.rotate_keys, self.groups) * shape.head_dim)

    def group(self, shape: KVShape) -> int:
        """Numbers that share a scale."""
        return self.group_size or self.largest_group(shape.kv_heads * shape.head_dim)

    @staticmethod
    def largest_group(numbers: int) -> int:
        """The largest power of two up to 128 that divides a token's numbers."""
        return min(LARGEST_GROUP, numbers & -numbers)

    def quantiser(self, shape: KVShape) -> Quantiser | None:
        """How numbers are rounded; None where they are kept whole."""
        if self.bits == WHOLE:
            return None
        clip = self.clip if self.clip is not None else CLIP_OF_TWO_BITS if self.bits == 2 else 1.0
        return Quantiser(self.bits, self.group(shape), clip, self.official_levels)

    def prepare(self, model: PreTrainedModel) -> Rope | None:
        """How the model turns keys."""
        return Rope.of(model) if self.pre_rope else None

    def layer(self, index: int, shape: KVShape, prepared: Rope | None) -> RotatedLayer:
        """See `Compression.layer`."""
        return RotatedLayer(self, shape, prepared, self.order.order[index] if self.order is not None else None)


class RotatedLayer(CompressedLayer):
    """Packed codes of a layer's keys and values, tokens kept whole, and where tokens stand.

    Attributes:
        kept_keys, kept_values: codes, scales and zeros, [batch, tokens, ...] each; or the numbers whole.
        sink_keys, sink_values: [batch, kv_heads, most sinks of a row, head_dim], as they came.
        sink_at: int32 [batch, most sinks of a row], their columns; -1 where a row has fewer.
        offset: int32 [batch, 1], what to add to a column for its position, down to 0: padding on the left.
        positions: int32 [batch, tokens], where an offset doesn't say it.
    """

    is_croppable = True
    stored = ("kept_keys", "kept_values", "sink_keys", "sink_values", "sink_at", "offset", "positions")

    def __init__(self, settings: RotateKV, shape: KVShape, rope: Rope | None, order: Tensor | None) -> None:
        super().__init__()
        self.settings, self.shape, self.rope, self.order = settings, shape, rope, order
        self.quantiser, self.rotated = settings.quantiser(shape), settings.rotated(shape)
        self.sinks = settings.sinks if self.quantiser is not None else 0
        self.first = 0  # tokens of the first call
        self.kept_keys: list[Tensor] | None = None
        self.kept_values: list[Tensor] | None = None
        self.sink_keys: Tensor | None = None
        self.sink_values: Tensor | None = None
        self.sink_at: Tensor | None = None
        self.offset: Tensor | None = None
        self.positions: Tensor | None = None

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `CompressedLayer.store`."""
        moment, new = cast("Moment", self.moment), keys.shape[-2]
        real = real_columns(moment.attention_mask, len(keys), new, self.length + new, keys.device)
        turn = turn_of(moment) if self.rope is not None else None
        if turn is not None:
            self._note_positions(moment.position_ids, real)
        self.kept_keys = joined(self.kept_keys, self._kept(self._inward(keys, turn)))
        self.kept_values = joined(self.kept_values, self._kept(self._values_inward(values)))
        if self.length == 0:
            self.first = new
            if self.sinks:
                self._protect(keys, values, self.whole_tokens(moment, real))
            if self.settings.prefill == "exact":
                return keys, values
        return self._used(self.length + new, turn)

    def _inward(self, keys: Tensor, turn: Turn | None) -> Tensor:
        """Keys as they are quantised: [batch, kv_heads, new, dim] to [batch, new, numbers]."""
        if turn is not None:
            keys = cast("Rope", self.rope).unturned(keys, turn)
        rotated = walsh_hadamard(keys.transpose(1, 2).flatten(2), self.rotated)
        return rotated if self.order is None else rotated[..., self.order.to(rotated.device)]

    def _outward(self, kept: Tensor, known: int, turn: Turn | None) -> Tensor:
        """The reverse, turned by rope at the positions of all tokens: [batch, kv_heads, known, dim]."""
        if self.order is not None:
            kept = kept[..., self.order.argsort().to(kept.device)]
        keys = walsh_hadamard(kept, self.rotated).unflatten(2, (self.shape.kv_heads, -1)).transpose(1, 2)
        if turn is None:
            return keys
        rope = cast("Rope", self.rope)
        return rope.turned(keys, rope.at(self._where(known), turn))

    def _values_inward(self, values: Tensor) -> Tensor:
        return walsh_hadamard(values.transpose(1, 2).flatten(2), self._rotated_values)

    @property
    def _rotated_values(self) -> int:
        return self.shape.head_dim if self.settings.rotate_values else 1

    def _kept(self, numbers: Tensor) -> list[Tensor]:
        return [numbers.to(self.dtype, copy=True)] if self.quantiser is None else self.quantiser.quantise(numbers)

    def _restored(self, kept: list[Tensor] | None) -> Tensor:
        parts = cast("list[Tensor]", kept)
        return parts[0].float() if self.quantiser is None else self.quantiser.restore(parts)

    def _used(self, known: int, turn: Turn | None) -> tuple[Tensor, Tensor]:
        """All keys and values as attention sees them."""
        keys = self._outward(self._restored(self.kept_keys), known, turn).to(self.dtype)
        values = walsh_hadamard(self._restored(self.kept_values), self._rotated_values).to(self.dtype)
        values = values.unflatten(2, (self.shape.kv_heads, -1)).transpose(1, 2)
        if self.sink_at is not None:
            rows, slots = (self.sink_at >= 0).nonzero(as_tuple=True)
            columns = self.sink_at[rows, slots].long()
            keys[rows, :, columns] = cast("Tensor", self.sink_keys)[rows, :, slots]
            values[rows, :, columns] = cast("Tensor", self.sink_values)[rows, :, slots]
        return keys, values

    def whole_tokens(self, moment: Moment, real: Tensor) -> Tensor:
        """Which tokens of the first call are kept whole: bool [batch, new]. real: which are no padding."""
        return massive_tokens(moment.residual, real, self.sinks)

    def _protect(self, keys: Tensor, values: Tensor, chosen: Tensor) -> None:
        """Keeps tokens whole. chosen: bool [batch, new]."""
        at = chosen.int().argsort(dim=1, descending=True, stable=True)[:, : int(chosen.sum(1).max())]
        index = at[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1])
        self.sink_keys, self.sink_values = keys.gather(2, index), values.gather(2, index)
        self.sink_at = at.masked_fill(~chosen.gather(1, at), -1).int()

    def _note_positions(self, position_ids: Tensor | None, real: Tensor) -> None:
        """Notes where the new tokens stand: by an offset where columns tell all of it, as with padding on the left."""
        if position_ids is None:
            raise MethodError(
                f"the model doesn't tell its attention where tokens stand. Use {setting('pre_rope', False)}."
            )
        at = position_ids.expand(len(real), -1).int()
        columns = torch.arange(self.length, self.length + at.shape[1], dtype=torch.int32, device=at.device)
        if self.offset is None:
            self.offset = at[:, -1:] - columns[-1:]
        if self.positions is None:
            if bool(((at == (columns + self.offset).clamp(min=0)) | ~real).all()):
                return
            if self.length:
                at = torch.cat([self._where(self.length), at], 1)
            self.positions = at.clone()
        else:
            self.positions = torch.cat([self.positions, at], 1)

    def _where(self, known: int) -> Tensor:
        """Positions of the first tokens, int32 [batch, known]."""
        if self.positions is not None:
            return self.positions[:, :known]
        offset = cast("Tensor", self.offset)
        return (torch.arange(known, dtype=torch.int32, device=offset.device) + offset).clamp(min=0)

    def crop(self, tokens_to_remove: int) -> None:
        """Gives back the last tokens, as if they had never been read.

        Raises:
            MethodError: tokens of the first call, while some of them are kept whole: without the last ones others would be.
        """
        left = self.length - abs(tokens_to_remove)
        if left <= 0:
            self.reset()
        elif left < self.length:
            if self.sinks and left < self.first:
                raise MethodError(
                    f"{type(self).__name__} can't give back {self.length - left} tokens: that reaches into the {self.first} that were read "
                    f"first, and without the last of them others would be kept whole. Use {setting('sinks', 0)}."
                )
            for name in ("kept_keys", "kept_values"):
                setattr(self, name, [part[:, :left].clone() for part in getattr(self, name)])
            if self.positions is not None:
                self.positions = self.positions[:, :left].clone()
            self.length, self.first = left, min(left, self.first)


def joined(kept: list[Tensor] | None, new: list[Tensor]) -> list[Tensor]:
    """What was kept with what is new behind it, along tokens."""
    return new if kept is None else [torch.cat(both, 1) for both in zip(kept, new, strict=True)]


class RotateKVCache(CompressedCache):
    """A cache by `RotateKV`; see there for the fields, and `CompressedCache` for the rest."""

    settings = RotateKV

    def sink_tokens(self) -> list[list[int]]:
        """How many tokens are kept whole: a list for every layer, a count for every row of the batch."""
        marks = [cast("RotatedLayer", layer).sink_at for layer in self.layers]
        return [[] if one is None else (one >= 0).sum(1).tolist() for one in marks]

    def __repr__(self) -> str:
        settings, shape = cast("RotateKV", self.compression), self.shape
        heads = rotated_heads(shape, settings.rotate_keys, settings.groups)
        rotation = f"keys rotated {heads} heads of {shape.head_dim} at a time" if heads else "keys as they are"
        order = "reordered" if settings.order is not None else "in the model's order"
        return f"{type(self).__name__}({settings}: {rotation}, {order}, {settings.group(shape)} numbers a scale, {self.get_seq_length()} tokens)"
