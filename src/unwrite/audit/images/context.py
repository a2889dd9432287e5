"""One image model under audit: what it says of every set and what goes into its head, computed once and kept on disk.

A pass is keyed by the content of the model and of the rows, so a second audit of the same model makes no forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...data.images.images import Images
from ...data.images.splits import ImageSplit
from ...errors import MethodError, ModelError
from ...models.curvature import evaluating
from ...models.vision_layout import VisionLayout, vision_layout
from ...runs import cached_files, hash_json, read_tensors
from ..context import FORMAT, Context, PassSettings
from .arrays import Floats, Labelled, Whole
from .pictures import pictures_of

if TYPE_CHECKING:
    from ..base import Suite
    from ..report.parts import Picture

__all__ = ["ImageContext"]

CONTROL = "head only"


class ImagePass(NamedTuple):
    """What a model made of a set.

    Args:
        logits: `[rows, outputs]`, float64.
        features: `[rows, dim]`, float64, what goes into the head.
    """

    logits: Floats
    features: Floats


class ImageContext(Context[ImageSplit]):
    """One image model on one split.

    Args:
        model: takes pixels `[rows, channels, height, width]` to `[rows, outputs]`.
        split: the rows.
        role, batch_size, cached: as `Context`.
    """

    kind: ClassVar[str] = "images"
    columns: ClassVar[Mapping[str, str | None]] = {**Context.columns, "control": CONTROL, "random": None}
    manner: ClassVar[str] = "Every model saw the same images."
    model: nn.Module

    def __init__(
        self, model: nn.Module, split: ImageSplit, *, role: str = "after", batch_size: int = 256, cached: bool = True
    ) -> None:
        super().__init__(model, split, role=role, batch_size=batch_size, cached=cached)
        self._passes: dict[str, ImagePass] = {}

    @classmethod
    def holds(cls, split: object) -> bool:
        return isinstance(split, ImageSplit)

    @classmethod
    def sets(cls, split: ImageSplit) -> Mapping[str, Sized]:
        return {**split.parts, **split.downstream}

    @classmethod
    def rows_named(cls, split: ImageSplit, name: str) -> Images | None:
        """A set of the split; "test retain" and "test forget" are the test rows of either kind."""
        special = {"test retain": split.test_retain, "test forget": split.test_forget}
        return special[name] if name in special else split.parts.get(name, split.downstream.get(name))

    @classmethod
    def beside(
        cls, models: Mapping[str, nn.Module], split: ImageSplit, suite: Suite, settings: PassSettings
    ) -> dict[str, Self]:
        """A context per model, which must have as many outputs as the data."""
        contexts = super().beside(models, split, suite, settings)
        for role, context in contexts.items():
            if context.outputs != split.forget.num_outputs:
                raise ModelError(
                    f"the {cls.columns.get(role) or role} model has {context.outputs} outputs and the data "
                    f"{split.forget.num_outputs}. Give a model made for this data."
                )
        return contexts

    @classmethod
    def pictures(cls, contexts: Mapping[str, Self]) -> tuple[Picture, ...]:
        """Confusion matrices, and the nearest neighbours of forgotten rows."""
        return pictures_of(contexts)

    @cached_property
    def layout(self) -> VisionLayout:
        """Where the model's head and features are."""
        device = next(self.model.parameters()).device
        return vision_layout(self.model, self.split.forget.pixels[:2].to(device))

    @property
    def outputs(self) -> int:
        """How many numbers the model gives a row."""
        return self.remember("outputs", list(self.split.forget.shape), lambda: self.layout.num_outputs)

    def set(self, name: str) -> Images:
        """A set of the split by name, as `rows_named`.

        Raises:
            MethodError: the split has no such set.
        """
        rows = self.rows_named(self.split, name)
        if rows is None:
            raise MethodError(f"the split {self.split.name} has no {name} rows.")
        return rows

    def logits(self, name: str) -> Floats:
        """What the model says of a set's rows, `[rows, outputs]`, float64."""
        return self._pass(name).logits

    def features(self, name: str) -> Floats:
        """What goes into the head for a set's rows, `[rows, dim]`, float64."""
        return self._pass(name).features

    def labels(self, name: str) -> Whole:
        """The labels of a set's rows, or their targets, `[rows]`."""
        return self.set(name).target.numpy()

    def labelled(self, name: str) -> Labelled:
        """A set as (logits, labels), or of a regressor as (predictions, targets)."""
        logits = self.logits(name)
        return (logits[:, 0] if self.set(name).labels is None else logits), self.labels(name)

    def _pass(self, name: str) -> ImagePass:
        if name not in self._passes:
            rows = self.set(name)
            tensors = self._kept(rows, lambda: self._forward(rows))
            self._passes[name] = ImagePass(*(tensors[part].double().numpy() for part in ImagePass._fields))
        return self._passes[name]

    def _kept(self, rows: Images, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a pass over these rows: from the disk, or computed and kept there."""
        if not self.cached or self.fingerprint is None:
            return compute()

        def read(folder: Path) -> dict[str, Tensor]:
            return read_tensors(folder / "pass.safetensors", "pass of an image model", ModelError, finite=False)[0]

        def make(folder: Path) -> None:
            save_file(compute(), folder / "pass.safetensors")

        return cached_files("image-passes", hash_json([FORMAT, self.fingerprint, rows.hash]), make, read)

    def _forward(self, rows: Images) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        logits, features = [], []
        with evaluating(self.model), torch.no_grad():  # in this order: `evaluating` turns gradients on
            for first in range(0, len(rows), self.batch_size):
                output = self.layout.observe(rows.pixels[first : first + self.batch_size].to(device))
                logits.append(output.logits.cpu())
                features.append(output.features.cpu())
        return {"logits": torch.cat(logits).contiguous(), "features": torch.cat(features).contiguous()}
