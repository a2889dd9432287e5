"""Forget sets that are hard to erase: the rows a model still predicts well after unlearning, by bi-level selection or in one pass.

Each round starts from the trained model, unlearns with the weights w as they are, and moves w towards the rows whose loss stayed
low. The lower level steps by the sign of its gradient, which a small change of w leaves as it is, so theta_u doesn't depend on w,
and the gradient in w is the loss itself: no second derivatives.
(Challenging Forgets, arXiv 2403.07362; settings of the authors' issue 6)

    min_w sum_i w_i l(theta_u(w); z_i) + gamma ||w||^2,   0 <= w <= 1,   sum w = m
    theta_u(w): theta <- theta - lr_theta sign(grad sum_i (1 - w_i) l(theta; z_i))
    w <- projection of w - lr_w (l / std(l) + 2 gamma w)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images.images import Images
from ...data.images.splits import ImageSplit, held_out, split_by_index
from ...errors import DataError, MethodError, NotFinite, notice, unknown
from ...models.curvature import cross_entropy, evaluating, row_gradients
from ...models.vision_layout import logits_of
from ...runs import progress

__all__ = [
    "SELECTORS",
    "BilevelSelection",
    "ForgetSelection",
    "RowScores",
    "capped_simplex",
    "right_of_kept",
    "row_scores",
    "sign_step",
    "split_worst_case",
]

Selector = Literal["bilevel", "random", "low-loss", "low-gradient", "low-error", "median-tails"]
SELECTORS: tuple[Selector, ...] = ("bilevel", "random", "low-loss", "low-gradient", "low-error", "median-tails")
BISECTIONS = 200
MOVED = 0.05  # of the m rows: fewer new ones than that, and the weights hardly left their random start
WRECKED = 0.05  # of the kept rows: where the lower level gets so many more wrong, it doesn't unlearn, it destroys


def capped_simplex(values: Tensor, total: float) -> Tensor:
    """The nearest weights `[n]` with 0 <= w <= 1 and sum `total`: `clip(values - mu, 0, 1)`, mu by bisection in float64.

    Args:
        values: `[n]`, finite.
        total: 0 to n.

    Raises:
        MethodError: a total outside its range.
        NotFinite: values that aren't finite.
    """
    a = values.double()
    if not 0 <= total <= len(a):
        raise MethodError(f"weights of {len(a)} rows can't sum to {total}. Give 0 to {len(a)}.")
    if not bool(a.isfinite().all()):
        raise NotFinite(
            f"{int((~a.isfinite()).sum())} of {len(a)} weights are not finite. Look for rows whose loss is not."
        )
    if total in (0, len(a)):
        return torch.full_like(a, float(total > 0))
    low, high = a.min() - 1, a.max()  # there the sum is n, and 0
    for _ in range(BISECTIONS):
        mu = (low + high) / 2
        if (a - mu).clamp(0, 1).sum() > total:
            low = mu
        else:
            high = mu
    return (a - (low + high) / 2).clamp(0, 1)


@torch.no_grad()
def sign_step(model: nn.Module, lr: float) -> None:
    """Moves every weight whose gradient isn't 0 by exactly `lr`, against its sign."""
    for theta in model.parameters():
        if theta.grad is not None:
            theta -= lr * theta.grad.sign()


