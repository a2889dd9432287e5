"""Names in a text by a token classifier, such as dslim/bert-base-NER: which characters it gives a label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from ....errors import ModelError
from ....models.classifiers import load_text_model
from ....runs import hash_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["NameTagger"]

OUTSIDE = "O"


@dataclass(frozen=True)
class NameTagger:
    """Marks characters of whatever the classifier gives another label than "O".

    Args:
        model: a token classifier.
        tokenizer: its own, a fast one.

    Raises:
        ModelError: a tokenizer that can't tell which characters a token covers.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"{type(self.tokenizer).__name__} can't tell which characters a token covers. Take a token classifier with a fast "
                "tokenizer."
            )

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Of a folder or a Hub id."""
        return cls(*load_text_model(name, "tokens"))

    @torch.no_grad()
    def __call__(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of every token with a label."""
        inputs = self.tokenizer(text, return_offsets_mapping=True, truncation=True, return_tensors="pt")
        offsets = inputs.pop("offset_mapping")[0].tolist()
        labels = self.model(**inputs.to(self.model.device)).logits[0].argmax(-1).tolist()
        names = self.model.config.id2label or {}
        return [
            (start, end)
            for (start, end), label in zip(offsets, labels, strict=True)
            if end > start and names.get(label) != OUTSIDE
        ]

    def save(self, folder: Path) -> None:
        """Writes model and tokenizer, safetensors alone."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def fingerprint(self) -> str:
        """Content hash of the model."""
        return hash_model(self.model)
