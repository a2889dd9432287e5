"""A model whose outputs on known rows are corrected; of every other row it says what it said before."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from ....models.vision_layout import logits_of

__all__ = ["CorrectedModel", "row_keys"]


def row_keys(pixels: Tensor) -> Tensor:
    """A number a row, `[rows]`, int64, from the bytes of its pixels as float32: the same row has the same."""
    rows = pixels.detach().to("cpu", torch.float32).contiguous().numpy()
    keys = [int.from_bytes(sha256(row.tobytes()).digest()[:8], "little", signed=True) for row in rows]
    return torch.tensor(keys, dtype=torch.int64)


class CorrectedModel(nn.Module):
    """A model and what is added to its outputs on rows whose pixels it knows, by a hash: the pixels aren't kept.

    Args:
        inner: takes pixels to `[rows, outputs]`; its weights stay.
        keys: of the rows, `[known rows]`, as `row_keys`.
        corrections: `[known rows, outputs]`.
    """

    keys: Tensor
    corrections: Tensor

    def __init__(self, inner: nn.Module, keys: Tensor | None = None, corrections: Tensor | None = None) -> None:
        super().__init__()
        self.inner = inner
        known = torch.empty(0, dtype=torch.int64) if keys is None else keys
        order = torch.argsort(known)
        self.register_buffer("keys", known[order])
        self.register_buffer("corrections", torch.empty(0, 1) if corrections is None else corrections[order])

    @property
    def bare(self) -> nn.Module:
        """The model inside."""
        return self.inner

    def forward(self, pixels: Tensor) -> Tensor:
        """`[rows, outputs]`"""
        logits = logits_of(self.inner, pixels)
        if len(self.keys) == 0:
            return logits
        keys = row_keys(pixels).to(self.keys.device)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        known = (self.keys[place] == keys)[:, None]
        return logits + torch.where(known, self.corrections[place], 0).to(logits)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """As many known rows as were saved."""
        for name in ("keys", "corrections"):
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *others)