@dataclass(frozen=True, kw_only=True)
class BilevelSelection:
    """Settings of the bi-level selection.

    The model stays in evaluation mode, so that a row of weight 1 has no influence at all, not by batch statistics either.
    The step in w is the loss over its spread: with losses of 0 to 5 and the published 1e-3 of the loss itself, 20 rounds
    can't take a weight from 0 to 1/2, and the result is the random start.

    Args:
        rounds: T, each from the trained model anew, >= 1.
        epochs: K, passes of the lower level, >= 0.
        lr_theta: what each weight moves a step, > 0. The published 1e-3 is for ResNet-18; of a small net it leaves little.
        lr_w: step in w, > 0.
        gamma: weight of ||w||^2, >= 0.
        batch_size: rows a step of the lower level, >= 1.
        binary_every: rounds after which w is set to its m largest, >= 1.
        normalised: whether the loss is divided by its spread over the rows; without, lr_w is the published one.
        easiest: ascend instead: the rows that are easiest to forget.

    Raises:
        MethodError: a setting outside its range.
    """

    rounds: int = 20
    epochs: int = 10
    lr_theta: float = 1e-3
    lr_w: float = 1.0
    gamma: float = 1e-4
    batch_size: int = 256
    binary_every: int = 20
    normalised: bool = True
    easiest: bool = False

    def __post_init__(self) -> None:
        good = {
            "rounds": self.rounds >= 1,
            "epochs": self.epochs >= 0,
            "lr_theta": 0 < self.lr_theta < float("inf"),
            "lr_w": 0 < self.lr_w < float("inf"),
            "gamma": 0 <= self.gamma < float("inf"),
            "batch_size": self.batch_size >= 1,
            "binary_every": self.binary_every >= 1,
        }
        if wrong := next((name for name, holds in good.items() if not holds), None):
            raise MethodError(f"{wrong} is {getattr(self, wrong)}. See BilevelSelection for its range.")

    def select(self, model: nn.Module, rows: Images, count: int, seed: int = 0) -> ForgetSelection:
        """The `count` rows that resist unlearning; the model stays as it is.

        Args:
            model: trained on the rows; pixels `[rows, channels, height, width]` to logits `[rows, classes]`.
            rows: with labels.
            count: m, above 0 and below the number of rows.
            seed: of the random start and of the order of rows.

        Raises:
            DataError: no labels; a count outside its range.
            NotFinite: a loss that isn't.
        """
        _checked(rows, count)
        generator = torch.Generator().manual_seed(seed)
        start = _binary(torch.rand(len(rows), generator=generator, dtype=torch.float64), count)
        w, history = start, []
        for number in progress(range(self.rounds), "selecting rows"):
            unlearned = self.unlearn(model, rows, w, seed)
            if number == 0:
                self._check_lower_level(model, unlearned, rows, w)
            losses = _losses(unlearned, rows)
            w = self.step(w, losses, count)
            history.append(float((_binary(w, count) * losses).sum()))
            if (number + 1) % self.binary_every == 0:
                w = _binary(w, count)
        chosen = _binary(w, count)
        if (moved := float((chosen * (1 - start)).sum()) / count) < MOVED:
            notice(
                f"{moved:.0%} of the {count} rows differ from the random start: lr_w {self.lr_w:g} is too small to move them. "
                "Raise it."
            )
        return ForgetSelection(rows.index[chosen.bool()], w, tuple(history), moved)

    def _check_lower_level(self, model: nn.Module, unlearned: nn.Module, rows: Images, w: Tensor) -> None:
        """Warns where a step of lr_theta is too large for the model."""
        lost = right_of_kept(model, rows, w) - right_of_kept(unlearned, rows, w)
        if lost > WRECKED:
            notice(
                f"the lower level gets {lost:.0%} more of the rows it keeps wrong than the model did: lr_theta {self.lr_theta:g} is too "
                "large for it. Lower it."
            )

    def unlearn(self, model: nn.Module, rows: Images, w: Tensor, seed: int = 0) -> nn.Module:
        """theta_u(w): a copy of the model, trained by sign steps on `sum_i (1 - w_i) CE_i`, in evaluation mode.

        Args:
            w: `[rows]`, 0 to 1.
        """
        copied = copy.deepcopy(model).eval()
        device = next(copied.parameters()).device
        keep = (1 - w).float().to(device)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.epochs):
            for at in torch.randperm(len(rows), generator=generator).split(self.batch_size):
                batch = rows[at]
                losses = F.cross_entropy(
                    logits_of(copied, batch.pixels.to(device)), batch.target.to(device), reduction="none"
                )
                copied.zero_grad(set_to_none=True)
                (keep[at] * losses).sum().backward()
                sign_step(copied, self.lr_theta)
        copied.zero_grad(set_to_none=True)
        return copied

    def step(self, w: Tensor, losses: Tensor, count: int) -> Tensor:
        """The upper step: w moved by the losses `[rows]` and projected back."""
        spread = losses.std() if self.normalised else torch.ones(())
        gradient = losses / spread.clamp(min=1e-12) + 2 * self.gamma * w
        return capped_simplex(w + (self.lr_w if self.easiest else -self.lr_w) * gradient, count)


