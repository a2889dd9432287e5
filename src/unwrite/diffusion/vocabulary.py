"""What is read off logits over the whole vocabulary: the likeliest token, a token's probability, the spread.

All of it is in float64, because in lower precision ties and saturated probabilities change the order. A copy of a block's logits in
float64 would cost more than the arithmetic, so a few positions at a time are widened, and only those that somebody asks for. Each
position's number is the same whatever stands beside it: what is equal stays equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["entropy_of", "logsumexp", "margin_of", "probability_of", "top_token"]

NARROW, WIDE = 1 << 17, 1 << 24  # logits widened at once: what a processor's cache holds, and enough to fill a device
# So far below the largest logit, a power is too small to change a sum of at least 1, and exp is slow where it underflows.
ABSORBED = -700.0


def top_token(logits: Tensor) -> Tensor:
    """The token with the largest logit, the first of equals. logits: [..., vocab]; result: [...]."""
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(logits.detach().numpy().argmax(-1))  # vectorised, as torch's own is not
    return logits.argmax(-1)


def logsumexp(logits: Tensor, where: Tensor | None = None) -> Tensor:
    """The logarithm of the sum over the vocabulary, [...] in float64; 0 outside `where`."""
    return _by_position(_logsumexp, logits, where)


def probability_of(logits: Tensor, tokens: Tensor, where: Tensor | None = None) -> Tensor:
    """softmax(logits)[tokens] in float64.

    Args:
        logits: [..., vocab].
        tokens: [...].
        where: [...] positions that are asked for; elsewhere the result is 0. None for all.
    """
    chosen = logits.gather(-1, tokens[..., None])[..., 0].double()
    probability = (chosen - logsumexp(logits, where)).exp()
    return probability if where is None else probability.masked_fill(~where, 0.0)


def margin_of(logits: Tensor, where: Tensor | None = None) -> Tensor:
    """The distance of the two largest probabilities, [...] in float64; 0 outside `where`."""

    def margin(rows: Tensor) -> Tensor:
        rows = rows.double()
        two = rows.topk(2, dim=-1).values - rows.logsumexp(-1)[:, None]
        return two[:, 0].exp() - two[:, 1].exp()

    return _by_position(margin, logits, where)


def entropy_of(logits: Tensor, where: Tensor | None = None) -> Tensor:
    """-sum p ln(p + 1e-10) in nats, [...] in float64; 0 outside `where`."""

    def entropy(rows: Tensor) -> Tensor:
        rows = rows.double()
        p = (rows - rows.logsumexp(-1)[:, None]).exp()
        return -(p * (p + 1e-10).log()).sum(-1)

    return _by_position(entropy, logits, where)


def _logsumexp(rows: Tensor) -> Tensor:
    """What `torch.logsumexp` computes in float64, in the same order, within one copy of the rows."""
    top = rows.amax(-1, keepdim=True).double()
    largest = top.masked_fill(top.isinf(), 0.0)
    powers = rows.to(torch.float64, copy=True).sub_(largest).clamp_(min=ABSORBED).exp_()
    return powers.sum(-1).log_().add_(largest[:, 0]).masked_fill(top[:, 0] == -torch.inf, -torch.inf)


def _by_position(measure: Callable[[Tensor], Tensor], logits: Tensor, where: Tensor | None) -> Tensor:
    """measure([positions, vocab]) -> [positions] in float64, over the positions asked for."""
    on_host = logits.device.type == "cpu"
    rows = logits.reshape(-1, logits.shape[-1])
    if where is not None and on_host:  # to count them on a device, the host would have to wait
        places = torch.nonzero(where.reshape(-1))[:, 0]
    else:
        places = torch.arange(len(rows), device=rows.device)
    result = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    size = max(1, (NARROW if on_host else WIDE) // max(1, rows.shape[-1]))
    for some in places.split(size):
        # Two at least: the sum over a single row would be split between threads, and rounded in another order.
        several = some if len(some) > 1 else some.repeat(2)
        result[some] = measure(rows[several])[: len(some)]
    result = result.view(logits.shape[:-1])
    return result if where is None or on_host else result.masked_fill(~where, 0.0)
