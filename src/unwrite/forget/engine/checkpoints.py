"""Checkpoints of a training: whole or absent, checked before they are used, and with how training stood.

    checkpoint-10/                what transformers' Trainer writes: weights, optimiser, schedule, random states
        unwrite-training.json     whether training had ended, and what the callbacks know
    unwrite-<name>.safetensors    tensors that a callback keeps, such as a mean of the weights
    checkpoint-10.sums            sizes and hashes of the files

A checkpoint is written aside and gets its name when all of it is on the disk; the one before goes after that. So a kill at any moment
leaves the newest whole one, and a training that had ended is never trained on.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...errors import RunError, notice, setting
from ...models.checkpoints import read_json
from ...runs import drop, seal, sound, sync, unwritable, write_json

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["ASIDE", "KeepsTensors", "Resumable", "finish", "had_ended", "newest", "of_phase", "resumed_from", "writing"]

ASIDE = "unfinished"
_NOTE = "unwrite-training.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_PHASE = re.compile(r"phase-(\d+)")


@runtime_checkable
class Resumable(Protocol):
    """A callback whose knowledge is part of a checkpoint."""

    def checkpoint_state(self) -> dict[str, Any]:
        """What it knows, as JSON values."""

    def restore_state(self, state: dict[str, Any]) -> None:
        """Takes up again what `checkpoint_state` gave."""


@runtime_checkable
class KeepsTensors(Protocol):
    """A callback whose tensors are part of a checkpoint."""

    def checkpoint_tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name; there may be none."""

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up again what `checkpoint_tensors` gave."""


def finish(
    aside: Path, folder: Path, step: int, *, ended: bool, callbacks: Sequence[TrainerCallback], keep: int | None
) -> None:
    """Gives the checkpoint that was written in `aside` its name in `folder`, and removes older ones.

    Args:
        ended: whether training ends here.
        callbacks: what those know that are `Resumable` or `KeepsTensors` is kept with it.
        keep: how many checkpoints stay; None for all.
    """
    fresh, place = aside / f"checkpoint-{step}", folder / f"checkpoint-{step}"
    write_json(fresh / _NOTE, {"ended": ended, "callbacks": _states(callbacks)})
    _store_tensors(fresh, callbacks)
    sync(fresh)
    drop(place)  # of an earlier run that was taken up before it
    os.replace(fresh, place)
    seal(place)
    shutil.rmtree(aside, ignore_errors=True)
    if keep is not None:
        others = [path for number, path in _all(folder) if number != step]
        for old in others[: max(0, len(others) + 1 - max(1, keep))]:
            drop(old)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The block that writes a checkpoint.

    Raises:
        RunError: the disk is full, read-only or failing; the checkpoint before is still there.
    """
    try:
        yield
    except Exception as error:
        if not unwritable(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"a checkpoint could not be written to {folder}: {reason}. Make room, then go on with "
            f"{setting('resume', True)}."
        ) from error


def newest(folder: Path) -> Path | None:
    """The last checkpoint whose files are those that were written; damaged ones are dropped, with a notice."""
    return next((path for _, path in reversed(_all(folder)) if sound(path)), None)


def of_phase(resume: str | bool | None, number: int, folder: Path) -> str | bool | None:
    """What one phase of several goes on from: the checkpoint that was named if it is the phase's own, the newest if it is of a
    later phase, and none if it is of an earlier one.

    Args:
        number: of the phase, from 1.
        folder: of all phases.

    Raises:
        RunError: the checkpoint is of none of them.
    """
    if not resume or resume is True:
        return resume
    home = Path(resume).absolute().parent
    of = _PHASE.fullmatch(home.name)
    if of is None or home.parent != folder.absolute():
        raise RunError(
            f"the checkpoint {resume} is of no phase of the training in {folder}. Use "
            f"{setting('resume_from_checkpoint', True)} for the newest whole one."
        )
    return resume if number == int(of[1]) else number < int(of[1]) or None


def resumed_from(folder: Path, resume: str | bool | None, *, first: bool = True) -> Path | None:
    """The checkpoint to go on from.

    Args:
        resume: a checkpoint's folder; True for the newest in `folder`, and without one from the start; None for none.
        first: whether this is a training's first phase. A later one without a checkpoint had not begun, and begins.

    Raises:
        RunError: a checkpoint that isn't there, or is damaged.
    """
    if not resume:
        return None
    if resume is True:
        checkpoint = newest(folder)
        if checkpoint is None and first:
            notice(f"there is no whole checkpoint in {folder}, so training begins from the start.")
        return checkpoint
    checkpoint = Path(resume)
    if not checkpoint.is_dir():
        raise RunError(
            f"there is no checkpoint {checkpoint}. Use {setting('resume_from_checkpoint', True)} for the newest whole one."
        )
    if not (checkpoint / "trainer_state.json").is_file() or not sound(checkpoint):
        raise RunError(
            f"the checkpoint {checkpoint} is damaged. Use {setting('resume_from_checkpoint', True)} for the newest whole one."
        )
    return checkpoint


def had_ended(checkpoint: Path, callbacks: Sequence[TrainerCallback]) -> bool:
    """Whether training had ended at this checkpoint; the callbacks take up what they knew there."""
    note = checkpoint / _NOTE
    if not note.is_file():
        return False
    stored = read_json(note)
    for callback in callbacks:
        state = stored["callbacks"].get(type(callback).__name__)
        if state is not None and isinstance(callback, Resumable):
            callback.restore_state(state)
        file = _tensors_of(checkpoint, callback)
        if isinstance(callback, KeepsTensors) and file.is_file():
            callback.restore_tensors(load_file(file))
    return bool(stored["ended"])


def _states(callbacks: Sequence[TrainerCallback]) -> dict[str, Any]:
    return {type(one).__name__: one.checkpoint_state() for one in callbacks if isinstance(one, Resumable)}


def _store_tensors(folder: Path, callbacks: Sequence[TrainerCallback]) -> None:
    for one in callbacks:
        if isinstance(one, KeepsTensors) and (tensors := one.checkpoint_tensors()):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, _tensors_of(folder, one))


def _tensors_of(checkpoint: Path, callback: object) -> Path:
    return checkpoint / f"unwrite-{type(callback).__name__}.safetensors"


def _all(folder: Path) -> list[tuple[int, Path]]:
    """Every checkpoint with its step, in order."""
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in matches if match)
