"""One increment on disk: its tensors, and a note of what they saw, in a folder that is whole or absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from ...errors import RunError
from ...runs import clean, conforms, hash_file, new_folder, read_json, read_tensors, unwritable, write_json
from .orders import Order

__all__ = ["AGAIN", "NodeNote", "node_name", "read_increment", "write_increment"]

AGAIN = "Restore the folder, or fit into another."


@dataclass(frozen=True)
class NodeNote:
    """What one increment is, as its node.json says.

    Args:
        shard, prefix: the slices it was trained on, in this order.
        plan: the plan's hash.
        seed: of its first weights, its order of rows and its dropout.
        saw: {slice: hash of the records and contents}.
        rows: records it was trained on.
        deletions: how many were noted when it was trained.
        parent: hash of the increment it was trained on top of; empty for a first one.
        weights: SHA-256 of its file.
        score: minus the mean loss on the validation rows, or None.
        seconds: of its training.
    """

    shard: int
    prefix: Order
    plan: str
    seed: int
    saw: Mapping[str, str]
    rows: int
    deletions: int
    parent: str
    weights: str = ""
    score: float | None = None
    seconds: float = 0.0

    @property
    def key(self) -> tuple[int, Order]:
        """Its place in the plan."""
        return self.shard, self.prefix

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Of a node's folder.

        Raises:
            RunError: it is none.
        """
        value = read_json(folder / "node.json", RunError, AGAIN)
        value["prefix"] = tuple(value.get("prefix") or ())
        try:
            note = cls(**value)
        except TypeError as error:
            raise RunError(f"{folder / 'node.json'} is no note of an increment ({error}). {AGAIN}") from None
        if not conforms(note, cls) or folder.name != node_name(*note.key):
            raise RunError(f"{folder / 'node.json'} is no note of this increment. {AGAIN}")
        return note


def node_name(shard: int, prefix: Order) -> str:
    """The name of an increment's folder."""
    return f"{shard}-{'.'.join(map(str, prefix))}"


def write_increment(folder: Path, note: NodeNote, tensors: Mapping[str, Tensor]) -> NodeNote:
    """Writes an increment, whole or not at all, and gives its note with the file's hash.

    Raises:
        RunError: the disk is full or can't be written; whole increments stay.
    """
    from safetensors.torch import save_file

    place = folder / "nodes" / node_name(*note.key)
    clean(place)
    try:
        with new_folder(place) as fresh:
            file = fresh / "increment.safetensors"
            save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, file)
            note = replace(note, weights=hash_file(file))
            write_json(fresh / "node.json", asdict(note))
    except Exception as error:
        if not unwritable(error):
            raise
        raise disk_full(folder, note.key, error) from error
    return note


def disk_full(folder: Path, key: tuple[int, Order], error: Exception) -> RunError:
    """What is said when an increment can't be written."""
    return RunError(
        f"the increment {node_name(*key)} could not be written to {folder} ({' '.join(str(error).split())[:120]}). What is "
        "whole is kept: make room, and fit again into the same folder."
    )


def read_increment(folder: Path, note: NodeNote) -> dict[str, Tensor]:
    """An increment's tensors.

    Raises:
        RunError: the file is not the one that was written.
    """
    file = folder / "nodes" / node_name(*note.key) / "increment.safetensors"
    if not file.is_file() or hash_file(file) != note.weights:
        raise RunError(f"{file} is not as it was written, and node.json beside it is of another. {AGAIN}")
    return read_tensors(file, "increment", RunError)[0]
