"""One image model on one split, and one metric of it: what every part of the vision audit takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from ...data.images.images import Images
from ...data.images.splits import ImageSplit
from ...errors import MethodError
from ...models.curvature import evaluating
from ...models.vision_layout import VisionLayout, vision_layout
from ..base import Better, Panel, Score
from .arrays import Floats, Labelled, Whole

__all__ = ["ImageContext", "ImageMetric"]


@dataclass
class ImageContext:
    """One model on one split; what it says of a set is computed once.

    Args:
        model: takes pixels `[rows, channels, height, width]` to `[rows, outputs]`.
        split: the data.
        batch_size: rows a pass.
        others: contexts of the other models, by role; "random" is an untrained one.
    """

    model: nn.Module
    split: ImageSplit
    batch_size: int = 256
    others: dict[str, ImageContext] = field(default_factory=dict, repr=False)
    _seen: dict[str, tuple[Floats, Floats]] = field(default_factory=dict, repr=False)

    @cached_property
    def layout(self) -> VisionLayout:
        """The model's parts."""
        device = next(self.model.parameters()).device
        return vision_layout(self.model, self.split.forget.pixels[:2].to(device))

    def set(self, name: str) -> Images:
        """A set of the split; "test retain" and "test forget" are the test rows of either kind.

        Raises:
            MethodError: the split has no such set.
        """
        special = {"test retain": self.split.test_retain, "test forget": self.split.test_forget}
        rows = {**self.split.parts, **special}.get(name)
        if rows is None:
            raise MethodError(f"the split {self.split.name} has no {name} rows.")
        return rows

    def logits(self, name: str) -> Floats:
        """`[rows, outputs]`, float64."""
        return self._pass(name)[0]

    def features(self, name: str) -> Floats:
        """`[rows, dim]`, what goes into the head."""
        return self._pass(name)[1]

    def labels(self, name: str) -> Whole:
        """`[rows]`"""
        return self.set(name).target.numpy()

    def labelled(self, name: str) -> Labelled:
        """(logits, labels), or (predictions, targets) of a regressor."""
        logits = self.logits(name)
        return (logits[:, 0] if self.set(name).labels is None else logits), self.labels(name)

    @torch.no_grad()
    def _pass(self, name: str) -> tuple[Floats, Floats]:
        if name not in self._seen:
            rows, device = self.set(name), next(self.model.parameters()).device
            logits, features = [], []
            with evaluating(self.model):
                for first in range(0, len(rows), self.batch_size):
                    seen = self.layout.observe(rows.pixels[first : first + self.batch_size].to(device))
                    logits.append(seen.logits.double().cpu())
                    features.append(seen.features.double().cpu())
            self._seen[name] = torch.cat(logits).numpy(), torch.cat(features).numpy()
        return self._seen[name]


@dataclass(frozen=True)
class ImageMetric:
    """One metric of a suite for images.

    Args:
        name: unique within a suite.
        measure: gives the score of one model.
        about, better, panel: as `Metric`.
        needs: sets of the split it reads.
        against: role of the model it compares with ("before", "oracle", "random"), which must be there.
    """

    name: str
    measure: Callable[[ImageContext], Score]
    about: str
    better: Better = "toward_reference"
    panel: Panel = "forgotten"
    needs: tuple[str, ...] = ("forget",)
    against: str | None = None
    moments: ClassVar[bool] = False

    def applies(self, split: ImageSplit) -> bool:
        """Whether the split has the sets it reads."""
        special = {"test retain": split.test_retain, "test forget": split.test_forget}
        return all({**split.parts, **special}.get(name) is not None for name in self.needs)

    def __call__(self, context: ImageContext) -> Score:
        """Measures one model; a comparison with itself, or with a model that isn't there, has no value."""
        if self.against is not None and self.against not in context.others:
            return Score(self.name, None, [], self.better, f"There is no {self.against} model to compare with.")
        score = self.measure(context)
        return Score(self.name, score.value, score.per_example, self.better, score.note)

    def described(self) -> dict[str, Any]:
        """What the report says about this metric."""
        return {"name": self.name, "better": self.better, "about": self.about, "panel": self.panel}
