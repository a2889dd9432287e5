"""Linear regressions of many outputs on one table of memberships: lasso and ridge, each output with a strength of its own.

scikit-learn's Lasso runs output by output; here all are iterated together, since they share the memberships.

    min_{b, beta}  1/(2M) sum_j (y_j - b - sum_i m_ji beta_i)^2 + penalty,   lasso: s |beta|_1,   ridge: s/2 |beta|_2^2
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ....errors import DataError, MethodError, unknown

__all__ = ["STRENGTHS", "Penalty", "fitted_effects", "lasso", "ridge", "strongest"]

Penalty = Literal["lasso", "ridge"]
# Of the strength at which a lasso has no effect left; for ridge, of the largest squared singular value over M.
STRENGTHS: dict[Penalty, tuple[float, ...]] = {
    "lasso": (1.0, 0.7, 0.5, 0.35, 0.25),
    "ridge": (100.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03),
}
_TOLERANCE, _MOST_STEPS = 1e-4, 2000


def strongest(masks: Tensor, outputs: Tensor, penalty: Penalty) -> Tensor:
    """What strengths are relative to, `[outputs]`: of a lasso the least without any effect, of ridge the curvature.

    Args:
        masks: centred memberships `[models, training rows]`.
        outputs: centred, `[models, outputs]`.
    """
    if penalty == "lasso":
        return (masks.T @ outputs).abs().amax(0) / len(masks)
    curvature = float(torch.linalg.matrix_norm(masks, 2)) ** 2 / len(masks)
    return torch.full((outputs.shape[1],), curvature, dtype=outputs.dtype)


def lasso(masks: Tensor, outputs: Tensor, strength: Tensor, start: Tensor | None = None) -> Tensor:
    """Effects `[training rows, outputs]` by proximal gradient steps with momentum, until none moves.

    Args:
        masks, outputs: as `strongest`.
        strength: of the penalty, `[outputs]`, > 0.
        start: effects to begin from.
    """
    count = len(masks)
    size = count / max(float(torch.linalg.matrix_norm(masks, 2)) ** 2, 1e-30)
    effects = outputs.new_zeros(masks.shape[1], outputs.shape[1]) if start is None else start
    ahead, momentum = effects, 1.0
    for _ in range(_MOST_STEPS):
        gradient = masks.T @ (masks @ ahead - outputs) / count
        moved = ahead - size * gradient
        new = moved.sign() * (moved.abs() - size * strength).clamp(min=0)
        if bool(((ahead - new) * (new - effects)).sum() > 0):  # momentum points uphill: start it anew
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        step = new - effects
        ahead, effects = new + (momentum - 1) / following * step, new
        momentum = following
        if float(step.abs().max()) <= _TOLERANCE * float(effects.abs().max()):
            break
    return effects


def ridge(masks: Tensor, outputs: Tensor, strength: Tensor) -> Tensor:
    """Effects `[training rows, outputs]` in closed form, by the memberships' singular values.

    Args:
        masks, outputs: as `strongest`.
        strength: of the penalty, `[outputs]`, > 0.
    """
    left, values, right = torch.linalg.svd(masks, full_matrices=False)
    scale = values[:, None] / (values[:, None].square() + len(masks) * strength)
    effects: Tensor = right.T @ (scale * (left.T @ outputs))
    return effects


def fitted_effects(
    masks: Tensor,
    outputs: Tensor,
    penalty: Penalty = "lasso",
    validation: float = 0.1,
    strengths: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Effects and intercepts, each output's strength chosen on models held back and the effects fitted on all.

    Args:
        masks: which model had which training row, booleans `[models, training rows]`.
        outputs: what each model says, `[models, outputs]`.
        validation: share of the models that strengths are chosen on, the last ones; above 0, below 1.
        strengths: to choose from, relative as `STRENGTHS`.

    Returns:
        effects `[training rows, outputs]` and intercepts `[outputs]`.

    Raises:
        DataError: masks and outputs of other numbers of models, or of too few; outputs that are not finite; a training row that all
            models had, or none.
        MethodError: an unknown penalty; a validation share without a model on either side.
    """
    if penalty not in get_args(Penalty):
        raise MethodError(unknown("penalty", str(penalty), get_args(Penalty)))
    _check_fit(masks, outputs)
    count = len(masks)
    held = round(validation * count)
    if not (0 < validation < 1 and 1 <= held < count - 1):
        raise MethodError(f"validation is {validation}, which leaves {held} of {count} models; give a share between.")
    values = masks.to(outputs.dtype)
    grid = sorted(STRENGTHS[penalty] if strengths is None else strengths, reverse=True)
    m_mean, o_mean = values[:-held].mean(0), outputs[:-held].mean(0)
    m, o = values[:-held] - m_mean, outputs[:-held] - o_mean
    held_m, held_o = values[-held:] - m_mean, outputs[-held:] - o_mean
    top = strongest(m, o, penalty).clamp(min=1e-12)
    best = outputs.new_full((outputs.shape[1],), math.inf)
    chosen, effects = best.clone(), None
    for share in grid:
        effects = lasso(m, o, share * top, effects) if penalty == "lasso" else ridge(m, o, share * top)
        error = (held_o - held_m @ effects).square().mean(0)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, share, chosen)
    m_mean, o_mean = values.mean(0), outputs.mean(0)
    m, o = values - m_mean, outputs - o_mean
    strength = chosen * strongest(m, o, penalty).clamp(min=1e-12)
    effects = lasso(m, o, strength) if penalty == "lasso" else ridge(m, o, strength)
    return effects, o_mean - m_mean @ effects


def _check_fit(masks: Tensor, outputs: Tensor) -> None:
    if masks.ndim != 2 or outputs.ndim != 2 or len(masks) != len(outputs):
        raise DataError(
            f"masks have shape {list(masks.shape)} and outputs {list(outputs.shape)}. Give [models, training rows] and "
            "[models, outputs] of the same models."
        )
    if not bool(outputs.isfinite().all()):
        model = int((~outputs.isfinite()).any(1).nonzero()[0])
        raise DataError(f"the outputs of model {model} are not finite. Train it with a lower learning rate.")
    share = masks.float().mean(0)
    constant = ((share == 0) | (share == 1)).nonzero()[:, 0]
    if len(constant):
        row = int(constant[0])
        raise DataError(
            f"training row {row} is in {'all' if share[row] else 'none'} of the {len(masks)} models, so nothing can be said of "
            "it. Train more models."
        )
