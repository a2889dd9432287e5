"""Ordinary fine-tuning from a private base: the same for the model that is deployed and the one that is unlearned.

What a base was trained on reaches both only through its weights, so whatever is done to them afterwards spends nothing. Checkpoints
lie beside the folder that will be written, under a name made of everything the training depends on: one that was killed goes on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data.text.encoding import Encoded
from ...errors import RunError
from ...models import TrainRecipe, causal_recipe
from ...runs import claimed, hash_json, remove_folder, unwritable
from ..engine.checks import require

__all__ = ["DeploymentTuning", "beside", "fine_tuned"]


@dataclass(frozen=True, kw_only=True)
class DeploymentTuning:
    """How the deployed and the unlearned model are trained from the base, without noise: AdamW, warm-up, linear decay.

    Args:
        epochs: passes over the rows, > 0.
        rate: peak learning rate, > 0.
        batch: rows a step, > 0.
        decay: weight decay, >= 0.
        clip: largest gradient norm, > 0.
        warmup_epochs: over which the rate rises.
        retraining_epochs: that training anew would take, for the ratio of costs.
        device: where to train.
    """

    epochs: int = 5
    rate: float = 5e-5
    batch: int = 16
    decay: float = 0.01
    clip: float = 1.0
    warmup_epochs: float = 1.0
    retraining_epochs: int = 10
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("epochs", "rate", "batch", "clip", "retraining_epochs"):
            require(name, getattr(self, name), above=0)
        for name in ("decay", "warmup_epochs"):
            require(name, getattr(self, name), at_least=0)

    def recipe(self, start: Any) -> TrainRecipe:
        """The recipe from a folder or a configuration."""
        warmup = min(1.0, self.warmup_epochs / self.epochs)
        return causal_recipe(
            start, epochs=self.epochs, lr=self.rate, batch_size=self.batch, warmup=warmup, weight_decay=self.decay,
            clip=self.clip, device=self.device,
        )  # fmt: skip

    def steps(self, rows: int, epochs: int | None = None) -> int:
        """How many steps so many rows take."""
        return (self.epochs if epochs is None else epochs) * math.ceil(rows / self.batch)


def fine_tuned(start: Any, rows: list[Encoded], training: DeploymentTuning, seed: int, folder: Path) -> nn.Module:
    """The model that a start becomes; `folder` is where it will be stored."""
    recipe = training.recipe(start)
    with beside(folder, [recipe.settings, seed, _content(rows)]) as partial, torch.random.fork_rng():
        torch.manual_seed(seed)
        model = recipe.build(seed)
        recipe.fit(model, rows, list(range(len(rows))), seed, partial)
    return model.to("cpu")


def _content(rows: list[Encoded]) -> list[tuple[list[int], list[int]]]:
    return [(row.input_ids, row.labels) for row in rows]


@contextlib.contextmanager
def beside(folder: Path, what: Any) -> Iterator[Path]:
    """A folder for the checkpoints of `what`, this process's alone, that goes once the block ends without an error.

    Raises:
        RunError: the disk is full, read-only or failing; the last whole checkpoint stays.
    """
    partial = folder.with_name(f".{folder.name}.{hash_json(what)}")
    with claimed(partial):
        try:
            yield partial
        except Exception as error:
            if not unwritable(error):
                raise
            raise RunError(
                f"a checkpoint could not be written to {partial}: {' '.join(str(error).split())[:200]}. Make room, then make the same call: it "
                "goes on from the last that is whole."
            ) from error
    remove_folder(partial)
