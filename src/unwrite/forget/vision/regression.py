"""Forgetting in regressors: Blindspot unlearning and Gaussian amnesiac learning.

A model that never saw the forget rows, trained for a moment, shows what a blind guess at them looks like; the student
copies its outputs and attention maps there and keeps fitting true targets elsewhere. The cheaper way is to learn random
targets on the forget rows. (Deep regression unlearning, arXiv 2210.08196, section 4)

    L = k/B (mean_f |M(x) - M_B(x)| + beta sum_l mean_f (A(M_l(x)) - A(M_B,l(x)))^2) + (1 - k/B) mean_r |M(x) - y|
    A(a) = v / |v|,  v = mean over channels of a^2,   k of the B rows of a step are forget rows
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import DataError, MethodError, NotFinite, notice, unknown
from ...models.vision_layout import VisionLayout, logits_of
from ...runs import progress
from ..base import Objective
from ..engine.checks import require
from ..engine.images.batch import ImagePart, PairedImages
from ..engine.images.whole_step import row_normals
from ..engine.images.work import ImageWork, frozen
from ..engine.loss import Loss, PerRow, Term
from ..engine.phase import Phase
from ..engine.stream import permutation

__all__ = ["Blindspot", "GaussianAmnesiac", "attention_gap", "attention_map", "gaussian_targets", "residual"]

Error = Literal["l1", "mse"]
_TRAINING = {"learning_rate": 1e-3, "optim": "adam", "weight_decay": 0.0, "per_device_train_batch_size": 256}
_DRAW, _BLIND = 31, 32


def residual(outputs: Tensor, targets: Tensor, error: Error = "l1") -> Tensor:
    """Absolute ("l1") or squared ("mse") difference, `[rows]`; both sides `[rows]`."""
    if outputs.shape != targets.shape or outputs.ndim != 1:
        raise MethodError(f"outputs {list(outputs.shape)} and targets {list(targets.shape)} are not both [rows].")
    return (outputs - targets).abs() if error == "l1" else (outputs - targets).square()


def attention_map(activation: Tensor) -> Tensor:
    """Where a layer is active: the mean square over dimension 1, flattened to unit length.

    Args:
        activation: `[rows, channels, height, width]`, or `[rows, steps, width]`.

    Returns:
        `[rows, positions]`; no position depends on the scale of the activation.
    """
    return F.normalize(activation.square().mean(1).flatten(1))


def attention_gap(student: Sequence[Tensor], blind: Sequence[Tensor]) -> Tensor:
    """Squared difference of two models' attention maps, the mean over a layer's positions, summed over layers; `[rows]`.

    Layers of `[rows, width]` have no positions to compare and are left out.
    """
    return torch.stack(
        [
            (attention_map(mine) - attention_map(theirs)).square().mean(1)
            for mine, theirs in zip(student, blind, strict=True)
            if mine.ndim > 2
        ]
    ).sum(0)


@dataclass(frozen=True, kw_only=True)
class _Regression(Objective[ImageWork]):
    """What both ask of their data, and the error they minimise.

    Args:
        error: "l1", or "mse".
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    error: Error = "l1"

    def __post_init__(self) -> None:
        if self.error not in ("l1", "mse"):
            raise MethodError(unknown("error", str(self.error), ("l1", "mse")))

    def check(self, forget: Images, retain: Images) -> None:
        super().check(forget, retain)
        for rows in (forget, retain):
            if rows.targets is None:
                raise DataError(
                    f"{type(self).__name__} needs regression targets, and {rows.name} has labels. Use a method for "
                    "classifiers."
                )

    def loss(self, batch: PairedImages) -> Loss:
        """The error of all rows of a step on their targets, its mean over all of them."""
        return Loss({}, **{name: self._of(part, part.target) for name, part in batch.present()})

    def _of(self, part: ImagePart, targets: Tensor) -> Term:
        return PerRow(residual(part.outputs, targets, self.error), "all")


