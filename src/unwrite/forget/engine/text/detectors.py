"""Whether a prompt asks for what is to be forgotten: what a detector of such prompts is.

    texts -> scores in [0, 1], in batches; fitted on forget and retain prompts, stored as tensors and plain settings

Its members are in `detector_kinds.py`; with a threshold one is a `CalibratedDetector`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from torch import Tensor

from ....runs import hash_json, hash_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DetectorSource", "Floats", "PromptDetector"]

Floats = np.ndarray[Any, np.dtype[np.float64]]


class PromptDetector(ABC):
    """Takes texts to how likely each asks for what is to be forgotten.

    Class attributes:
        name: of its kind, as settings and stored folders say it.
    """

    name: ClassVar[str]

    @abstractmethod
    def fit(self, forget: Sequence[str], retain: Sequence[str], seed: int = 0) -> Self:
        """This detector, fitted on prompts of both kinds; one that was trained elsewhere is given back as it is."""

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Floats:
        """Scores from 0 to 1, [texts]."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is stored: tensors, and plain settings."""

    @classmethod
    @abstractmethod
    def of_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: DetectorSource) -> Self:
        """The detector that was stored."""

    def write_model(self, folder: Path) -> None:
        """Writes a model that the detector has of its own into a folder that isn't there yet."""
        return

    def fingerprint(self) -> str:
        """Content hash."""
        tensors, settings = self.state()
        return hash_json([self.name, hash_tensors(tensors), settings])


@dataclass(frozen=True)
class DetectorSource:
    """Where a stored detector finds what is not in its own files.

    Args:
        folder: of a model of its own.
        model, tokenizer: the model that is guarded.
    """

    folder: Path
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
