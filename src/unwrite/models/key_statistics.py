"""Which directions ordinary text uses on the way into an MLP's output matrix, and which it leaves free.

A key is the input of that matrix at one token. Edits that must not disturb other text change the matrix only along
directions in which keys of ordinary text hardly move. (AlphaEdit, arXiv 2410.02355; ROCR, arXiv 2506.07795)

    C = E[k k^T],   C = U diag(s) U^T,   P = U_0 U_0^T with the columns of U whose s is below a threshold

P is symmetric and idempotent; it is applied as U_0 (U_0^T k) and never formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..runs import (
    cached_files,
    conforms,
    hash_file,
    hash_json,
    model_key,
    new_folder,
    progress,
    read_tensors,
    write_json,
)
from .checkpoints import read_json
from .layout import anatomy

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["KeyStatistics", "last_needed"]

_FORM = 1
_TENSORS, _NOTE = "keys.safetensors", "keys.json"


class _Enough(Exception):
    """The last block that is looked at has run."""


@contextmanager
def last_needed(model: nn.Module, layer: int) -> Iterator[None]:
    """Within the block a forward ends behind this block, without an error: what comes after it is not needed."""

    def stop(*_: Any) -> None:
        raise _Enough

    handle: RemovableHandle = anatomy(model).blocks[layer].module.register_forward_hook(stop)
    try:
        yield
    except _Enough:
        pass
    finally:
        handle.remove()


@dataclass(frozen=True, eq=False)
class KeyStatistics:
    """Second moments of the keys of some blocks, in their own axes.

    Args:
        moments: {block: mean squares along the axes, ascending, `[inner]`}.
        axes: {block: the axes as columns, `[inner, inner]`}: inner^2 floats a block, 822 MB for Llama-3-8B.
        tokens: how many were looked at; with fewer than `inner` many directions are free only for want of data.
    """

    moments: Mapping[int, Tensor] = field(repr=False)
    axes: Mapping[int, Tensor] = field(repr=False)
    tokens: int

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        rows: Sequence[Sequence[int]],
        layers: Sequence[int],
        *,
        batch_size: int = 8,
        cache: bool = True,
    ) -> KeyStatistics:
        """Runs ordinary text through the model up to the last of the blocks; kept on disk by what it depends on.

        Args:
            rows: token ids of the texts; every token counts, padding never does.
            layers: the blocks, from 0.
            batch_size: texts a forward.
            cache: keep the result by weights, rows and layers.

        Raises:
            ModelError: no such block, quantised weights, an architecture without a record, or no text.
        """
        layers = sorted({*layers})
        _check_layers(model, layers)
        if not any(map(len, rows)):
            raise ModelError("statistics of keys need text, and there is none. Give rows to keep.")
        if not cache:
            return cls._measured(model, rows, layers, batch_size)
        key = hash_json([_FORM, model_key(model), [list(row) for row in rows], layers])
        return cached_files(
            "key statistics", key, lambda at: cls._measured(model, rows, layers, batch_size)._write(at), cls.load
        )

    @classmethod
    @torch.no_grad()
    def _measured(
        cls, model: nn.Module, rows: Sequence[Sequence[int]], layers: Sequence[int], batch_size: int
    ) -> KeyStatistics:
        blocks, device = anatomy(model).blocks, next(model.parameters()).device
        sums = {i: torch.zeros((blocks[i].down.shape[1],) * 2, dtype=torch.float64, device=device) for i in layers}
        mask = torch.empty(0)

        def watch(layer: int) -> RemovableHandle:
            def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                keys = inputs[0].reshape(-1, inputs[0].shape[-1])[mask.flatten()].double()  # [tokens, inner]
                sums[layer] += keys.T @ keys

            return blocks[layer].down.module.register_forward_pre_hook(add)

        was_training, hooks = model.training, [watch(layer) for layer in layers]
        model.eval()
        order = sorted((row for row in rows if len(row)), key=len, reverse=True)
        try:
            for first in progress(range(0, len(order), batch_size), "keys of ordinary text"):
                some = [torch.tensor(row, device=device) for row in order[first : first + batch_size]]
                ids = nn.utils.rnn.pad_sequence(some, batch_first=True)
                mask = nn.utils.rnn.pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in some], True)
                with last_needed(model, layers[-1]):
                    model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
            model.train(was_training)
        tokens = sum(map(len, order))
        split = {i: torch.linalg.eigh(sums[i] / tokens) for i in layers}
        return cls(
            {i: pair.eigenvalues.clamp(min=0).float().cpu() for i, pair in split.items()},
            {i: pair.eigenvectors.float().cpu().contiguous() for i, pair in split.items()},
            tokens,
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks, in order."""
        return tuple(sorted(self.moments))

    def free(self, layer: int, threshold: float) -> int:
        """How many directions of a block have a mean square below the threshold: the rank of P.

        Args:
            threshold: >= 0; 0 leaves none, infinity all.
        """
        return int((self.moments[layer] < threshold).sum())

    def threshold_of(self, layer: int, share: float) -> float:
        """The threshold that leaves this share of a block's directions free, those that ordinary text uses least."""
        count = round(share * len(self.moments[layer]))
        return math.inf if count >= len(self.moments[layer]) else float(self.moments[layer][count])

    def project(self, layer: int, vectors: Tensor, threshold: float) -> Tensor:
        """P applied to columns: `[inner, n]` to the same shape, in their dtype. Infinity gives them back as they are.

        Raises:
            ModelError: vectors of another width than the block's.
        """
        axes = self.axes[layer]
        if len(vectors) != len(axes):
            raise ModelError(
                f"the statistics of block {layer} are of keys of width {len(axes)}, not {len(vectors)}. Fit them on this model."
            )
        if threshold == math.inf:
            return vectors
        free = axes[:, : self.free(layer, threshold)].to(vectors)  # moments ascend, so these are the first
        return free @ (free.T @ vectors)

    def save(self, folder: str | Path) -> Path:
        """Writes them into a folder that `load` reads; one that holds something else is refused.

        Raises:
            ModelError: a folder with other files in it.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _NOTE).exists())):
            raise ModelError(f"{folder} holds something else than statistics of keys. Choose another folder.")
        with new_folder(folder) as fresh:
            self._write(fresh)
        return folder

    def _write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        tensors = {f"moments.{i}": values for i, values in self.moments.items()}
        save_file(tensors | {f"axes.{i}": axes for i, axes in self.axes.items()}, folder / _TENSORS)
        note = {"layers": self.layers, "tokens": self.tokens, "sha256": hash_file(folder / _TENSORS)}
        write_json(folder / _NOTE, note)

    @classmethod
    def load(cls, folder: str | Path) -> KeyStatistics:
        """What `save` wrote.

        Raises:
            ModelError: nothing there, or damaged.
        """
        folder = Path(folder)
        if not (folder / _NOTE).is_file() or not (folder / _TENSORS).is_file():
            raise ModelError(f"{folder} holds no statistics of keys: it has no {_NOTE} with {_TENSORS}.")
        note = read_json(folder / _NOTE)
        layers: Any = note.get("layers")
        tokens: Any = note.get("tokens")
        whole = conforms(layers, list[int]) and conforms(tokens, int) and tokens > 0
        if hash_file(folder / _TENSORS) != note.get("sha256") or not whole:
            raise ModelError(
                f"{folder} is damaged: it is not what was written. Remove it and fit the statistics again."
            )
        kinds = {f"moments.{i}": ("float32", 1) for i in layers} | {f"axes.{i}": ("float32", 2) for i in layers}
        tensors, _ = read_tensors(folder / _TENSORS, "file of statistics of keys", ModelError, kinds)
        moments, axes = ({i: tensors[f"{name}.{i}"] for i in layers} for name in ("moments", "axes"))
        if any(axes[i].shape != (len(moments[i]),) * 2 for i in layers):
            raise ModelError(f"{folder} is damaged: its axes and moments do not fit. Remove it and fit them again.")
        return cls(moments, axes, tokens)


def _check_layers(model: nn.Module, layers: Sequence[int]) -> None:
    blocks = anatomy(model).blocks
    if odd := [i for i in layers if not 0 <= i < len(blocks)]:
        raise ModelError(f"layer {odd[0]} is not one of the model's {len(blocks)} blocks. Use 0 to {len(blocks) - 1}.")
    for layer in layers:
        blocks[layer].down.weight  # noqa: B018  refuses quantised weights