def right_of_kept(model: nn.Module, rows: Images, w: Tensor) -> float:
    """Share of the rows a model gets right, each counted as much as it is kept, 1 - w: 0 to 1.

    Args:
        w: `[rows]`, 0 to 1, not all 1.
    """
    right = (_logits(model, rows).argmax(1) == rows.target).double()
    keep = 1 - w.double()
    return float((keep * right).sum() / keep.sum())


@dataclass(frozen=True, eq=False)
class ForgetSelection:
    """Rows that were selected, and how.

    Args:
        index: `[count]`, their names, in the order of the rows.
        weights: `[rows]`, float64: what they were selected by, the largest of it.
        losses: after each round, the loss of the selected rows under the unlearned model, summed.
        moved: share of the selected rows that the random start did not have.
    """

    index: Tensor
    weights: Tensor
    losses: tuple[float, ...] = ()
    moved: float = 1.0


@dataclass(frozen=True, eq=False)
class RowScores:
    """What one pass over the rows says of each, `[rows]`, float64.

    Args:
        loss: cross-entropy under the model, nats.
        error: EL2N, the norm of softmax less the one-hot label, 0 to sqrt(2) (arXiv 2107.07075).
        gradient: norm of the loss's gradient in all weights (GraNd, same paper); what a row's removal moves first.
        distance: to the class's median logits, as the official code of "Moderate coreset" has it.
    """

    loss: Tensor
    error: Tensor
    gradient: Tensor
    distance: Tensor


def row_scores(model: nn.Module, rows: Images) -> RowScores:
    """The scores that selection in one pass goes by; the model stays as it is.

    Args:
        model: trained on the rows.
        rows: with labels.

    Raises:
        DataError: no labels.
        NotFinite: a loss that isn't.
    """
    _labelled(rows)
    logits = _logits(model, rows)
    labels = rows.target
    losses = _finite(F.cross_entropy(logits, labels, reduction="none"))
    error = (logits.softmax(1) - F.one_hot(labels, logits.shape[1])).norm(dim=1)
    distance = torch.zeros(len(rows), dtype=torch.float64)
    for label in labels.unique():
        mine = labels == label
        distance[mine] = (logits[mine] - logits[mine].quantile(0.5, dim=0)).norm(dim=1)
    return RowScores(losses, error, _gradient_norms(model, rows), distance)


def split_worst_case(
    model: nn.Module,
    data: Images,
    count: int | float,
    selector: Selector | BilevelSelection = "bilevel",
    *,
    test: Images | None = None,
    holdout: float | Images | None = 0.1,
    seed: int = 0,
    evaluation: Mapping[str, Images] | None = None,
) -> ImageSplit:
    """Forgets the rows that are hardest to erase from this model, as a selector finds them.

    Args:
        model: trained on `data` less the holdout; of one seed that is what every other split of `data` leaves to train on.
        data: rows with labels.
        count: how many training rows: a whole number, or a share as a float between 0 and 1.
        selector: "bilevel", or a `BilevelSelection` with other settings; in one pass "low-loss", "low-gradient" or "low-error",
            the rows of the smallest loss, gradient norm or EL2N; "median-tails", half nearest to and half farthest from
            their class's median logits; "random".
        test, holdout, seed, evaluation: as `split_at_random`; the seed is also the selection's.

    Raises:
        DataError: no labels; a count of none of the rows, or of all or more.
        MethodError: an unknown selector.
        NotFinite: a loss that isn't.
    """
    train, held = held_out(data, holdout, seed)
    chosen = round(count * len(train)) if isinstance(count, float) and 0 < count < 1 else count
    _checked(train, chosen)
    selection = selected(model, train, int(chosen), selector, seed)
    split = split_by_index(train, selection.index, test=test, holdout=held, seed=seed, evaluation=evaluation)
    name = selector if isinstance(selector, str) else "easiest" if selector.easiest else "bilevel"
    return replace(split, name=f"{name}, {chosen} rows")