@dataclass(frozen=True, kw_only=True)
class Blindspot(_Regression):
    """Blindspot unlearning.

    Args:
        beta: weight of the attention maps, >= 0; at 0 only outputs are copied.
        blind_epochs: passes of the blind model over the retain set, at least 1; few, since it shall know little.
            The epoch with the smallest retain error is taken.
        blind_lr: Adam's for the blind model, > 0.
    """

    requires: ClassVar[tuple[str, ...]] = ("retain", "recipe")
    reads: ClassVar[frozenset[str]] = frozenset({"blocks"})
    training: ClassVar[dict[str, Any]] = {**_TRAINING, "num_train_epochs": 1}
    beta: float = 50.0
    blind_epochs: int = 2
    blind_lr: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require("beta", self.beta, at_least=0)
        require("blind_epochs", self.blind_epochs, at_least=1)
        require("blind_lr", self.blind_lr, above=0)

    def phases(self, work: ImageWork) -> list[Phase]:
        """Trains the blind model; then one phase on all rows together."""
        layout = work.layout.of(work.fresh(work.args.seed))  # refuses a recipe of another architecture
        blind = self.blind_model(work, layout.model, work.args.seed, work.args.per_device_train_batch_size)
        self._warn(work, blind)
        return [Phase("union", partial(self.blindspot, work, work.layout.of(blind)))]

    def blindspot(self, work: ImageWork, blind: VisionLayout, batch: PairedImages) -> Loss:
        """The loss of a step: forget rows by the blind model, retain rows by their targets, over all rows together."""
        if batch.forget is None:
            return self.loss(batch)
        forget = batch.forget
        with torch.no_grad():
            seen = blind.observe(forget.pixels)
        work.cost.add(len(forget.index))
        terms = {"forget": self._of(forget, seen.logits[:, 0])}
        if self.beta > 0:
            if all(block.ndim < 3 for block in seen.blocks):
                raise MethodError(
                    "this model has no layer with positions, so there are no attention maps to compare. Set beta=0."
                )
            terms["attention"] = PerRow(self.beta * attention_gap(forget.blocks, seen.blocks), "all")
        if batch.retain is not None:
            terms |= self.loss(PairedImages(retain=batch.retain)).terms
        return Loss({}, **terms)

    def blind_model(self, work: ImageWork, model: nn.Module, seed: int, batch_size: int) -> nn.Module:
        """Trains `model`, new and untrained, on the retain set alone; frozen, in evaluation mode."""
        optimiser = torch.optim.Adam(model.parameters(), lr=self.blind_lr)
        rows, best, state = work.retained, float("inf"), model.state_dict()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # dropout
            for epoch in progress(range(self.blind_epochs), "training the blind model"):
                model.train()
                for at in _steps(permutation(len(rows), seed, _BLIND, epoch).tolist(), batch_size):
                    pixels, target, _ = (tensor.to(work.device) for tensor in rows[at])
                    optimiser.zero_grad()
                    residual(logits_of(model, pixels)[:, 0], target, self.error).mean().backward()
                    optimiser.step()
                work.cost.add(len(rows), 1, 1)
                error = self._error(work, model)
                if error < best:
                    best, state = error, copy.deepcopy(model.state_dict())
        if best == float("inf"):
            raise NotFinite(f"the blind model's error is not finite (blind_lr {self.blind_lr}). Lower blind_lr.")
        model.load_state_dict(state)
        optimiser.zero_grad()
        return frozen(model)

    def _error(self, work: ImageWork, model: nn.Module) -> float:
        """On retain rows."""
        outputs = work.outputs(model, work.retained)
        return float(residual(outputs[:, 0], work.retained.target.to(work.device), self.error).mean())

    def _warn(self, work: ImageWork, blind: nn.Module) -> None:
        theirs, ours = self._error(work, blind), self._error(work, work.model)
        if theirs >= 3 * ours:
            notice(
                f"the blind model's error on retain rows is {theirs:.3g}, 3 times the model's {ours:.3g} or more: it may "
                "guess at random. Raise blind_epochs.",
            )


@dataclass(frozen=True, kw_only=True)
class GaussianAmnesiac(_Regression):
    """Learns targets on the forget rows that are drawn once from N(mu, sd) of all training targets.

    Args:
        clip: keeps the drawn targets between the smallest and largest of all.
    """

    requires: ClassVar[tuple[str, ...]] = ("retain",)
    training: ClassVar[dict[str, Any]] = {**_TRAINING, "num_train_epochs": 1}
    clip: bool = False

    def phases(self, work: ImageWork) -> list[Phase]:
        """One, on all rows together."""
        drawn = gaussian_targets(work.forget, work.retained, work.args.seed, self.clip)
        return [Phase("union", self.loss, forget=drawn)]


def gaussian_targets(forget: Images, retain: Images, seed: int, clip: bool = False) -> Images:
    """The forget rows with targets drawn from N(mu, sd), each a function of (seed, row).

    mu and sd, the sample standard deviation, are those of the targets of both sets together.

    Raises:
        DataError: all targets are equal.
    """
    both = torch.cat([retain.target, forget.target]).double()
    mean, spread = both.mean(), both.std()
    if not spread > 0:
        raise DataError(f"all {len(both)} targets are {float(mean):g}, so there is nothing to draw from.")
    drawn = mean + spread * row_normals(forget.index, 1, seed, _DRAW)[:, 0].double()
    if clip:
        drawn = drawn.clamp(both.min(), both.max())
    # Over the whole set, since a part of one row would be refused as targets that are all equal.
    train = retain.joined(forget)
    targets = train.target.clone()
    targets[train.positions(forget.index)] = drawn.float()
    return replace(train, targets=targets).subset(forget.index, forget.name)


def _steps(order: list[int], size: int) -> list[list[int]]:
    """The rows of each step; a single row, which has no batch statistics, goes with the step before."""
    steps = [order[first : first + size] for first in range(0, len(order), size)]
    if len(steps) > 1 and len(steps[-1]) == 1:
        steps[-2:] = [steps[-2] + steps[-1]]
    return steps
