"""How a token is chosen for every position, and how sure the choice is.

LLaDA (arXiv 2502.09992) adds noise with power to the probabilities and judges a choice by the clean ones:

    x0 = arg max_v exp(l_v) / (-ln u_v)^T,   u ~ U(0, 1),   which draws from softmax(l / T)

Dream (arXiv 2508.15487) warps first (temperature, top-p, top-k), draws, and judges by the warped probabilities. All of it
is in float64: in lower precision ties and saturated probabilities change the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import MethodError
from ..base import Proposal, Ranking, Score, Step, finite
from ..vocabulary import entropy_of, margin_of, probability_of, top_token


@dataclass(frozen=True)
class Gumbel(Proposal):
    """Draws a token by Gumbel noise at a temperature; the most likely one at 0.

    Args:
        temperature: at least 0; 0 takes the arg max.
    """

    temperature: float = 0.0

    def __post_init__(self) -> None:
        finite(self, temperature=self.temperature)

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.temperature > 0

    def propose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """Tokens [..., n]."""
        if noise is None or self.temperature == 0:
            return top_token(logits)
        u = noise.clamp(min=torch.finfo(torch.float64).tiny)
        return (logits.double() - self.temperature * torch.log(-torch.log(u))).argmax(-1)


@dataclass(frozen=True)
class Nucleus(Proposal):
    """Dream's choice.

    Args:
        temperature: at least 0; 0 takes the arg max.
        top_p: smallest set of tokens with at least this probability, in (0, 1]; None for all.
        top_k: the k most likely; None for all.
    """

    temperature: float = 0.2
    top_p: float | None = 0.95
    top_k: int | None = None

    def __post_init__(self) -> None:
        finite(self, temperature=self.temperature)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise MethodError(f"Nucleus: top_p is {self.top_p}; use a value above 0 and at most 1.")
        if self.top_k is not None and self.top_k < 1:
            raise MethodError(f"Nucleus: top_k is {self.top_k}; use at least 1.")

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.temperature > 0

    def propose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """Tokens [..., n]."""
        warped = self.judged(logits, logits)
        if noise is None or self.temperature == 0:
            return top_token(warped)
        u = noise.clamp(min=torch.finfo(torch.float64).tiny)
        return (warped.double() - torch.log(-torch.log(u))).argmax(-1)

    def judged(self, clean: Tensor, fused: Tensor) -> Tensor:
        """[..., n, vocab] with the temperature applied and what is outside top-p and top-k at -inf."""
        logits = fused.double()
        if self.temperature > 0:
            logits = logits / self.temperature
        if self.top_p is not None and self.top_p < 1:
            ordered, places = logits.sort(-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1)
            drop = torch.zeros_like(before, dtype=torch.bool)
            drop[..., 1:] = before[..., :-1] > self.top_p  # the token that crosses the bound stays
            logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, places, drop), -torch.inf)
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return logits


@dataclass(frozen=True)
class Confidence(Score):
    """The probability of the proposed token: LLaDA's low_confidence, Dream's maskgit_plus."""

    ranks_by: ClassVar[Ranking] = "probability"

    def score(self, step: Step) -> Tensor:
        """[rows, width] in [0, 1]."""
        return probability_of(step.judged, step.proposed, step.scored)


@dataclass(frozen=True)
class Margin(Score):
    """The distance of the two largest probabilities: Dream's topk_margin."""

    def score(self, step: Step) -> Tensor:
        """[rows, width] in [0, 1]."""
        return margin_of(step.judged, step.scored)


@dataclass(frozen=True)
class NegativeEntropy(Score):
    """sum p ln(p + 1e-10): Dream's entropy; 0 is the surest."""

    def score(self, step: Step) -> Tensor:
        """[rows, width] at most 0, in nats."""
        return -entropy_of(step.judged, step.scored)


@dataclass(frozen=True)
class RandomOrder(Score):
    """A uniform draw: LLaDA's random remasking."""

    ranks_by: ClassVar[Ranking] = "chance"

    def score(self, step: Step) -> Tensor:
        """[rows, width] in [0, 1)."""
        return step.random_places()


@dataclass(frozen=True)
class LeftToRight(Score):
    """The earlier, the surer."""

    ranks_by: ClassVar[Ranking] = "place"

    def score(self, step: Step) -> Tensor:
        """[rows, width] at most 0."""
        return -step.columns.double()


@dataclass(frozen=True)
class EndLast(Score):
    """Lets end tokens be chosen, but reveals them last: what LLaDA's confidence_eos_eot_inf means.

    Args:
        inner: the score of every other token.
    """

    inner: Score = Confidence()

    @property
    def ranks_by(self) -> Ranking:  # type: ignore[override]
        return self.inner.ranks_by

    def score(self, step: Step) -> Tensor:
        """[rows, width]; end tokens are far below any other, in their own order."""
        scores = self.inner.score(step)
        return torch.where(is_end(step.proposed, step.eos_ids), scores - 1e6, scores)


def is_end(tokens: Tensor, end_ids: tuple[int, ...]) -> Tensor:
    """Whether tokens are end tokens; any shape."""
    return torch.isin(tokens, torch.tensor(end_ids, dtype=tokens.dtype, device=tokens.device))
