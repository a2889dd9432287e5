"""Tokens that the residual stream marks: the few huge numbers of it stand where attention goes for want of anything better.

Massive activations (arXiv 2402.17762) and attention sinks go together, so the largest numbers of a layer's input name the tokens whose
keys and values must stay as they are. (RotateKV, arXiv 2501.16383)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["massive_tokens", "real_columns"]


def massive_tokens(residual: Tensor, real: Tensor, count: int) -> Tensor:
    """Which tokens hold one of a row's largest numbers: bool [batch, tokens].

    Args:
        residual: [batch, tokens, hidden], a layer's input before its norm.
        real: bool [batch, tokens]: False where there is padding.
        count: how many numbers are looked at; as many tokens at most.
    """
    batch, tokens, hidden = residual.shape
    sizes = residual.abs().masked_fill(~real[..., None], -1).flatten(1)
    largest, at = sizes.topk(min(count, tokens * hidden))
    chosen = torch.zeros(batch, tokens, dtype=torch.int32, device=residual.device)
    return chosen.scatter_add_(1, at // hidden, (largest >= 0).int()) > 0


def real_columns(mask: Tensor | None, batch: int, new: int, known: int, device: torch.device) -> Tensor:
    """Which of a call's new tokens are no padding: bool [batch, new].

    Args:
        mask: as models make it: None, [batch, known], or one a query and key, bool or added to scores.
        new, known: tokens of this call, and of the text with them.
    """
    if not isinstance(mask, Tensor):
        return torch.ones(batch, new, dtype=torch.bool, device=device)
    seen = mask if mask.dim() == 2 else mask[:, 0, -1]  # the last query sees all that is there
    seen = seen[:, known - new : known]
    seen = seen if seen.dtype == torch.bool else seen > 0 if mask.dim() == 2 else seen > torch.finfo(seen.dtype).min / 2
    return seen.expand(batch, -1)
