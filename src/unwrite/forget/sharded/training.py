"""Trains a shard's stages: each on the union of its slices, on top of the stage before, its new increment alone.

A stage is a function of the base, the rows of its slices and a seed made of (seed, shard, slices so far): no optimiser state, no
head and no random state come from anywhere else. So the same rows give the same increment, bit for bit on one CPU thread,
whatever lies in other slices and whenever it is trained.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...errors import RunError
from ...models.recipe import CausalTraining, fit_rows
from ...runs import hash_json, hash_model, seeded, unwritable
from .increments import Increments, built
from .nodes import NodeNote, disk_full, read_increment, write_increment
from .orders import Order
from .tasks import ShardTask

__all__ = ["Base", "ShardJob", "loaded", "stage_seed", "train_shard"]

Base: TypeAlias = nn.Module | Callable[[], nn.Module]


def loaded(base: Base, expected: str | None = None) -> nn.Module:
    """The model itself, from the function that loads it where one was given.

    Args:
        expected: the hash it must have.

    Raises:
        RunError: another hash.
    """
    model = base if isinstance(base, nn.Module) else base()
    if expected is not None and (found := hash_model(model)) != expected:
        raise RunError(
            f"the base is another model than the increments stand on (hash {found}, not {expected}). Give the same one; one "
            "whose head is drawn at random must be saved first, and loaded from there."
        )
    return model


def stage_seed(seed: int, shard: int, prefix: Order) -> int:
    """The seed of a stage: of its own place alone, never of what comes after."""
    return int(hash_json([seed, shard, list(prefix)])[:8], 16)


@dataclass(frozen=True)
class ShardJob:
    """All stages to train of one shard, for this process or another.

    Args:
        base: the model below all increments, or a function that loads it.
        base_hash: its hash.
        parts: what a stage adds to it.
        task: what the rows are.
        how: the training of each stage.
        folder: of the ledger.
        seed: of the whole training.
        rows: {slice: training rows}.
        validation: public rows that stages are scored on.
        stages: a note of each stage to train, in order; without what training tells.
        partial: where each keeps its epochs.
        done: notes of the stages that are there.
    """

    base: Base
    base_hash: str
    parts: Increments
    task: ShardTask
    how: CausalTraining
    folder: Path
    seed: int
    rows: Mapping[int, list[Any]]
    validation: list[Any]
    stages: tuple[NodeNote, ...]
    partial: tuple[Path, ...]
    done: tuple[NodeNote, ...]

    def __str__(self) -> str:
        return f"shard {self.stages[0].shard}" if self.stages else "a shard"


def train_shard(job: ShardJob) -> int:
    """Trains the stages of a job, each written before the next begins; gives their number.

    Raises:
        RunError: the disk is full; another base.
    """
    base = loaded(job.base, None if isinstance(job.base, nn.Module) else job.base_hash).to(job.how.device)
    notes = {note.prefix: note for note in job.done}
    with _one_thread(job.how.device):
        for planned, partial in zip(job.stages, job.partial, strict=True):
            below = [notes[planned.prefix[:length]] for length in range(1, len(planned.prefix))]
            note = replace(planned, parent=below[-1].weights if below else "")
            notes[note.prefix] = _train_stage(job, base, note, below, partial)
            shutil.rmtree(partial, ignore_errors=True)
    return len(job.stages)


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """On a CPU sums are taken in one order, here as in the processes of a crew."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_stage(job: ShardJob, base: nn.Module, note: NodeNote, below: list[NodeNote], partial: Path) -> NodeNote:
    start = time.perf_counter()
    rows = list(chain.from_iterable(job.rows[part] for part in note.prefix))
    with seeded(note.seed):
        model = built(job.parts, base, [read_increment(job.folder, one) for one in below])
        trained = job.parts.grow(model.requires_grad_(False), len(below))
        for parameter in trained.values():
            parameter.requires_grad_(True)
        try:
            fit_rows(_Trained(model, trained), rows, job.how, note.seed, partial, job.task.loss)
        except Exception as error:
            if not unwritable(error):
                raise
            raise disk_full(job.folder, note.key, error) from error
    score = _score(job, model) if job.validation else None
    seconds = round(time.perf_counter() - start, 3)
    return write_increment(job.folder, replace(note, score=score, seconds=seconds), trained)


class _Trained(nn.Module):
    """A model of which the trainer sees the increment alone: it optimises, clips and keeps no other tensor."""

    def __init__(self, whole: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.whole, self._trained = whole, list(trained.values())

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(self._trained)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return iter(())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.whole(*args, **kwargs)


@torch.no_grad()
def _score(job: ShardJob, model: nn.Module) -> float:
    """Minus the mean loss of the validation rows' batches."""
    model.eval()
    size = job.how.batch_size
    batches = [job.validation[first : first + size] for first in range(0, len(job.validation), size)]
    losses = [job.task.loss(model, batch, job.how.device).item() * len(batch) for batch in batches]
    return -sum(losses) / len(job.validation)
