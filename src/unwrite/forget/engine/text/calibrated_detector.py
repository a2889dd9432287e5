"""A detector of prompts with its threshold, set on retain prompts so that a stated share of them is flagged at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors.torch import save_file

from ....errors import MethodError, ModelError, NotFinite, notice, setting
from ....models.checkpoints import read_json
from ....runs import hash_json, read_tensors, write_json
from .calibration import conformal_quantile, least_texts
from .detector_kinds import DETECTORS
from .detectors import DetectorSource, PromptDetector

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["CalibratedDetector"]

FILE, SETTINGS, MODEL = "detector.safetensors", "detector.json", "detector"


@dataclass(frozen=True)
class CalibratedDetector:
    """A detector with the threshold above which a prompt is flagged.

    It fails closed: a prompt whose score can't be had, or is no number, is flagged.

    Args:
        detector: gives the scores.
        threshold: from 0 to 1; 1 flags nothing.
    """

    detector: PromptDetector
    threshold: float

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise MethodError(f"{setting('threshold')} is {self.threshold}; a score lies from 0 to 1, and so must it.")

    @classmethod
    def calibrated(cls, detector: PromptDetector, benign: Sequence[Sequence[str]], alpha: float) -> Self:
        """With the threshold that flags at most a share alpha of fresh benign prompts; 1 where there are too few to say.

        Args:
            benign: prompts that the detector was not fitted on, each as the turns of its users.

        Raises:
            NotFinite: a score of theirs that is no number.
        """
        scores = cls(detector, 1.0).scores(benign)
        if not all(map(math.isfinite, scores)):
            raise NotFinite(f"the detector {detector.name!r} gives no number on a retain prompt. Mend it.")
        threshold = conformal_quantile(scores, alpha)
        if threshold is None:
            notice(
                f"{len(benign)} retain prompts are too few to calibrate a detector at {setting('alpha')} {alpha:g}: it flags "
                f"nothing. Give at least {least_texts(alpha)} for calibration, raise {setting('alpha')}, or set {setting('threshold')}."
            )
        return cls(detector, 1.0 if threshold is None else threshold)

    def scores(self, prompts: Sequence[Sequence[str]]) -> list[float]:
        """The score of each prompt, that of its worst turn; not a number where the detector fails.

        Args:
            prompts: each as the turns of its users.
        """
        turns = [turn for prompt in prompts for turn in prompt]
        values = self._asked(turns)
        if values is None:  # the others must not suffer for one
            values = [one[0] if (one := self._asked([turn])) else math.nan for turn in turns]
        scores, at = [], 0
        for prompt in prompts:
            own = values[at : at + len(prompt)]
            scores.append(math.nan if not own or any(map(math.isnan, own)) else max(own))
            at += len(prompt)
        return scores

    def flagged(self, prompts: Sequence[Sequence[str]]) -> list[bool]:
        """Whether each prompt is above the threshold, or the detector fails on it."""
        return [not score <= self.threshold for score in self.scores(prompts)]

    def _asked(self, texts: list[str]) -> list[float] | None:
        if not texts:
            return []
        try:
            values = np.asarray(self.detector(texts), dtype=float)
        except Exception as error:  # of whatever model it is
            notice(
                f"the detector {self.detector.name!r} failed ({type(error).__name__}), so what it can't judge is flagged."
            )
            return None
        return values.tolist() if values.shape == (len(texts),) else None

    def fingerprint(self) -> str:
        """Content hash of detector and threshold."""
        return hash_json([self.detector.fingerprint(), self.threshold])

    def save(self, folder: Path) -> None:
        """Writes tensors and settings, and a model of the detector's own into a folder inside; no pickle."""
        tensors, settings = self.detector.state()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / FILE))
        self.detector.write_model(folder / MODEL)
        write_json(folder / SETTINGS, {"name": self.detector.name, "threshold": self.threshold, "settings": settings})

    @classmethod
    def load(
        cls, folder: Path, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Self:
        """Reads what `save` wrote.

        Args:
            model, tokenizer: the model that is guarded, for a detector that reads its hidden states.

        Raises:
            ModelError: a folder without a detector, or one that is damaged.
        """
        tensors, _ = read_tensors(folder / FILE, "prompt detector", ModelError, finite=False)
        stored: Any = read_json(folder / SETTINGS)
        source = DetectorSource(folder / MODEL, model, tokenizer)
        try:
            detector = DETECTORS[stored["name"]].of_state(tensors, stored["settings"], source)
            return cls(detector, float(stored["threshold"]))
        except (KeyError, TypeError, ValueError, MethodError) as error:
            raise ModelError(
                f"{folder / SETTINGS} has no settings of a prompt detector. Copy the folder whole."
            ) from error
