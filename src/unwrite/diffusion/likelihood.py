"""How likely a mask predictor finds an answer (LLaDA, arXiv 2502.09992, eq. 6).

    -log p(answer) is at most  E over l ~ U{1..L}  of  L / l * sum over l hidden tokens of  -log p(token | what is visible)

The number of hidden tokens is drawn, not each token's fate: less variance for the same expectation. Within a batch the
numbers are spread evenly over 1..L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MethodError
from .adapter import MaskPredictor

if TYPE_CHECKING:
    from torch import nn

__all__ = ["log_likelihood"]


@torch.no_grad()
def log_likelihood(
    model: nn.Module | MaskPredictor,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    samples: int = 128,
    batch_size: int = 16,
    guidance: float = 0.0,
    seed: int = 0,
) -> float:
    """A lower bound of log p(answer | prompt) in nats, estimated; exact for an answer of one token.

    Args:
        model: a mask predictor: a transformers model, or a `MaskPredictor`.
        prompt, answer: ids.
        samples: draws, at least 1; rounded up to whole batches. One is enough for one token.
        batch_size: draws a forward.
        guidance: classifier-free guidance, see `Sampler`.
        seed: of the draws.

    Raises:
        MethodError: an empty answer, the mask token in the text, settings without meaning.
    """
    predictor = MaskPredictor.of(model)
    if not answer:
        raise MethodError("the answer is empty: there is nothing to judge.")
    if samples < 1 or batch_size < 1 or not 0 <= guidance < math.inf:
        raise MethodError(
            f"samples is {samples}, batch_size {batch_size}, guidance {guidance}; use samples and batch_size of at least 1 "
            "and a finite guidance of 0 or more."
        )
    if predictor.mask_id in (*prompt, *answer):
        raise MethodError(f"the text holds the mask token {predictor.mask_id}.")
    if predictor.shift and not prompt:
        raise MethodError("the prompt is empty, and this model predicts a token from the one before. Give one.")
    rows, size = min(batch_size, samples), len(answer)
    generator, total, drawn = torch.Generator().manual_seed(seed), 0.0, 0
    ids = torch.tensor([*prompt, *answer])
    while drawn < samples:
        hidden, count = _hidden(rows, size, generator)
        total += float(_bound(predictor, ids, len(prompt), hidden, count, guidance).sum())
        drawn += rows
    return total / drawn


def _hidden(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[rows, size] what is hidden in each draw, and [rows] how many: evenly spread from a random one on, around the end."""
    first = int(torch.randint(1, size + 1, (), generator=generator))
    count = (torch.linspace(first, first + (rows - 1) * size / rows, rows).round().long() - 1) % size + 1
    ranks = torch.rand(rows, size, generator=generator).argsort(1).argsort(1)
    return ranks < count[:, None], count


def _bound(
    predictor: MaskPredictor, ids: Tensor, prompt: int, hidden: Tensor, count: Tensor, guidance: float
) -> Tensor:
    """[rows] one draw each, float64."""
    rows, size = hidden.shape
    canvas = ids.repeat(rows, 1)
    canvas[:, prompt:][hidden] = predictor.mask_id
    canvas, answer = canvas.to(predictor.device), ids[prompt:].to(predictor.device)
    lengths = torch.full((rows,), len(ids), device=canvas.device)
    where = (prompt + torch.arange(size, device=canvas.device)).expand(rows, size)
    logits = predictor.logits(canvas, lengths, where).double()
    if guidance > 0:
        bare = canvas.clone()
        bare[:, :prompt] = predictor.mask_id
        other = predictor.logits(bare, lengths, where).double()
        logits = other + (guidance + 1) * (logits - other)
    if predictor.mask_id < logits.shape[-1]:
        logits = logits.index_fill(-1, torch.tensor(predictor.mask_id, device=canvas.device), -torch.inf)
    log_p = logits.log_softmax(-1).gather(-1, answer.expand(rows, size)[..., None])[..., 0]
    return (log_p * hidden.to(log_p.device)).sum(1).cpu() * size / count
