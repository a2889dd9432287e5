"""Concept poisoning: paste what another class is known by over what a class is known by, and train the head on it.

A sparse classifier of concepts says which concept carries the class, and which other class lends one; in every picture of the class a
patch of a donor picture goes where the concept is, under the donor's label. Ordinary fine-tuning on these and the rows to keep
follows, of the last layer alone. (arXiv 2405.15662, after its authors' revised code)

    L = mean_{D_p u D_r} CE(f(x), y),   D_p = {(paste(x, patch(x', v_donor) -> peak_x v_target), y_donor) : x in D_f}

The label does the forgetting: `mode="none"`, which pastes nothing, forgets as well, and `labels="keep"` forgets nothing. Features stay
what they were, so a linear probe finds the class again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from ...data.images.images import Images
from ...errors import DataError, MethodError, setting, unknown
from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages, add_losses
from ..engine.images.classes import need_classes, whole_classes
from ..engine.images.concepts import ConceptBank, ConceptCase, Encoder
from ..engine.images.poisoning import Locator, Mode, PasteSizes, Poisoner, poisoned, some_of_each
from ..engine.images.random_labels import any_labels
from ..engine.images.work import ImageWork
from ..engine.loss import Loss
from ..engine.phase import Phase

__all__ = ["ConceptPoison"]

PoisonLabels = Literal["targeted", "random", "keep"]


@dataclass(frozen=True, kw_only=True)
class ConceptPoison(Objective[ImageWork]):
    """Fine-tunes the head on the retain set and on poisoned pictures of one class, which is forgotten whole.

    Sizes are in pixels; where they are None they are to the picture's shorter side as 64, 96, 160 and 16 are to 224.

    Args:
        mode: what is pasted: "localized" (a patch from where the donor concept is, to where the target concept is), "center" (the
            middle of a donor picture, in the middle), "random" (the same, anywhere), "full" (a whole donor picture made smaller, in
            the middle) or "none".
        labels: of the poisoned pictures: "targeted" (the donor's class), "random" (drawn once from all classes, the true one among
            them) or "keep".
        top: of the class's strongest concepts, how many are pasted over; each further one by the class that it speaks for most
            otherwise.
        locator: where in a picture of the class: "similarity" to the target concept, "margin" (what all concepts say for the class) or
            "gradcam" (of the model itself).
        target_concept, donor_concept, donor_class: by name; None lets the concept bottleneck choose.
        encoder: pixels `[rows, channels, height, width]` to `[rows, dim]`, such as `ClipEncoder`; None for the model's own features.
        bank: concepts in the encoder's space; None for clusters of patches.
        clusters: how many of those, at least 1. (ours)
        patch_size, center_size, full_size: of what is pasted: localized; center and random; full.
        stride: of the sliding window.
        head_only: whether the head alone is trained; False trains all.
        freeze_bn: whether batch statistics stay as they are; the official code lets them drift. (ours)
        share: of the rows of every class that there are to train with, drawn by the seed; a half is the paper's "half integrity".
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "num_train_epochs": 20,
        "per_device_train_batch_size": 32,
    }
    mode: Mode = "localized"
    labels: PoisonLabels = "targeted"
    top: int = 1
    locator: Locator = "similarity"
    target_concept: str | None = None
    donor_concept: str | None = None
    donor_class: str | None = None
    encoder: Encoder | None = None
    bank: ConceptBank | None = None
    clusters: int = 20
    patch_size: int | None = None
    center_size: int | None = None
    full_size: int | None = None
    stride: int | None = None
    head_only: bool = True
    freeze_bn: bool = False
    share: float = 1.0

    def __post_init__(self) -> None:
        choices = (("mode", Mode), ("labels", PoisonLabels), ("locator", Locator))
        for name, allowed in choices:
            if getattr(self, name) not in get_args(allowed):
                raise MethodError(unknown(name, str(getattr(self, name)), get_args(allowed)))
        for name in ("top", "clusters"):
            require(name, getattr(self, name), at_least=1)
        for name in ("patch_size", "center_size", "full_size", "stride"):
            if getattr(self, name) is not None:
                require(name, getattr(self, name), at_least=1)
        for name in ("head_only", "freeze_bn"):
            if not isinstance(getattr(self, name), bool):
                raise MethodError(f"{setting(name)} is {getattr(self, name)!r}; use True or False.")
        require("share", self.share, above=0, at_most=1)
        if self.top > 1 and (self.mode, self.locator) != ("localized", "similarity"):
            raise MethodError(
                f"{setting('top')} is {self.top}, which pastes at several concepts; with {setting('mode', self.mode)} and "
                f"{setting('locator', self.locator)} there is one place. Use {setting('top', 1)}."
            )

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        labels = need_classes(self, forget, most=1)
        kept = need_classes(self, retain)
        if not whole_classes(forget, retain):
            raise DataError(
                f"ConceptPoison forgets a whole class, and the retain set still has rows of {forget.classes[int(labels[0])]}. Split by "
                "class, or take another method."
            )
        if self.donor_class is None:
            return
        if self.donor_class not in forget.classes:
            raise MethodError(unknown("class", self.donor_class, forget.classes))
        donor = forget.classes.index(self.donor_class)
        if donor == int(labels[0]):
            raise MethodError(
                f"{setting('donor_class')} is {self.donor_class!r}, which is the class to forget. Give another class."
            )
        if not bool((kept == donor).any()):
            raise DataError(
                f"the class {self.donor_class!r} has no rows to keep, so it can lend nothing. Give another."
            )

    def check_work(self, work: ImageWork) -> None:
        super().check_work(work)
        self.sizes(work.forget).check(self.mode, *work.forget.shape[1:])
        if self.bank is None:
            return
        for name in (self.target_concept, self.donor_concept):
            if name is not None:
                self.bank.at(name)
        if self.top > len(self.bank.names):
            raise MethodError(
                f"{setting('top')} is {self.top}, and the bank has {len(self.bank.names)} concepts. Give at most that."
            )

    def sizes(self, rows: Images) -> PasteSizes:
        """Of what is pasted into such pictures, and of the window's steps."""
        return PasteSizes.of(rows.shape, self.patch_size, self.center_size, self.full_size, self.stride)

    def trainable(self, work: ImageWork) -> Sequence[Tensor] | None:
        """The head's parameters, unless all are trained."""
        if not self.head_only:
            return None
        head = set(work.layout.last(1))
        return [value for name, value in work.layout.model.named_parameters() if name in head]

    def loss(self, batch: PairedImages) -> Loss:
        """Cross-entropy of all rows of a step together, poisoned ones with the labels that they were given."""
        return add_losses(batch)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on the poisoned rows and the rows to keep in one order."""
        retain = some_of_each(work.retained, self.share, work.args.seed)
        return [Phase("union", self.loss, forget=self.poisoned_rows(work), retain=retain)]

    def poisoned_rows(self, work: ImageWork) -> Images:
        """The forget rows as they are trained on; pixels stay in memory as they were pasted."""
        forget = some_of_each(work.forget, self.share, work.args.seed)
        if self.mode == "none" and (self.labels != "targeted" or self.donor_class is not None):
            return poisoned(forget, forget.pixels, self._labels(forget, self._named(forget), work.args.seed))
        poisoner = self.poisoner(work)
        case = self.case(poisoner)
        pixels = poisoner.pixels(forget, case, self.mode, self.locator, self.top)
        return poisoned(forget, pixels, self._labels(forget, case.donor_class, work.args.seed))

    def poisoner(self, work: ImageWork) -> Poisoner:
        """What knows the concepts of these rows."""
        return Poisoner(work, self.sizes(work.forget), self.encoder, self.bank, self.clusters, self.share)

    def case(self, poisoner: Poisoner) -> ConceptCase:
        """What is pasted over what: the bottleneck's choice, and what is given in its place.

        Raises:
            MethodError: a concept that the bank has not.
        """
        given = self._named(poisoner.work.forget)
        return poisoner.case(self.target_concept, self.donor_concept, given)

    def _named(self, rows: Images) -> int | None:
        return None if self.donor_class is None else rows.classes.index(self.donor_class)

    def _labels(self, rows: Images, donor: int | None, seed: int) -> Tensor:
        assert rows.labels is not None
        if self.labels == "random":
            drawn = any_labels(rows, seed, 0).labels
            assert drawn is not None
            return drawn
        return rows.labels if self.labels == "keep" or donor is None else torch.full_like(rows.labels, donor)

    def _apply(self, work: ImageWork) -> nn.Module:
        if self.freeze_bn:
            still = _StillNorms([work.layout.model.get_submodule(name) for name in work.layout.with_statistics])
            work = replace(work, callbacks=[*work.callbacks, still])
        return super()._apply(work)


@dataclass
class _StillNorms(TrainerCallback):
    """Keeps normalisation layers in evaluation mode: their statistics would move without a gradient."""

    norms: list[nn.Module] = field(default_factory=list)

    def on_step_begin(self, args: object, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for norm in self.norms:
            norm.eval()
