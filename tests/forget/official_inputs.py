"""Inputs from a seed, on which the official codes' numbers in official.json were taken and ours are compared."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE, ROWS, LENGTH, VOCAB, HIDDEN = -100, 3, 7, 128, 16
PARTS = ("forget", "alternate", "retain")
PROMPTS, LENGTHS = (2, 3, 1), (7, 5, 6)  # per row: masked prompt tokens, tokens before right padding


def inputs() -> dict[str, dict[str, Tensor]]:
    """Per part: ids and labels [3, 7] right-padded; policy and reference logits [3, 7, 128], hidden [3, 7, 16]."""
    torch.manual_seed(0)
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    scored = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        mask[row, :length] = 1
        scored[row, prompt:length] = True
    parts = {}
    for part in PARTS:
        ids = torch.randint(1, VOCAB, (ROWS, LENGTH)) * mask
        parts[part] = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": ids.masked_fill(~scored, IGNORE),
            "policy": torch.randn(ROWS, LENGTH, VOCAB, dtype=torch.float64),
            "reference": torch.randn(ROWS, LENGTH, VOCAB, dtype=torch.float64),
            "hidden": torch.randn(ROWS, LENGTH, HIDDEN, dtype=torch.float64),
            "reference_hidden": torch.randn(ROWS, LENGTH, HIDDEN, dtype=torch.float64),
        }
    return parts


def whole(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same part without prompt and padding: every position a label, as where masks can't matter."""
    torch.manual_seed(1)
    ids = torch.randint(1, VOCAB, (ROWS, LENGTH))
    return {**part, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
