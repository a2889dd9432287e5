"""What a call of a sampler did: forwards, order, blocks, stops."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import Step


@dataclass
class Trace:
    """What one call did.

    Attributes:
        nfe: [batch] forwards of each row (two a step with guidance).
        work: [batch] columns computed, summed over forwards.
        order: [batch, generated] the row's step at which a position got its last token, from 0; -1 where it never was masked.
        blocks: for each row the sizes of its blocks.
        exits: [batch] the step at which a stop filled the row, or -1.
        counts: {name: [batch]} what parts counted.
        revealed: for each row how many positions each of its steps revealed.
        canvases: for each row the generated part after each of its steps, where they were asked for; what was cut off before
            a step shows as masks.
        seconds: {"forward": ..., "parts": ...}
    """

    nfe: Tensor
    work: Tensor
    order: Tensor
    blocks: list[list[int]]
    exits: Tensor
    counts: dict[str, Tensor] = field(default_factory=dict)
    revealed: list[list[int]] = field(default_factory=list)
    canvases: list[list[list[int]]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"forward": 0.0, "parts": 0.0})

    def note(self, step: Step, canvas: Tensor, history: bool) -> None:
        """A step is over.

        Args:
            step: as it began.
            canvas: [rows, columns] as it is now.
            history: keep the canvases too.
        """
        size = self.order.shape[1]
        places = step.prompt[:, None] + torch.arange(size, device=canvas.device)
        cut = places >= step.length[:, None]
        places = places.clamp(max=canvas.shape[1] - 1)
        before, now = (one.gather(1, places).masked_fill(cut, step.mask_id) for one in (step.canvas, canvas))
        shown = (before == step.mask_id) & (now != step.mask_id)
        order = torch.where(shown, step.number[:, None], self.order[step.rows])
        self.order[step.rows] = torch.where((now == step.mask_id) & ~cut, -1, order)
        if history:
            counts = shown.sum(1).tolist()
            for at, row in enumerate(step.rows.tolist()):
                self.revealed[row].append(counts[at])
                self.canvases[row].append(now[at].tolist())
