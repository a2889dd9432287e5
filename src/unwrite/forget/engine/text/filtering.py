"""A filter of texts: scorers with thresholds set on benign texts, what it drops from an input, and a stream it holds back.

A text is flagged where one of its scores is above its threshold (`calibration.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor

from ....errors import DataError, ModelError, setting
from ....models.checkpoints import read_json
from ....runs import hash_json, hash_tensors, read_tensors, write_json
from ....scoring.words import words_of
from .calibration import conformal_threshold
from .scorers import SCORERS, Scorer

FILE, SETTINGS = "filter.safetensors", "filter.json"
_SPAN = re.compile(r"[^\n.!?。！？]+[.!?。！？]*\s*|[\n.!?。！？]+\s*")


@dataclass(frozen=True)
class TextFilter:
    """Scorers, each with the threshold above which a text is flagged.

    Args:
        scorers: the stages; a text is flagged where one of them does.
        thresholds: a number each, from 0 to below 1.
    """

    scorers: tuple[Scorer, ...]
    thresholds: tuple[float, ...]

    @classmethod
    def calibrated(cls, scorers: Sequence[Scorer], benign: Sequence[str], alpha: float) -> Self:
        """Sets every threshold on benign texts, at alpha shared among the stages.

        Raises:
            DataError: too few benign texts; or so many of them hold the forget texts that nothing could be flagged.
        """
        thresholds = []
        for scorer in scorers:
            tau = conformal_threshold([scorer.worst(text) for text in benign], alpha / len(scorers))
            if tau >= 1:
                raise DataError(
                    f"more than a share of {setting('alpha')} {alpha:g} of the benign texts hold all that the stage "
                    f"'{scorer.name}' looks for, so it could flag nothing. Take what is to be forgotten out of the retain rows."
                )
            thresholds.append(tau)
        return cls(tuple(scorers), tuple(thresholds))

    def flagged(self, text: str) -> bool:
        """Whether some stage scores some window of the text above its threshold."""
        return any(scorer.worst(text) > tau for scorer, tau in zip(self.scorers, self.thresholds, strict=True))

    def flagged_end(self, text: str) -> bool:
        """As `flagged`, of the text's last window alone: for a text that grows and whose earlier windows were passed."""
        words = words_of(text)
        for scorer, tau in zip(self.scorers, self.thresholds, strict=True):
            start = words[-scorer.window].start if len(words) > scorer.window else 0
            if scorer.worst(text[start:]) > tau:
                return True
        return False

    def without_flagged(self, text: str) -> str:
        """The text without the sentences and lines that make it flagged: each alone, or with the one before it.

        Returns:
            What is left, which may still be flagged where more than two of them say it together.
        """
        spans = _SPAN.findall(text)
        kept: list[str] = []
        for span in spans:
            if self.flagged(span):
                continue
            if kept and self.flagged(kept[-1] + span):
                kept.pop()
                continue
            kept.append(span)
        return "".join(kept)

    def fingerprint(self) -> str:
        """Content hash of scorers and thresholds."""
        parts = [scorer.state() for scorer in self.scorers]
        return hash_json([[hash_tensors(tensors), settings] for tensors, settings in parts] + [list(self.thresholds)])

    def save(self, folder: Path) -> None:
        """Writes tensors and settings, no pickle."""
        tensors: dict[str, Tensor] = {}
        stages = []
        for scorer, tau in zip(self.scorers, self.thresholds, strict=True):
            own, settings = scorer.state()
            tensors |= {f"{scorer.name}.{name}": tensor.contiguous() for name, tensor in own.items()}
            stages.append({"name": scorer.name, "threshold": tau, "settings": settings})
        save_file(tensors, str(folder / FILE))
        write_json(folder / SETTINGS, {"stages": stages})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            ModelError: a folder without a filter, or one that is damaged.
        """
        tensors, _ = read_tensors(folder / FILE, "content filter", ModelError, finite=False)
        stages: Any = read_json(folder / SETTINGS).get("stages")
        try:
            scorers = [
                SCORERS[stage["name"]].of_state(_of_stage(tensors, stage["name"]), stage["settings"])
                for stage in stages
            ]
            return cls(tuple(scorers), tuple(float(stage["threshold"]) for stage in stages))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{folder / SETTINGS} has no stages of a content filter. Copy the folder whole."
            ) from error


def _of_stage(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


class HeldStream:
    """A text that is let out word by word, its last words held back until they were looked at.

    Args:
        check: the filter.
        emit: is given what may be shown, piece by piece.
        withheld: words that are held back; not fewer than a run of the stage "ngrams" has.
    """

    def __init__(self, check: TextFilter, emit: Callable[[str], Any], withheld: int = 8) -> None:
        self.check, self.emit, self.withheld = check, emit, withheld
        self.text, self.shown, self.stopped = "", 0, False

    def add(self, piece: str) -> bool:
        """Takes what was written since, and shows what may be; returns whether to go on."""
        for part in re.findall(r"\S*\s*", piece):  # word by word, so that no window is passed over
            if self.stopped or not part:
                continue
            self.text += part
            if self.check.flagged_end(self.text):
                self.stopped = True
                continue
            words = words_of(self.text)
            if len(words) > self.withheld:
                self._show(words[-self.withheld].start)
        return not self.stopped

    def end(self) -> bool:
        """Shows the rest, if nothing was flagged; returns whether nothing was."""
        if not self.stopped:
            self._show(len(self.text))
        return not self.stopped

    def _show(self, until: int) -> None:
        if until > self.shown:
            self.emit(self.text[self.shown : until])
            self.shown = until
