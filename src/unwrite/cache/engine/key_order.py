"""In which order a model's rotated keys are quantised: channels of like size side by side, so that a group's range is no wider than need be.

Each channel of the rotated keys before rope is summed over ordinary text; the order is that of the sums, ascending. It is of one model
and one rotation. (RotateKV, arXiv 2501.16383)

    order = argsort_j sum_tokens (k H)_j
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor

from ...errors import MethodError, ModelError, setting, unknown
from ...models import unwrap
from ...runs import hash_json, need_free, progress, read_tensors
from ..base import CompressedLayer, Compression
from .hadamard import is_power_of_two, walsh_hadamard
from .rope import Rope, turn_of
from .support import KVShape, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .attention import Moment

__all__ = ["By", "KeyOrder", "KeyRotation", "calibrate_key_order", "config_hash", "rotated_heads"]

By = Literal["sum", "absmean"]
KeyRotation = Literal["none", "head", "grouped"]
MOST_HEADS = 4  # that are rotated together, as published
_NOT_OF_THE_WEIGHTS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
_WHAT = "order of keys"


@dataclass(frozen=True, eq=False)
class KeyOrder:
    """A calibrated order of key channels, for one model.

    Args:
        order: int64 [layers, kv_heads * head_dim]; entry j names the rotated channel that is kept at place j.
        rotated: numbers that the rotation mixed when it was calibrated; 1 without one.
        model: hash of the model's configuration.
        by: what channels were sorted by: their sum, or their mean size.
        tokens: how many were looked at.
    """

    order: Tensor = field(repr=False)
    rotated: int
    model: str = field(repr=False)
    by: By = "sum"
    tokens: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyOrder:
        return self  # frozen: copies of a cache share it

    def check(self, model: PreTrainedModel, rotated: int) -> None:
        """Refuses to serve another model or rotation.

        Raises:
            ModelError: a model of another configuration, or another rotation than the calibration's.
        """
        if self.model != config_hash(model):
            raise ModelError(
                f"this order of keys was calibrated on another model than this {type(unwrap(model)).__name__}. Calibrate it on this one."
            )
        if self.rotated != rotated:
            raise ModelError(
                f"this order of keys is of rotations of {self.rotated} numbers, and these are of {rotated}. Calibrate it with the "
                f"same {setting('rotate_keys')} and {setting('groups')}."
            )

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file; one that is there stays.

        Raises:
            UnwriteError: there is such a file.
        """
        from safetensors.torch import save_file

        need_free(path)
        note = {"rotated": str(self.rotated), "model": self.model, "by": self.by, "tokens": str(self.tokens)}
        save_file({"order": self.order.int().contiguous().cpu()}, str(path), note)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> KeyOrder:
        """What `save` wrote.

        Raises:
            ModelError: no such file, or another one; an order that leaves channels out.
        """
        tensors, note = read_tensors(path, _WHAT, ModelError, {"order": ("int32", 2)})
        order = tensors["order"].long()
        numbers = [note.get(name, "") for name in ("rotated", "tokens")]
        if not all(map(str.isdecimal, numbers)) or note.get("by") not in get_args(By) or not note.get("model"):
            raise ModelError(f"{path} is no {_WHAT}: it doesn't say of which model and how it was calibrated.")
        if not torch.equal(order.sort(-1).values, torch.arange(order.shape[1]).expand_as(order)):
            raise ModelError(f"{path} is damaged: its rows don't name every channel once. Calibrate again.")
        return cls(order, int(numbers[0]), note["model"], cast("By", note["by"]), int(numbers[1]))


def config_hash(model: PreTrainedModel) -> str:
    """16 hex digits of what a model's configuration says of its weights and how they are used, whatever its name and type."""
    config: Mapping[str, Any] = cast("PreTrainedModel", unwrap(model)).config.to_dict()
    return hash_json({name: value for name, value in config.items() if name not in _NOT_OF_THE_WEIGHTS})


def rotated_heads(shape: KVShape, rotation: KeyRotation, groups: int | None) -> int:
    """How many heads' keys are rotated together; 0 for no rotation. Of all: the most, up to 4, that there is a transform for.

    Args:
        groups: heads; None for the most.

    Raises:
        ModelError: heads that can't be rotated so.
    """
    if rotation == "none":
        return 0
    heads, dim = shape.kv_heads, shape.head_dim

    def fits(count: int) -> bool:
        return heads % count == 0 and is_power_of_two(count * dim)

    if rotation == "head" or groups is None:
        most = MOST_HEADS if rotation == "grouped" else 1
        found = next((count for count in range(most, 0, -1) if fits(count)), None)
        if found is None:
            raise ModelError(
                f"keys of {dim} numbers can't be rotated: a Hadamard transform is of a power of two. Use {setting('rotate_keys', 'none')}."
            )
        return found
    if not fits(groups):
        raise ModelError(
            f"{setting('groups', groups)} of {heads} heads with {dim} numbers can't be rotated together: it must divide the heads, and "
            f"{groups} * {dim} be a power of two. Leave it out for the most that can."
        )
    return groups


class _Sums(CompressedLayer):
    """Keeps no text, only what each rotated channel sums to."""

    def __init__(self, rope: Rope, size: int, by: By, channels: int) -> None:
        super().__init__()
        self.rope, self.size, self.by = rope, size, by
        self.sums = torch.zeros(channels, dtype=torch.float64)

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        turn = turn_of(cast("Moment", self.moment))
        before = keys if turn is None else self.rope.unturned(keys, turn)
        rotated = walsh_hadamard(before.transpose(1, 2).flatten(0, 1).flatten(1), self.size)  # [tokens, channels]
        self.sums += (rotated if self.by == "sum" else rotated.abs()).double().sum(0).cpu()
        return keys, values


@dataclass(frozen=True)
class _Summing(Compression):
    size: int
    by: By

    def prepare(self, model: PreTrainedModel) -> Rope:
        return Rope.of(model)

    def layer(self, index: int, shape: KVShape, prepared: Rope) -> _Sums:
        return _Sums(prepared, self.size, self.by, shape.kv_heads * shape.head_dim)


@torch.no_grad()
def calibrate_key_order(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    by: By = "sum",
    rotate_keys: KeyRotation = "grouped",
    groups: int | None = None,
    length: int = 2048,
) -> KeyOrder:
    """Reads ordinary texts, none that the model is judged on, and sorts the channels of its keys.

    Args:
        by: "sum", signed as in the official code, or "absmean", the mean size. The paper's words fit either.
        rotate_keys, groups: as the cache will have them.
        length: tokens of a text that are read. (ours; officially 4096 of one stream of text)

    Raises:
        ModelError: a model that can't be served so; see `RotateKV`.
        MethodError: no text, or a setting without meaning.
    """
    if by not in get_args(By):
        raise MethodError(unknown("way to sort keys", by, get_args(By)))
    shape = shape_of(model)
    size = max(1, rotated_heads(shape, rotate_keys, groups) * shape.head_dim)
    cache = _Summing(size, by).cache(model)
    was_training, tokens = model.training, 0
    model.eval()
    try:
        for text in progress(list(texts), "keys of ordinary text"):
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=length)["input_ids"]
            if ids.shape[1]:
                model(ids.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
                tokens += ids.shape[1]
                cache.reset()
    finally:
        model.train(was_training)
    if not tokens:
        raise MethodError("an order of keys is calibrated on texts, and there are none. Give some.")
    order = torch.stack([cast("_Sums", layer).sums.argsort(stable=True) for layer in cache.layers])
    return KeyOrder(order, size, config_hash(model), by, tokens)
