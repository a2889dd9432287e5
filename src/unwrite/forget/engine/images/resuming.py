"""Checkpoints of the loop on images: after every epoch, all that the epochs to come depend on.

What a method prepares before its first step (a teacher, relabelled rows, what the model before said) is a function of that model,
the rows and the seed, and is made again. So a stopped training is begun with the model before, and goes on to the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....errors import RunError
from .. import checkpoints

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["LoopState", "LoopStore"]

_FILE = "state.pt"


@dataclass(frozen=True)
class LoopState:
    """How training stood after an epoch.

    Args:
        model: its state dict.
        optimisers: {number of the first phase that uses it: its state dict}, with those that follow in a step counted.
        random: torch's random state.
        epoch, step: how many there were, over all phases.
        history: the lines that were logged.
        ended: whether training ends here.
    """

    model: dict[str, Tensor]
    optimisers: dict[int, dict[str, Any]]
    random: Tensor
    epoch: int
    step: int
    history: list[dict[str, float]]
    ended: bool


@dataclass(frozen=True)
class LoopStore:
    """The checkpoints of one training of an application.

    Args:
        folder: holds them; only the newest stays.
        resumes: whether training goes on from them.
    """

    folder: Path
    resumes: bool

    def keep(self, state: LoopState, callbacks: Sequence[TrainerCallback]) -> None:
        """Writes a checkpoint, whole or not at all.

        Raises:
            RunError: the disk is full, read-only or failing.
        """
        aside = self.folder / checkpoints.ASIDE
        with checkpoints.writing(self.folder):
            fresh = aside / f"checkpoint-{state.step}"
            fresh.mkdir(parents=True, exist_ok=True)
            torch.save(vars(state), fresh / _FILE)
            checkpoints.finish(aside, self.folder, state.step, ended=state.ended, callbacks=callbacks, keep=1)

    def newest(self, callbacks: Sequence[TrainerCallback]) -> LoopState | None:
        """The newest whole checkpoint, where training goes on from one; callbacks take up what they knew there.

        Raises:
            RunError: it can't be read.
        """
        if not self.resumes or (folder := checkpoints.newest(self.folder)) is None:
            return None
        try:
            state = LoopState(**torch.load(folder / _FILE, weights_only=True))
        except Exception as error:  # torch's own of a file
            raise RunError(f"the checkpoint {folder} can't be read: {str(error).splitlines()[0][:200]}.") from error
        checkpoints.had_ended(folder, callbacks)
        return state
