"""Influence unlearning: one Newton step from the model to where training without the forget set would have ended.

The curvature is the empirical Fisher information of retain rows, whose inverse times a vector needs their gradients
alone. (Influence functions, arXiv 1703.04730; WoodFisher, arXiv 2004.14340; as a baseline: IU in arXiv 2304.04934)

    theta_u = theta + alpha F^-1 v,   v = 1/N sum_{D_f} grad - n_f / (N n_r) sum_{D_r} grad,   N = n_f + n_r
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...data.images.images import Images
from ...errors import MethodError, NotFinite
from ...models.curvature import importances, row_gradients, trainable
from ..base import Edit
from ..engine.checks import require
from ..engine.images.work import ImageWork
from ..engine.importance import image_loss

__all__ = ["Influence", "recursive_inverse", "woodbury_inverse"]

BATCH = 64  # rows at a time; the result depends on it in no way


def recursive_inverse(v: Tensor, gradients: Iterator[Tensor], samples: int) -> Tensor:
    """The official code's recursion for F^-1 v, `[parameters]`; it holds a gradient at a time.

    With o = g_1 first, and for every later g, c = o.g:  k <- k - (k.g) / (samples + c) o,  o <- o - c / (samples + c) o.
    So o only ever shrinks along g_1, where WoodFisher takes F^-1 g anew.

    Args:
        v: `[parameters]`
        gradients: of rows, `[1, parameters]` each; as many as are to count.
        samples: what stands for the number of rows in the denominators.
    """
    k = v.clone()
    o: Tensor | None = None
    for block in gradients:
        for g in block.to(v.dtype):
            if o is None:
                o = g.clone()
                continue
            c = torch.dot(o, g)
            k -= torch.dot(k, g) / (samples + c) * o
            o -= c / (samples + c) * o
    return k


def woodbury_inverse(v: Tensor, gradients: Tensor, damping: float) -> Tensor:
    """`(damping I + 1/m sum_j g_j g_j^T)^-1 v`, `[parameters]`.

    WoodFisher's F_j^-1 = F_{j-1}^-1 - o o^T / (m + g.o), o = F_{j-1}^-1 g_j, from F_0 = damping I, ends there; all rows at
    once they are one system of m equations.

    Args:
        v: `[parameters]`
        gradients: `[m, parameters]`
        damping: > 0.
    """
    rows = len(gradients)
    inner = gradients @ gradients.T + rows * damping * torch.eye(rows, dtype=v.dtype, device=v.device)
    return (v - gradients.T @ torch.linalg.solve(inner, gradients @ v)) / damping


@dataclass(frozen=True, kw_only=True)
class Influence(Edit[ImageWork]):
    """Influence unlearning (IU) with first-order curvature; classifiers, and regressors by their squared error.

    Args:
        alpha: length of the step, >= 0: 1 is Newton's, 0.2 the official code's default; tuned per task. 0 changes nothing.
        mode: "repo" (the official recursion, which holds two vectors) or "woodbury" (the textbook's inverse, which
            holds the gradients of all `samples`).
        samples: retain rows the curvature is taken of, the first ones; in "repo" two more, as the official loop stops.
        damping: of "woodbury", > 0, what is added to the diagonal; the recursion begins with 1.
    """

    forgets: ClassVar[tuple[str, ...]] = ("images",)
    requires: ClassVar[tuple[str, ...]] = ("retain",)
    alpha: float = 0.2
    mode: Literal["repo", "woodbury"] = "repo"
    samples: int = 1000
    damping: float = 1.0

    def __post_init__(self) -> None:
        require("alpha", self.alpha, at_least=0)
        require("samples", self.samples, at_least=1)
        require("damping", self.damping, above=0)
        if self.mode not in ("repo", "woodbury"):
            raise MethodError(f"mode is {self.mode!r}; use 'repo' or 'woodbury'.")

    @torch.no_grad()
    def _apply(self, work: ImageWork) -> nn.Module:
        if self.alpha:
            step = self.alpha * self._direction(work)
            if not torch.isfinite(step).all():
                raise NotFinite("the influence step is not finite. Look for a loss that is not, or raise damping.")
            leaves = list(trainable(work.model).values())
            for theta, part in zip(leaves, step.split([theta.numel() for theta in leaves]), strict=True):
                theta.copy_(theta.double() + part.view_as(theta))
        return work.model.eval()

    def _direction(self, work: ImageWork) -> Tensor:
        """F^-1 v, `[parameters]`, float64."""
        forgotten, retained = (_summed_gradient(work, rows) for rows in (work.forget, work.retained))
        n_f, n_r = len(work.forget), len(work.retained)
        v = forgotten / (n_f + n_r) - n_f / ((n_f + n_r) * n_r) * retained
        rows = min(n_r, self.samples + 2 if self.mode == "repo" else self.samples)
        some = work.retained.subset(work.retained.index[:rows])
        work.cost.add(rows, 1, 1)
        with torch.enable_grad():
            if self.mode == "repo":
                return recursive_inverse(
                    v, row_gradients(work.model, work.batches(some, BATCH), image_loss), self.samples
                )
            blocks = row_gradients(work.model, work.batches(some, BATCH), image_loss, block=BATCH)
            return woodbury_inverse(v, torch.cat([block.double() for block in blocks]), self.damping)


def _summed_gradient(work: ImageWork, rows: Images) -> Tensor:
    """The sum of the rows' gradients, `[parameters]`, float64."""
    gradients = importances(work.model, work.batches(rows, BATCH), image_loss, each="row", of="gradient", over="sum")
    work.cost.forwards += gradients.cost
    return torch.cat([tensor.double().flatten() for tensor in gradients.tensors.values()])
