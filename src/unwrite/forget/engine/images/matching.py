"""Matching: the model is fine-tuned until it says, on forget rows and some retain rows, what it is told to say.

Oracle matching and datamodel matching differ in where the targets come from alone. (arXiv 2410.23232)

    L = mean_x 1/C sum_c (f_c(x) - t_c(x))^2 + anchor |theta - theta_0|^2,   x in F, repeated, and a few retain rows
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ....data.images.images import Images
from ....errors import DataError, MethodError, NotFinite, setting, unknown
from ...base import Objective
from ..checks import require
from ..loss import Loss, PerRow
from ..phase import Phase
from ..stream import permutation
from .batch import PairedImages, Table
from .schedules import rounds
from .whole_step import WholeStep
from .work import ImageWork

__all__ = ["Matching", "matching_loss", "repeated", "retain_rows"]

_RETAIN = 42  # what the subset is drawn for
MatchLoss = Literal["mse", "ce"]


def matching_loss(logits: Tensor, target: Tensor, loss_type: MatchLoss = "mse") -> Tensor:
    """Each row's loss, `[rows]`: the mean squared error over outputs, or the cross-entropy to the targets' softmax.

    Args:
        logits, target: `[rows, outputs]`.
    """
    if loss_type == "ce":
        return -(target.float().softmax(1) * logits.float().log_softmax(1)).sum(1)
    return (logits - target).square().mean(1)


def repeated(count: int, times: float) -> Tensor:
    """Positions 0 to `count - 1`, `times` over; the fraction takes the first ones once more.

    >>> len(repeated(10, 2.5)), repeated(10, 2.5)[-1].item()
    (25, 4)
    """
    whole = int(times)
    return torch.cat([torch.arange(count).repeat(whole), torch.arange(int((times - whole) * count + 1e-9))])


def retain_rows(retain: Images, forget: int, multiplier: float, seed: int) -> Images | None:
    """A subset of `int(multiplier * forget)` retain rows, drawn once without replacement by the seed; None for no row.

    Raises:
        DataError: there are fewer.
    """
    size = int(multiplier * forget)
    if size > len(retain):
        raise DataError(
            f"{setting('retain_multiplier')} is {multiplier:g}, which asks for {size} retain rows for {forget} to forget, and there "
            f"are {len(retain)}. Give {setting('retain_multiplier')} at most {len(retain) / forget:.2f}."
        )
    if size == 0:
        return None
    drawn = permutation(len(retain), seed, _RETAIN)[:size]
    return retain.subset(retain.index[torch.from_numpy(drawn)], "retain")


@dataclass(frozen=True, kw_only=True)
class Matching(Objective[ImageWork]):
    """Base of methods that match outputs. Subclasses say which, by `targets`.

    Args:
        retain_multiplier: retain rows a forget row, >= 0; drawn once by the seed of the training arguments.
        forget_multiplier: how often the forget rows stand in an epoch, > 0; a fraction takes the first of them.
        loss_type: "mse" over all outputs, or "ce", the cross-entropy to the targets' softmax (classes only).
        decay: factor of the learning rate from one epoch to the next, above 0 to 1.
        anchor: weight of the squared distance to the weights before, >= 0.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    reads: ClassVar[frozenset[str]] = frozenset()  # targets are made once, before training
    training: ClassVar[dict[str, Any]] = {"optim": "adam", "weight_decay": 0.0}
    retain_multiplier: float = 20.0
    forget_multiplier: float = 1.0
    loss_type: MatchLoss = "mse"
    decay: float = 0.95
    anchor: float = 0.0

    def __post_init__(self) -> None:
        require("retain_multiplier", self.retain_multiplier, at_least=0)
        require("forget_multiplier", self.forget_multiplier, above=0)
        require("decay", self.decay, above=0, at_most=1)
        require("anchor", self.anchor, at_least=0)
        if self.loss_type not in ("mse", "ce"):
            raise MethodError(unknown("loss_type", str(self.loss_type), ("mse", "ce")))

    @abstractmethod
    def targets(self, work: ImageWork, rows: Mapping[str, Images]) -> dict[str, Tensor]:
        """What the model is to say of each set of rows, `[rows, outputs]`; nothing is trained of it yet."""

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        if forget.labels is None and self.loss_type == "ce":
            raise DataError(
                f"the loss 'ce' compares classes, and {forget.name} has regression targets. Use {setting('loss_type', 'mse')}."
            )
        if len(repeated(len(forget), self.forget_multiplier)) == 0:
            raise DataError(
                f"{setting('forget_multiplier')} is {self.forget_multiplier:g}, which takes none of {len(forget)} forget rows. Give "
                f"at least {1 / len(forget):.2g}."
            )
        retain_rows(retain, len(forget), self.retain_multiplier, 0)

    def loss(self, batch: PairedImages) -> Loss:
        """The mean over all rows; `reference_logits` of a part are its targets, `[rows, outputs]`."""
        terms = {}
        for name, part in batch.present():
            if part.reference_logits is None:
                raise MethodError(f"{name} rows have no targets. Train with the phases of {type(self).__name__}.")
            terms[name] = PerRow(matching_loss(part.logits, part.reference_logits, self.loss_type), "all")
        return Loss({}, **terms)

    def phases(self, work: ImageWork) -> list[Phase]:
        """One an epoch, at falling learning rates, on forget rows, repeated, and retain rows in one order.

        Raises:
            NotFinite: targets that are no numbers.
        """
        retain = retain_rows(work.retained, len(work.forget), self.retain_multiplier, work.args.seed)
        asked = {"forget": work.forget, **({} if retain is None else {"retain": retain})}
        found = self.targets(work, asked)
        for name, values in found.items():
            if not bool(values.isfinite().all()):
                raise NotFinite(f"the targets of {name} rows are not finite. Give a model that was trained well.")
        at = repeated(len(work.forget), self.forget_multiplier)
        copies = _copies(work.forget, at, work.retained)
        tables = {"forget": Table.of(copies, found["forget"][at.to(found["forget"].device)])}
        if retain is not None:
            tables["retain"] = Table.of(retain, found["retain"])
        before = {} if self.anchor == 0 else {n: p.detach().clone() for n, p in work.model.named_parameters()}

        def loss(batch: PairedImages) -> Loss:
            parts = {
                name: replace(part, reference_logits=tables[name].at(part.index)) for name, part in batch.present()
            }
            terms = self.loss(PairedImages(**parts)).terms
            if before:
                terms["anchor"] = WholeStep(self.anchor * _distance(work.model, before))
            return Loss({}, **terms)

        epochs = enumerate(rounds(work.args.num_train_epochs))
        rows: dict[str, Any] = {"forget": copies} if retain is None else {"forget": copies, "retain": retain}
        stream: Literal["forget", "union"] = "forget" if retain is None else "union"
        return [Phase(stream, loss, epochs=share, lr=self.decay**epoch, **rows) for epoch, share in epochs]


def _copies(forget: Images, at: Tensor, retain: Images) -> Images:
    """The rows at these positions, each copy under a name of its own that no retain row has."""
    first = max(int(forget.index.max()), int(retain.index.max())) + 1
    rounds_of = [at[start : start + len(forget)] for start in range(0, len(at), len(forget))]
    whole: Images | None = None
    for number, positions in enumerate(rounds_of):
        one = forget.subset(forget.index[positions])
        named = _renamed(one, first + number * len(forget) + torch.arange(len(one)))
        whole = named if whole is None else whole.joined(named)
    assert whole is not None
    return whole


def _renamed(rows: Images, index: Tensor) -> Images:
    """The same rows under other names."""
    copy = rows.subset(rows.index)  # targets of a part may all be equal, which a new set would refuse
    object.__setattr__(copy, "index", index)
    return copy


def _distance(model: nn.Module, before: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(p - before[name]).square().sum() for name, p in model.named_parameters()]).sum()
