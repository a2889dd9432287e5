"""One application of a method to an image model: what was given, and what methods ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ....data.images.images import Images
from ....data.images.splits import check_images
from ....errors import MethodError, ModelError
from ....models.curvature import evaluating
from ....models.vision_layout import VisionLayout, logits_of, vision_layout
from ..importance import image_loss
from ..phase import Phase
from ..work import Work
from .arguments import ImageArguments, image_arguments
from .resuming import LoopStore
from .training import train

if TYPE_CHECKING:
    from ....models.curvature.losses import LabelledBatch
    from ...base import Objective

__all__ = ["ImageWork", "frozen"]


@dataclass(kw_only=True)
class ImageWork(Work[Images, ImageArguments]):
    """As `Work`, on any module that takes pixels; with what methods on images ask for.

    Other models that a method asks for, such as teachers, are in evaluation mode and get no gradient.
    """

    reads: ClassVar[frozenset[str]] = frozenset(
        {"nll", "token counts", "logits", "retain", "retain nll", "retain logits", "features", "blocks"}
        | {f"reference {name}" for name in ("nll", "token counts", "logits", "retain logits", "features")}
    )

    args: ImageArguments = field(default_factory=ImageArguments)
    trainings: int = field(default=0, init=False)

    @classmethod
    def arguments(cls, args: ImageArguments | dict[str, Any] | None, defaults: Mapping[str, Any]) -> ImageArguments:
        return image_arguments(args, defaults)

    def check(self) -> None:
        sets = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}
        check_images({name: rows for name, rows in sets.items() if rows is not None})
        if self.allow_overlap:
            raise MethodError("allow_overlap is for texts: images in two sets are refused. Remove them from one.")
        if self.peft_config is not None:
            raise MethodError("adapters (peft_config) are for language models. Train an image model's own weights.")
        if not isinstance(self.model, nn.Module):
            raise ModelError(f"the model is {type(self.model).__name__}, not a torch module.")

    def check_phase(self, phase: Phase, objective: Objective) -> None:
        super().check_phase(phase, objective)
        method = type(objective).__name__
        if phase.descent is not None:
            raise MethodError(f"{method} on images: a phase has 'descent', which only the trainer of texts can follow.")
        if phase.apart:
            raise MethodError(
                f"{method} on images: a phase has 'apart', which only the trainer of texts can do. Use then."
            )
        for then in phase.steps()[1:]:
            if then.stream != phase.stream:
                raise MethodError(
                    f"{method} on images: what follows in a step has the stream {then.stream!r}, but the step's rows "
                    f"are those of {phase.stream!r}. Give both the same."
                )
            for name in ("epochs", "batch_size", "forget", "retain"):
                if getattr(then, name) is not None:
                    raise MethodError(
                        f"{method} on images: what follows in a step has {name}, but its rows are those of the step. "
                        f"Give {name} to the phase that it follows."
                    )

    def place(self) -> None:
        """Puts the model on the arguments' device.

        Raises:
            ModelError: as `layout`; before anything is computed.
        """
        if self.args.device is not None:
            self.model.to(self.args.device)
        _ = self.layout

    def train(self, objective: Objective) -> nn.Module:
        """As `Work.train`, by a plain loop; a row alone is refused where the model takes batch statistics.

        Raises:
            as `Work.train`; ModelError: as `layout`.
        """
        return train(objective, self)

    def next_store(self) -> LoopStore | None:
        """Where the next training of this application keeps its checkpoints; None where none are wanted."""
        self.trainings += 1
        if self.args.output_dir is None:
            return None
        folder = Path(self.args.output_dir) / f"phase-{self.trainings}"
        return LoopStore(folder, resumes=bool(self.args.resume_from_checkpoint))

    def encoded(self, rows: Images) -> Images:
        """The rows themselves."""
        return rows

    @property
    def row_loss(self) -> Callable[[nn.Module, LabelledBatch], Tensor]:
        return image_loss

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @cached_property
    def layout(self) -> VisionLayout:
        """The model's head, features, blocks and norms.

        Raises:
            ModelError: as `vision_layout`; outputs that don't fit the data.
        """
        rows = min(2, len(self.forget))
        layout = vision_layout(self.model, self.forget.pixels[:rows].to(self.device))
        if layout.num_outputs != self.forget.num_outputs:
            raise ModelError(
                f"the model has {layout.num_outputs} outputs and the data {self.forget.num_outputs} "
                f"{'classes' if self.forget.labels is not None else 'target'}. Give a model made for this data."
            )
        return layout

    def fresh(self, seed: int) -> nn.Module:
        """A new, untrained model of the recipe, on the model's device.

        Raises:
            MethodError: there is no recipe.
        """
        if self.recipe is None:
            raise MethodError("a fresh model is needed. Give the recipe that trained this one.")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: nn.Module = self.recipe.build(seed)
        return model.to(self.device)

    def outputs(self, model: nn.Module, rows: Images, batch_size: int = 256) -> Tensor:
        """`[rows, outputs]` in evaluation mode, whose forwards are counted."""
        with evaluating(model), torch.no_grad():
            logits = [logits_of(model, pixels) for pixels, _, _ in self.batches(rows, batch_size)]
        self.cost.add(len(rows))
        return torch.cat(logits)

    def features(self, model: nn.Module, rows: Images, batch_size: int = 256) -> Tensor:
        """`[rows, dim]`, what goes into the head, in evaluation mode."""
        layout = self.layout.of(model)
        with evaluating(model), torch.no_grad():
            features = [layout.observe(pixels).features for pixels, _, _ in self.batches(rows, batch_size)]
        self.cost.add(len(rows))
        return torch.cat(features)

    def batches(self, rows: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(pixels, target, index) in the set's own order, on the model's device."""
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            yield cast(
                "tuple[Tensor, Tensor, Tensor]",
                tuple(tensor.to(self.device) for tensor in (part.pixels, part.target, part.index)),
            )


def frozen(model: nn.Module) -> nn.Module:
    """In evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)
