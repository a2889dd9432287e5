"""Training a memory on stored states: to answer as neighbours do, and to know the token that came next.

    L = alpha * KL(p_knn || p_memory) + (1 - alpha) * CE(next token, p_memory)        (MLP Memory, arXiv 2508.01832)

The divergence is taken over the tokens that neighbours have, a few dozen of the vocabulary: all others have probability 0 in the
target and add nothing. What the loss is smallest at is alpha p_knn + (1 - alpha) times the next token.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import DataError, MethodError, ModelError, setting
from ...models.recipe import CausalTraining, fit_rows
from ...runs import seeded
from .checks import above_zero, share, whole
from .datastore import Datastore
from .knn import SparseTargets
from .mlp_memory import MLPMemory

__all__ = ["MemoryTraining", "memory_loss", "train_memory"]


@dataclass(frozen=True, kw_only=True)
class MemoryTraining:
    """How a memory is trained: AdamW, a rate that rises over some steps and then falls linearly to 0.

    Args:
        alpha: share of the divergence in the loss, 0 to 1; 0.5 as published. 0 needs no targets, 1 sees no next token.
        epochs: passes over the positions, at least 1; 50 as published.
        batch_size: positions a step, at least 1; as published 16 blocks of 1,024 on each of 8 devices.
        lr: the peak learning rate, above 0.
        warmup_steps: steps until the peak; 2,000 as published. At most all there are.
        weight_decay: AdamW's, at least 0.
        clip: largest gradient norm, above 0.
        seed: of the order of positions and of dropout.
        device: where it is trained.
    """

    alpha: float = 0.5
    epochs: int = 50
    batch_size: int = 16 * 1024 * 8
    lr: float = 5e-4
    warmup_steps: int = 2000
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 42
    device: str = "cpu"

    def __post_init__(self) -> None:
        share("alpha", self.alpha)
        for name, least in {"epochs": 1, "batch_size": 1, "warmup_steps": 0, "seed": 0}.items():
            whole(name, getattr(self, name), least)
        for name in ("lr", "clip"):
            above_zero(name, getattr(self, name))
        if not 0 <= self.weight_decay < float("inf"):
            raise MethodError(f"{setting('weight_decay')} is {self.weight_decay!r}; it must be at least 0.")

    def steps(self, positions: int) -> CausalTraining:
        """The same for the loop that trains, with the warm-up as a share of the steps."""
        steps = self.epochs * -(-positions // self.batch_size)
        warmup = min(1.0, self.warmup_steps / steps)
        return CausalTraining(self.epochs, self.lr, self.batch_size, warmup, self.weight_decay, self.clip, self.device)


def memory_loss(logits: Tensor, values: Tensor, target: tuple[Tensor, Tensor] | None, alpha: float) -> Tensor:
    """The mean loss of some positions, in nats.

    Args:
        logits: [positions, vocabulary].
        values: [positions], the tokens that came next.
        target: tokens and probabilities [positions, entries] each, as `SparseTargets.at` gives them; None for alpha 0.
        alpha: share of the divergence.
    """
    logits = logits.float()
    total = logits.logsumexp(1)
    loss = (1 - alpha) * (total - logits.gather(1, values[:, None])[:, 0]).mean()
    if alpha > 0:
        assert target is not None
        tokens, weights = target
        entries = torch.xlogy(weights, weights) - weights * (logits.gather(1, tokens) - total[:, None])
        loss = loss + alpha * entries.sum(1).mean()
    return loss


def train_memory(
    memory: MLPMemory,
    states: Datastore,
    targets: SparseTargets | None,
    how: MemoryTraining | None = None,
    *,
    folder: str | Path | None = None,
) -> MLPMemory:
    """Trains a memory in place and returns it, in evaluation mode. The language model plays no part: its states are stored.

    Args:
        states: what the memory reads, of the model it will stand beside.
        targets: `knn_targets` of the same positions, of this store or a larger model's; None only for alpha 0.
        how: its settings; the published ones without.
        folder: keeps the last whole epoch, from which a training that was killed goes on to the same weights.

    Raises:
        MethodError: targets that are missing.
        DataError: targets of other positions, or of another vocabulary.
        ModelError: a memory of another vocabulary or width.
    """
    how = how or MemoryTraining()
    _check(memory, states, targets, how)

    def loss(model: nn.Module, batch: list[int], device: str) -> Tensor:
        at = torch.tensor(batch)
        target = None
        if how.alpha > 0 and targets is not None:
            tokens, weights = targets.at(at)
            target = tokens.to(device), weights.to(device)
        return memory_loss(model(states.keys[at].to(device)), states.values[at].to(device), target, how.alpha)

    home = nullcontext(str(folder)) if folder is not None else tempfile.TemporaryDirectory()
    with seeded(how.seed), home as place:
        fit_rows(memory, list(range(len(states))), how.steps(len(states)), how.seed, Path(place), loss)
    return memory


def _check(memory: MLPMemory, states: Datastore, targets: SparseTargets | None, how: MemoryTraining) -> None:
    if memory.vocabulary != states.vocabulary:
        raise ModelError(
            f"the memory has a vocabulary of {memory.vocabulary} tokens and the store one of {states.vocabulary}. Make it "
            f"with {setting('vocabulary', states.vocabulary)}."
        )
    if memory.input_width != states.width:
        raise ModelError(
            f"states are {states.width} wide, and this memory reads {memory.input_width}. Make it with "
            f"{setting('input_width', states.width)}."
        )
    if targets is None:
        if how.alpha > 0:
            raise MethodError(
                f"{setting('alpha', how.alpha)} needs targets. Give knn_targets(store), or {setting('alpha', 0)}."
            )
        return
    if len(targets) != len(states):
        raise DataError(
            f"there are targets of {len(targets)} positions and states of {len(states)}. Make both of the same rows."
        )
    if targets.vocabulary != states.vocabulary:
        raise DataError(
            f"the targets have a vocabulary of {targets.vocabulary} tokens and the states one of {states.vocabulary}. Take a "
            "model with the same tokenizer."
        )
