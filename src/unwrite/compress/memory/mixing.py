"""Mixing a language model with a memory, and how well that predicts texts at every weight.

log p = logaddexp(log(1 - lambda) + log p_LM, log(lambda) + log p_memory)        in float32; exact at 0 and 1
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...errors import ModelError, setting
from ...runs import progress
from .checks import share
from .datastore import EncodedRow, states_and_logits
from .tap import Tap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MixtureScores", "StateMemory", "check_memory", "interpolate", "score_rows"]

WEIGHTS = tuple(one / 20 for one in range(21))
"""Weights of the memory that `best_weight` tries by itself: 0, 0.05, ..., 1."""


class StateMemory(Protocol):
    """What can stand beside a language model: an `MLPMemory`, a `KNNLM`, anything with these."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def input_width(self) -> int: ...

    def log_probs(self, states: Tensor, temperature: float = 1.0) -> Tensor: ...


def interpolate(base: Tensor, memory: Tensor, weight: float) -> Tensor:
    """The logarithm of (1 - weight) p + weight q, of any shape, in float32; p itself at weight 0 and q at 1.

    Args:
        base, memory: log p and log q; -inf is probability 0.
        weight: of the memory, 0 to 1.
    """
    share("weight", weight)
    if weight == 0:
        return base.float()
    if weight == 1:
        return memory.float()
    return torch.logaddexp(base.float() + math.log1p(-weight), memory.float() + math.log(weight))


def check_memory(memory: StateMemory, width: int, vocabulary: int) -> None:
    """Refuses a memory for states or tokens of another model.

    Raises:
        ModelError: it reads states of another width, or has another vocabulary.
    """
    if memory.input_width != width:
        raise ModelError(
            f"the model's states are {width} wide, and the memory reads {memory.input_width}. Make it with "
            f"{setting('input_width', width)}."
        )
    if memory.vocabulary != vocabulary:
        raise ModelError(
            f"the model has a vocabulary of {vocabulary} tokens and the memory one of {memory.vocabulary}. Both need one "
            "tokenizer, and heads of one size."
        )


@dataclass(frozen=True)
class MixtureScores:
    """Log-probabilities of the tokens that come next in some texts.

    Args:
        base, memory: [tokens] in float32, of the model alone and of the memory alone.
        rows: [tokens], the number of each token's row.
    """

    base: Tensor
    memory: Tensor
    rows: Tensor

    def nll(self, weight: float) -> Tensor:
        """Of each token under the mixture, in nats. [tokens]"""
        return -interpolate(self.base, self.memory, weight)

    def perplexity(self, weight: float) -> float:
        """Of all tokens, each counted once."""
        return math.exp(float(self.nll(weight).double().mean()))

    def best_weight(self, weights: Iterable[float] = WEIGHTS) -> float:
        """The weight of lowest perplexity, the smallest of equals."""
        return min(weights, key=lambda weight: (self.perplexity(weight), weight))

    def of_rows(self, chosen: Tensor) -> MixtureScores:
        """The tokens of some rows."""
        inside = torch.isin(self.rows, chosen)
        return MixtureScores(self.base[inside], self.memory[inside], self.rows[inside])


@torch.no_grad()
def score_rows(
    model: PreTrainedModel,
    memory: StateMemory,
    rows: Sequence[EncodedRow],
    *,
    tap: Tap | None = None,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> MixtureScores:
    """What a model and a memory say of every labelled token of rows but their first.

    Args:
        tap: where the memory reads; the input of the last feed-forward part without.
        temperature: of the memory's logits.

    Raises:
        ModelError: see `check_memory` and `Tap.of`.
    """
    tap = tap or Tap()
    base, remembered, numbers = [], [], []
    for at in progress(range(0, len(rows), batch_size), "scoring"):
        states, logits, labels = states_and_logits(model, rows[at : at + batch_size], tap)
        check_memory(memory, states.shape[-1], logits.shape[-1])
        used = labels != -100
        next_tokens = labels[used][:, None]
        base.append(logits[used].float().log_softmax(-1).gather(1, next_tokens)[:, 0])
        remembered.append(memory.log_probs(states[used], temperature).gather(1, next_tokens)[:, 0])
        numbers.append((torch.arange(len(labels), device=labels.device)[:, None] + at).expand_as(labels)[used])
    return MixtureScores(torch.cat(base), torch.cat(remembered), torch.cat(numbers))
