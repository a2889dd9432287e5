"""What the outputs of rows owe to training rows, and how they would change without some of them.

An `Attributor` is anything that says so: a datamodel (`RowEffects`, regressed on models of half the rows, or filled with scores of
another library, one table an output), or an influence function of the target alone (`HeadInfluence`). (arXiv 2410.23232)

    change(x) = - sum_{i in F} beta_i(x),   beta_i(x) = what training row i adds to the outputs of row x, [outputs]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor

from ....data.images.images import Images, first_few
from ....errors import DataError, ModelError, RunError, setting
from ....runs import new_folder, read_tensors

if TYPE_CHECKING:
    from .work import ImageWork

__all__ = ["Attributor", "RowEffects", "check_change"]

_FILE = "effects.safetensors"
_KINDS = {"effects": ("float32", 3), "train_index": ("int64", 1), "row_index": ("int64", 1)}


@runtime_checkable
class Attributor(Protocol):
    """Predicts what leaving the forget set out of training would have changed."""

    def change(self, work: ImageWork, rows: Images) -> Tensor:
        """The predicted change of the model's outputs once `work.forget` was never trained on, `[len(rows), outputs]`.

        Args:
            work: the model with its forget and retain rows, which together are all that it was trained on.
            rows: whose outputs; of a datamodel, rows that it knows.

        Raises:
            DataError: rows or training rows that it doesn't know.
        """
        ...


@dataclass(frozen=True, eq=False)
class RowEffects:
    """A datamodel: what each training row adds to each output of each row.

    Args:
        effects: `[training rows, rows, outputs]`, float32, in the unit of the outputs.
        train_index: names of the training rows, `[training rows]`.
        row_index: names of the rows whose outputs they are, `[rows]`.
        data_hash: of the training set, to tell another one with the same names; empty where it isn't known.
        models: how many models it was regressed on; 0 where it came another way.

    Raises:
        DataError: shapes that don't fit, names that stand twice, numbers that are none.
    """

    effects: Tensor
    train_index: Tensor
    row_index: Tensor
    data_hash: str = ""
    models: int = 0

    def __post_init__(self) -> None:
        if self.effects.ndim != 3:
            raise DataError(f"effects have shape {list(self.effects.shape)}; give [training rows, rows, outputs].")
        for axis, name in enumerate(("train_index", "row_index")):
            index = getattr(self, name)
            if index.shape != self.effects.shape[axis : axis + 1]:
                raise DataError(
                    f"{name} has {len(index)} names and the effects {self.effects.shape[axis]} rows along axis {axis}. "
                    "Give one each."
                )
            if len(index.unique()) < len(index):
                raise DataError(f"{name} has names that stand more than once. Give each row once.")
        if not bool(self.effects.isfinite().all()):
            raise DataError("the effects hold a number that is not finite. Fit them on outputs that are.")

    @property
    def outputs(self) -> int:
        """How many numbers each row has."""
        return self.effects.shape[2]

    def predicted_change(self, forget: Iterable[int] | Tensor, rows: Iterable[int] | Tensor) -> Tensor:
        """`[rows, outputs]`, float32: less the sum of the forget rows' effects, summed in float64; 0 without forget rows.

        Args:
            forget, rows: names of training rows, each once, and of rows.

        Raises:
            DataError: names it doesn't know; forget rows that stand twice, or more than there are training rows.
        """
        removed = torch.as_tensor(forget, dtype=torch.int64).reshape(-1)
        if len(removed) > len(self.train_index):
            raise DataError(
                f"{len(removed)} rows are to be forgotten and the datamodel has {len(self.train_index)} training rows. "
                "Fit it on the rows that the model was trained on."
            )
        if len(removed.unique()) < len(removed):
            raise DataError("forget rows stand more than once. Give each row once.")
        at = _places(self.train_index, removed, "training rows")
        asked = _places(self.row_index, torch.as_tensor(rows, dtype=torch.int64).reshape(-1), "rows")
        return -self.effects[at][:, asked].double().sum(0).float()

    def change(self, work: ImageWork, rows: Images) -> Tensor:
        """As `Attributor.change`; no forward.

        Raises:
            DataError: another training set, or a model with other outputs, than it was fitted on; unknown rows.
        """
        train = work.retained.joined(work.forget)
        if self.data_hash and train.hash != self.data_hash:
            raise DataError(
                f"the datamodel was fitted on another training set than the {len(train)} forget and retain rows here. Fit it "
                "on these, or forget on those."
            )
        if self.outputs != work.forget.num_outputs:
            raise DataError(
                f"the datamodel has {self.outputs} outputs and the model {work.forget.num_outputs}. Fit it on models of this "
                "data."
            )
        return self.predicted_change(work.forget.index, rows.index)

    def save(self, folder: str | Path) -> Path:
        """Writes a new folder that `load` reads.

        Raises:
            RunError: the folder exists.
        """
        if Path(folder).exists():
            raise RunError(f"{folder} exists, and nothing is overwritten. Give a new folder.")
        with new_folder(folder) as fresh:
            tensors = {"effects": self.effects, "train_index": self.train_index, "row_index": self.row_index}
            save_file(
                {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
                fresh / _FILE,
                {"data_hash": self.data_hash, "models": str(self.models)},
            )
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> RowEffects:
        """What `save` wrote.

        Raises:
            ModelError: no such file, or a damaged one.
        """
        tensors, notes = read_tensors(Path(folder) / _FILE, "datamodel", ModelError, _KINDS)
        models = notes.get("models", "0")
        return cls(**tensors, data_hash=notes.get("data_hash", ""), models=int(models) if models.isdigit() else 0)


def check_change(change: Tensor, rows: Images, outputs: int, attributor: object) -> Tensor:
    """The change itself, once it is one finite number an output of every row.

    Raises:
        DataError: it is not; the message names the attributor.
    """
    name = type(attributor).__name__
    if change.shape != (len(rows), outputs):
        raise DataError(
            f"{name} predicts a change of shape {list(change.shape)} for {len(rows)} rows of {outputs} outputs. It must be "
            "[rows, outputs]."
        )
    if not bool(change.isfinite().all()):
        raise DataError(f"{name} predicts a change that is not finite. See {setting('attributor')}.")
    return change


def _places(known: Tensor, names: Tensor, what: str) -> Tensor:
    order = torch.argsort(known)
    place = torch.searchsorted(known[order], names).clamp(max=len(known) - 1)
    if unknown := names[known[order][place] != names].tolist():
        raise DataError(
            f"the datamodel has no {what} of the names {first_few(unknown)}. It was fitted on {len(known)} others."
        )
    return order[place]
