"""SCRUB: a student stays close to its teacher, the model before, on what to keep, and moves away on what to forget.

Epochs of both alternate: a few passes that raise the distance on forget rows (MAX), each followed by one that lowers it,
with the ordinary loss, on retain rows (MIN). Rewinding goes back to where forget rows look like rows never seen.
(SCRUB and SCRUB+R, arXiv 2302.09880)

    MAX: L = - mean_{D_f} KD,   MIN: L = mean_{D_r} (gamma * CE + alpha * KD),   KD = T^2 KL(softmax(t/T) || softmax(s/T))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from ...data.images.images import Images, first_few
from ...errors import DataError, MethodError
from ...models.layout import unwrap
from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import PairedImages
from ..engine.images.classes import need_classes
from ..engine.images.schedules import rounds
from ..engine.images.work import ImageWork
from ..engine.loss import Loss, PerRow, kl_divergence
from ..engine.phase import Phase

__all__ = ["SCRUB", "distillation", "rewind_point"]


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KD of each row, `[rows]`, in nats times T^2; both `[rows, classes]`."""
    return temperature**2 * kl_divergence(teacher / temperature, student / temperature)


def rewind_point(errors: Sequence[float], reference: float) -> int:
    """Which of the checkpoints' forget errors is closest to the reference error; of equally close ones the latest."""
    return min(reversed(range(len(errors))), key=lambda at: abs(errors[at] - reference))


@dataclass(frozen=True, kw_only=True)
class SCRUB(Objective[ImageWork]):
    """Defaults are those for CIFAR-scale sets; for a few dozen rows the authors take Adam, lr 5e-4, weight decay 0.1,
    10 epochs, gamma=1, alpha=0.5, temperature=2, msteps=3, decay=(5, 8, 9).

    Before the first update student and teacher are equal, so a first MAX step in evaluation mode has no gradient: dropout,
    batch statistics or a MIN step begin the forgetting. Its loss and "kd", which is logged, show it.

    Args:
        msteps: epochs that begin with a MAX pass, the first ones; 0 leaves only MIN passes.
        gamma: weight of the cross-entropy on retain rows, >= 0.
        alpha: weight of the distance on retain rows, >= 0.
        temperature: T, > 0.
        decay: epochs, counted from 1, after each of which the learning rate falls to a tenth.
        forget_batch: rows of a MAX step; a MIN step has the arguments' batch size, 128.
        rewind: whether to take, of the models after each epoch, the one whose forget error is closest to the final model's
            error on holdout rows with the forget set's shares of classes (SCRUB+R). Needs a holdout set.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-4,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 128,
    }
    msteps: int = 2
    gamma: float = 0.99
    alpha: float = 0.001
    temperature: float = 4.0
    decay: tuple[int, ...] = (3, 5, 9)
    forget_batch: int = 32
    rewind: bool = False

    def __post_init__(self) -> None:
        for name in ("msteps", "gamma", "alpha"):
            require(name, getattr(self, name), at_least=0)
        require("temperature", self.temperature, above=0)
        require("forget_batch", self.forget_batch, at_least=1)
        if not isinstance(self.decay, tuple):
            raise MethodError(f"decay is {self.decay!r}; give a tuple of epochs, such as (3, 5, 9).")
        for epoch in self.decay:
            require("decay", epoch, at_least=0)
        if not isinstance(self.rewind, bool):
            raise MethodError(f"rewind is {self.rewind!r}; use True or False.")

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        need_classes(self, forget)

    def needed(self) -> frozenset[str]:
        return frozenset({"reference logits"} if self.alpha or self.msteps else ())

    def loss(self, batch: PairedImages) -> Loss:
        """The MIN step. batch.retain.logits, .reference_logits: `[rows, classes]`."""
        part = batch["retain"]
        values, logs = self.gamma * part.nll, {}
        if self.alpha:
            distance = distillation(part.logits, part.reference_logits, self.temperature)
            values, logs = values + self.alpha * distance, {"kd": distance.mean()}
        return Loss(logs, retain=PerRow(values, "retain"))

    def raise_distance(self, batch: PairedImages) -> Loss:
        """The MAX step. batch.forget.logits, .reference_logits: `[rows, classes]`."""
        part = batch["forget"]
        distance = distillation(part.logits, part.reference_logits, self.temperature)
        return Loss({"kd": distance.mean()}, forget=PerRow(-distance, "forget"))

    def phases(self, work: ImageWork) -> list[Phase]:
        """For every epoch a MAX pass, up to `msteps`, and a MIN pass; one optimiser for all."""
        phases: list[Phase] = []
        for epoch, share in enumerate(rounds(work.args.num_train_epochs), start=1):
            lr = 0.1 ** sum(epoch > late for late in self.decay)
            if epoch <= self.msteps:
                phases.append(Phase("forget", self.raise_distance, epochs=share, batch_size=self.forget_batch, lr=lr))
            phases.append(Phase("retain", self.loss, epochs=share, lr=lr))
        return phases

    def _apply(self, work: ImageWork) -> nn.Module:
        if not self.rewind:
            return super()._apply(work)
        unseen = _like(work.forget, work.holdout)
        streams = [phase.stream for phase in self.phases(work)]
        checkpoints = _Checkpoints(
            work, {number for number, stream in enumerate(streams, start=1) if stream == "retain"}
        )
        super()._apply(replace(work, callbacks=[*work.callbacks, checkpoints]))
        if checkpoints.passes not in checkpoints.after:  # training was cut short
            checkpoints.keep()
        at = rewind_point(checkpoints.errors, _error(work, unseen, by_class_of=work.forget))
        unwrap(work.model).load_state_dict(checkpoints.states[at])
        return work.model


@dataclass
class _Checkpoints(TrainerCallback):
    """Weights and forget errors after the passes of these numbers, counted from 1."""

    work: ImageWork
    after: set[int]
    passes: int = 0
    errors: list[float] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)

    def on_epoch_end(self, args: object, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.passes += 1
        if self.passes in self.after:
            self.keep()

    def keep(self) -> None:
        self.errors.append(_error(self.work, self.work.forget))
        state = unwrap(self.work.model).state_dict()
        self.states.append({name: value.detach().clone() for name, value in state.items()})


def _like(forget: Images, holdout: Images | None) -> Images:
    """The holdout rows of the forget set's classes."""
    if holdout is None:
        raise DataError(
            "SCRUB with rewind=True compares with rows never trained on. Give a holdout set, or rewind=False."
        )
    labels, classes = need_classes(SCRUB(), holdout), need_classes(SCRUB(), forget).unique()
    if absent := [forget.classes[int(c)] for c in classes if not bool((labels == c).any())]:
        raise DataError(
            f"the holdout set has no rows of {len(absent)} of the forget set's classes ({first_few(absent)}), so rewinding "
            "has nothing to compare with. Give a larger holdout set, or rewind=False."
        )
    return holdout.where(torch.isin(labels, classes))


def _error(work: ImageWork, rows: Images, by_class_of: Images | None = None) -> float:
    """The share of rows that the model gets wrong; with `by_class_of`, its classes' errors at that set's shares."""
    assert rows.labels is not None
    wrong = (work.outputs(work.model, rows).argmax(1).cpu() != rows.labels).double()
    if by_class_of is None:
        return wrong.mean().item()
    assert by_class_of.labels is not None
    shares = [((by_class_of.labels == c).double().mean(), rows.labels == c) for c in by_class_of.labels.unique()]
    return sum(float(share * wrong[mine].mean()) for share, mine in shares)