def selected(
    model: nn.Module, rows: Images, count: int, selector: Selector | BilevelSelection, seed: int = 0
) -> ForgetSelection:
    """The rows that a selector takes; see `split_worst_case`."""
    if isinstance(selector, BilevelSelection):
        return selector.select(model, rows, count, seed)
    if selector not in SELECTORS:
        raise MethodError(unknown("selector", selector, SELECTORS))
    if selector == "bilevel":
        return BilevelSelection().select(model, rows, count, seed)
    _checked(rows, count)
    if selector == "random":
        weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    else:
        scores = row_scores(model, rows)
        one_pass = {"low-loss": scores.loss, "low-gradient": scores.gradient, "low-error": scores.error}
        weights = -one_pass[selector] if selector in one_pass else _tails(scores.distance, count)
    return ForgetSelection(rows.index[_binary(weights, count).bool()], weights)


def _tails(distance: Tensor, count: int) -> Tensor:
    """Larger the nearer a row is to either end, so that the `count` largest leave out the middle."""
    rank = torch.empty(len(distance), dtype=torch.float64)
    rank[distance.argsort(stable=True)] = torch.arange(len(distance), dtype=torch.float64)
    return (rank - (len(distance) - 1) / 2).abs()


def _binary(weights: Tensor, count: int) -> Tensor:
    """`[n]`, float64: 1 for the `count` largest, of equal ones the first."""
    chosen = torch.zeros(len(weights), dtype=torch.float64)
    chosen[weights.argsort(descending=True, stable=True)[:count]] = 1
    return chosen


def _logits(model: nn.Module, rows: Images, batch_size: int = 256) -> Tensor:
    """`[rows, classes]`, float64, in evaluation mode."""
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        parts = [
            logits_of(model, rows.pixels[at : at + batch_size].to(device)) for at in range(0, len(rows), batch_size)
        ]
    return torch.cat(parts).cpu().double()


def _losses(model: nn.Module, rows: Images) -> Tensor:
    return _finite(F.cross_entropy(_logits(model, rows), rows.target, reduction="none"))


def _finite(losses: Tensor) -> Tensor:
    if not bool(losses.isfinite().all()):
        row = int((~losses.isfinite()).nonzero()[0, 0])
        raise NotFinite(
            f"the loss of row {row} is {float(losses[row])}. Lower lr_theta, or look at the model's weights."
        )
    return losses


def _gradient_norms(model: nn.Module, rows: Images, block: int = 32) -> Tensor:
    """Of each row's cross-entropy in all weights that are trained, `[rows]`, float64."""
    batches = ((rows.pixels[at : at + block], rows.target[at : at + block]) for at in range(0, len(rows), block))
    with evaluating(model):
        norms = [part.double().norm(dim=1).cpu() for part in row_gradients(model, batches, cross_entropy, block=block)]
    return torch.cat(norms)


def _labelled(rows: Images) -> None:
    if rows.labels is None:
        raise DataError(f"{rows.name} has targets and no labels, and rows are selected by their labels' loss.")


def _checked(rows: Images, count: float) -> None:
    _labelled(rows)
    if isinstance(count, bool) or not float(count).is_integer() or not 0 < count < len(rows):
        raise DataError(f"{count} of {len(rows)} rows can't be forgotten. Give 1 to {len(rows) - 1}.")
