"""Texts as the mean states of a model's own layers: what a detector reads where no encoder of its own is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ....models import anatomy
from ....models.key_statistics import last_needed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RowStates"]

BATCH, LONGEST = 32, 512  # texts in a forward, and tokens of a text that are read


class RowStates:
    """Takes texts to mean states, [texts, layers, width].

    Args:
        model: a causal language model; it stays as it is.
        tokenizer: its own.
        layers: blocks behind which states are read, evenly spaced and the last among them; all where there are fewer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layers: int = 12) -> None:
        self.model, self.tokenizer, self.layers = model, tokenizer, layers
        depth = len(anatomy(model).blocks)
        count = min(layers, depth)
        self.blocks = [round((i + 1) * depth / count) - 1 for i in range(count)]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The mean over each text's own tokens behind each layer."""
        was_training = self.model.training
        self.model.eval()
        try:
            means = [self._means(texts[first : first + BATCH]) for first in range(0, len(texts), BATCH)]
        finally:
            self.model.train(was_training)
        return torch.cat(means).double().cpu().numpy()

    def _means(self, texts: Sequence[str]) -> Tensor:
        parts = anatomy(self.model).blocks
        inputs = self.tokenizer(
            list(texts), padding=True, padding_side="right", truncation=True, max_length=LONGEST, return_tensors="pt"
        ).to(self.model.device)
        mask = inputs["attention_mask"][..., None].float()
        means: dict[int, Tensor] = {}

        def watch(block: int) -> Any:
            def note(_: nn.Module, __: Any, out: Any) -> None:
                states = (out[0] if isinstance(out, tuple) else out).float()
                means[block] = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)

            return parts[block].module.register_forward_hook(note)

        hooks = [watch(block) for block in self.blocks]
        try:
            with last_needed(self.model, self.blocks[-1]):
                self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([means[block] for block in self.blocks], 1)

    def noted(self) -> dict[str, Any]:
        """What is stored of it."""
        return {"layers": self.layers}
