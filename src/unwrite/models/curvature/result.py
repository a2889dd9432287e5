"""What a pass over the data found, and how it is kept: in files that are whole or absent, found again by what made them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError, NotFinite
from ...runs import (
    cached_files,
    canonical_json,
    conforms,
    hash_file,
    hash_json,
    model_key,
    new_folder,
    read_tensors,
    write_json,
)
from ..checkpoints import read_json
from ..fitting import _data_hash
from .rows import trainable

__all__ = ["Importances", "stored"]

_TENSORS, _NOTE = "importances.safetensors", "importances.json"


@dataclass(frozen=True)
class Importances:
    """How much every weight matters to a set of rows.

    Args:
        tensors: by parameter name, in the parameter's shape; >= 0, but for `of="gradient"`. Float32, or float64 for a
            float64 parameter.
        rows: that were seen.
        batches: that were seen.
        cost: in forwards of one row; a backward counts 2.
        each: whose gradient it was: of a "batch"'s mean loss, or of a "row"'s own.
        of: what was made of a gradient: its "square", its "absolute" value, nothing ("gradient"), or the square "expected"
            under the model's own labels.
        over: "mean" over the batches or rows, or "sum".
        looped: parameters because of which rows went through the model one at a time.
    """

    tensors: Mapping[str, Tensor]
    rows: int
    batches: int
    cost: float
    each: str = "batch"
    of: str = "square"
    over: str = "mean"
    looped: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """What a mean is over."""
        return self.batches if self.each == "batch" else self.rows

    def joined(self, other: Importances) -> Importances:
        """Those of both data sets together: what one pass over the batches of the one and then the other gives.

        Raises:
            ModelError: importances of another kind, or of other parameters.
        """
        if (self.each, self.of, self.over) != (other.each, other.of, other.over):
            raise ModelError(
                f"importances of another kind cannot be joined: {self._kind()} and {other._kind()}. "
                "Compute both in the same way."
            )
        if {n: t.shape for n, t in self.tensors.items()} != {n: t.shape for n, t in other.tensors.items()}:
            raise ModelError("importances of other parameters cannot be joined. Compute both on the same model.")
        ours, theirs = (1.0, 1.0)
        if self.over == "mean":
            ours, theirs = (part.count / (self.count + other.count) for part in (self, other))
        return dataclasses.replace(
            self,
            tensors={name: ours * tensor + theirs * other.tensors[name] for name, tensor in self.tensors.items()},
            rows=self.rows + other.rows,
            batches=self.batches + other.batches,
            cost=self.cost + other.cost,
            looped=tuple(dict.fromkeys((*self.looped, *other.looped))),
        )

    def need_finite(self) -> Importances:
        """These, if all are numbers.

        Raises:
            NotFinite: some are not; it names the first parameter, and how many.
        """
        if all(math.isfinite(tensor.sum().item()) for tensor in self.tensors.values()):  # cheaper than each by itself
            return self
        bad = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in self.tensors.items()}
        bad = {name: count for name, count in bad.items() if count}
        if bad:
            first, count = next(iter(bad.items()))
            more = f", and so are some of {len(bad) - 1} more parameters" if len(bad) > 1 else ""
            raise NotFinite(
                f"{count} of {self.tensors[first].numel()} importances of {first} are not finite{more}. "
                "Look for a loss that is not finite, or compute in float32."
            )
        return self

    def save(self, folder: str | Path) -> Path:
        """Writes them into a folder that `load` reads; a folder that is there already is replaced in one step.

        Raises:
            ModelError: a folder with other files in it.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _NOTE).exists())):
            raise ModelError(f"{folder} holds something else than importances. Choose another folder.")
        with new_folder(folder) as fresh:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, fresh / _TENSORS)
            note = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tensors"}
            write_json(fresh / _NOTE, {**note, "names": list(self.tensors), "sha256": hash_file(fresh / _TENSORS)})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Importances:
        """What `save` wrote, on the CPU.

        Raises:
            ModelError: nothing there, or damaged.
        """
        folder = Path(folder)
        if not (folder / _NOTE).is_file() or not (folder / _TENSORS).is_file():
            raise ModelError(f"{folder} holds no importances: it has no {_NOTE} with {_TENSORS}.")
        note = read_json(folder / _NOTE)
        if hash_file(folder / _TENSORS) != note.pop("sha256", None):
            raise ModelError(f"{folder / _TENSORS} is damaged: it is not what was written. Remove {folder}.")
        values, _ = read_tensors(folder / _TENSORS, "file of importances", ModelError)
        names, looped = note.pop("names", None), note.get("looped")
        if not conforms(names, list[str]) or sorted(names) != sorted(values) or not isinstance(looped, list):
            raise ModelError(f"{folder / _NOTE} is damaged: it doesn't name the tensors beside it. Remove {folder}.")
        fields = {f.name for f in dataclasses.fields(cls)} - {"tensors"}
        if odd := sorted(fields ^ set(note)):
            raise ModelError(f"{folder / _NOTE} is damaged: {odd[0]!r:.40} is missing or too much. Remove {folder}.")
        tensors = {name: values[name] for name in names}  # in the model's order, which the file has lost
        importances = cls(tensors, **{**note, "looped": tuple(looped)})
        if not conforms(importances, cls) or min(importances.rows, importances.batches) < 1:
            raise ModelError(f"{folder / _NOTE} is damaged: its counts or names are of another type. Remove {folder}.")
        return importances

    def _kind(self) -> str:
        return f"the {self.over} of each {self.each}'s {self.of}"


def stored(
    compute: Callable[[], Importances], *, model: nn.Module, data: Any, settings: Mapping[str, Any]
) -> Importances:
    """What `compute()` gives, computed once for this model, this data and these settings; after that read from disk.

    So the importances of all training data can be taken right after training, and the data dropped. Weights, buffers
    or data that change are other ones. The tensors come back on their parameters' devices.

    Args:
        model: whose state, and whose choice of parameters, the key depends on.
        data: anything with a `.hash`, tensors (one, or a tuple, list or mapping of them), or plain values.
        settings: whatever else the result depends on, as JSON values: the loss by name, the batch size, the order.

    Raises:
        ModelError: settings that aren't JSON; a stored file that is damaged.
        DataError: data that can't be hashed.
    """
    parameters = trainable(model)
    try:
        plain = canonical_json(dict(settings))
    except TypeError as error:
        raise ModelError(f"the settings of the importances are not plain JSON ({error}).") from error
    key = hash_json(
        {"model": model_key(model), "parameters": list(parameters), "data": _data_hash(data), "settings": plain}
    )
    importances = cached_files(
        "curvature",
        key,
        lambda folder: compute().need_finite().save(folder / "importances"),
        lambda folder: Importances.load(folder / "importances"),
    )
    tensors = {name: tensor.to(parameters[name].device) for name, tensor in importances.tensors.items()}
    return dataclasses.replace(importances, tensors=tensors)
