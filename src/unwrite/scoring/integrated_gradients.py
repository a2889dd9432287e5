"""Integrated gradients: how much of a score each input carries, along the straight line from a baseline.

What is attributed adds up to the score's difference from the baseline's, up to the error of the sum that stands for the integral. The
score of an answer is the log-likelihood of its tokens, which stay the targets while their embeddings move. (Integrated gradients, arXiv
1703.01365; of answers as in arXiv 2405.15662, official code ig.py)

    A_i = (x_i - x'_i) sum_k w_k dF(x' + a_k (x - x')) / dx_i,   error: sum_i A_i - (F(x) - F(x'))

    endpoints   a_k = (k - 1) / (m - 1), w_k = 1 / m     the published mean, off by (F'(1) + F'(0) - 2 (F(1) - F(0))) / 2m
    trapezoid   the same a_k, half the weight at both ends, over m - 1
    midpoint    a_k = (k - 1/2) / m, w_k = 1 / m
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..data.text.encoding import IGNORE, Encoded
from ..errors import DataError, MethodError, NotFinite, setting, unknown
from ..models.curvature import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AnswerAttribution", "Attribution", "PathRule", "attribute_answer", "integrated_gradients", "path_points"]

PathRule = Literal["endpoints", "trapezoid", "midpoint"]
AT_ONCE = 8  # points of the line in one forward


@dataclass(frozen=True)
class Attribution:
    """What each input carries.

    Args:
        values: shaped as the input.
        score, baseline_score: of the input and of the baseline.
    """

    values: Tensor
    score: float
    baseline_score: float

    @property
    def error(self) -> float:
        """How far the sum of all is from the difference that it should be."""
        return float(self.values.sum()) - (self.score - self.baseline_score)


@dataclass(frozen=True)
class AnswerAttribution(Attribution):
    """What each token of a row carries, `values` `[tokens]`; 0 outside the answer.

    Args:
        positions: of the answer's tokens, its end among them.
    """

    positions: tuple[int, ...] = ()


def path_points(points: int, rule: PathRule) -> tuple[Tensor, Tensor]:
    """Where on the line from 0 to 1 gradients are taken, and their weights, each `[points]` in float64.

    Raises:
        MethodError: another rule; fewer than one point, or than two for the trapezoid.
    """
    if rule not in get_args(PathRule):
        raise MethodError(unknown("rule", str(rule), get_args(PathRule)))
    least = 2 if rule == "trapezoid" else 1
    if not isinstance(points, int) or points < least:
        raise MethodError(f"{setting('points')} is {points}; {setting('rule', rule)} takes at least {least}.")
    even = torch.full((points,), 1 / points, dtype=torch.float64)
    if rule == "midpoint":
        return (torch.arange(points, dtype=torch.float64) + 0.5) / points, even
    at = torch.linspace(0, 1, points, dtype=torch.float64)
    if rule == "endpoints":
        return at, even
    weights = torch.full((points,), 1 / (points - 1), dtype=torch.float64)
    weights[[0, -1]] /= 2
    return at, weights


def integrated_gradients(
    score: Callable[[Tensor], Tensor],
    inputs: Tensor,
    baseline: Tensor,
    points: int = 32,
    rule: PathRule = "endpoints",
    at_once: int = AT_ONCE,
) -> Attribution:
    """The integrated gradients of any score.

    Args:
        score: of `[rows, ...]` to `[rows]`, each row by itself.
        inputs, baseline: of one shape, `[...]`.
        points: of the line.
        rule: see the module.
        at_once: points in one call.

    Raises:
        DataError: a baseline of another shape.
        NotFinite: a gradient that is no number.
    """
    if inputs.shape != baseline.shape:
        raise DataError(f"the input has shape {list(inputs.shape)} and the baseline {list(baseline.shape)}. Give one.")
    where, weights = path_points(points, rule)
    inputs, baseline = inputs.detach(), baseline.detach()
    total, delta = torch.zeros_like(inputs), inputs - baseline
    shape = (-1, *[1] * inputs.ndim)
    for some, factors in zip(where.split(at_once), weights.split(at_once), strict=True):
        line = (baseline + some.to(inputs).reshape(shape) * delta).requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(score(line).sum(), [line])
        total += (factors.to(grad).reshape(shape) * grad).sum(0).to(total)
    if not bool(total.isfinite().all()):
        raise NotFinite("the gradients along the line are not finite. Give a model that was trained well.")
    with torch.no_grad():
        ends = [float(score(end[None])[0]) for end in (inputs, baseline)]
    return Attribution(delta * total, *ends)


def attribute_answer(
    model: PreTrainedModel,
    row: Encoded,
    baseline_id: int | None = None,
    points: int = 32,
    rule: PathRule = "endpoints",
    at_once: int = AT_ONCE,
) -> AnswerAttribution:
    """What each token of a row's answer adds to the answer's log-likelihood, in float32.

    A token counts by what it says of those behind it. So the end of the answer is among the targets: without it, as in the official
    code, the last word of an answer would always carry 0.

    Args:
        model: a causal language model, read in evaluation mode.
        row: as `encode` gives it; its labels say what the answer is.
        baseline_id: the token, such as padding, whose embedding stands for nothing; None for zeros.

    Raises:
        DataError: no token of an answer, or one at the very beginning, which nothing predicts.
    """
    positions = [at for at, label in enumerate(row.labels) if label != IGNORE]
    _check_span(positions, len(row.input_ids))
    device = next(model.parameters()).device
    ids, answer = torch.tensor(row.input_ids, device=device), torch.tensor(positions, device=device)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        inputs = embed(ids).float()
        baseline = inputs.clone()
        baseline[answer] = 0.0 if baseline_id is None else embed(torch.tensor([baseline_id], device=device)).float()
    kind = embed.weight.dtype

    def score(embeddings: Tensor) -> Tensor:
        """`[rows]` of `[rows, tokens, dim]`"""
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=device)
        logits = model(inputs_embeds=embeddings.to(kind), attention_mask=mask, use_cache=False).logits
        log_p = logits[:, answer - 1].float().log_softmax(-1)  # [rows, answer, vocabulary]
        return log_p.gather(2, ids[answer].expand(len(embeddings), -1)[..., None]).sum((1, 2))

    with evaluating(model):
        found = integrated_gradients(score, inputs, baseline, points, rule, at_once)
    return AnswerAttribution(found.values.sum(-1).cpu(), found.score, found.baseline_score, tuple(positions))


def _check_span(positions: Sequence[int], tokens: int) -> None:
    if not positions:
        raise DataError(f"none of the row's {tokens} tokens has a label, so there is no answer to attribute. Give one.")
    if positions[0] == 0:
        raise DataError("the answer begins at the first token, which nothing predicts. Give a question before it.")
