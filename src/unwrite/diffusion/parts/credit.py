"""CreditDecoding: a token that keeps winning is believed earlier (arXiv 2510.06133).

Under a threshold a position often has its final token on top many steps before it is sure enough. Each step gives the
likeliest token of a position credit, credit fades, and what is left of it lifts the token's logit:

    C_t[v] = beta C_(t-1)[v] + 1[v = argmax p_t] p_t[v]^gamma        q = softmax(l_t + alpha log(1 + C_t))

Token and confidence come from q. Credit is zero when a block is opened and belongs to one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from ...errors import MethodError, unknown
from ..base import Commit, CommitRule, Logits, Step, at_least_one, best, finite, not_negative
from ..vocabulary import logsumexp, probability_of, top_token

if TYPE_CHECKING:
    from ..sampler import Sampler

__all__ = ["CreditDecoding", "CreditThreshold"]

Rate: TypeAlias = "float | Tensor"  # one for all, or [rows, 1, 1]


@dataclass(frozen=True)
class CreditDecoding(Logits):
    """Adds credit to the logits as they arrive, in float32 at least; works under any rule that reads a confidence.

    `trace.counts["changed_argmax"]` sums over steps the masked positions whose likeliest token credit changed.

    Args:
        alpha: how much credit lifts a logit, at least 0; at 0 nothing changes.
        beta: share of the credit that is left after a step, in [0, 1).
        gamma: power of the probability that is credited, at least 0; at 0 every win counts as one.
        rates: "fixed" for the three above; "adaptive" for the variant without tuning: gamma 1, alpha and beta the share of
            positions already written, so that a fully masked block's first step is plain.
        scope: where that share is taken, the "block" or the whole "output".
        update: credit for the "top" token, or for "all" by their own probability.
        storage: "dense" keeps a number for each token of the vocabulary; "sparse" only for tokens that were on top, in far
            less memory: the same as long as no position had more than 32 of them, or than its block is wide, of which the
            least are forgotten; None for sparse unless all tokens get credit.
    """

    alpha: float = 0.65
    beta: float = 0.70
    gamma: float = 0.20
    rates: Literal["fixed", "adaptive"] = "fixed"
    scope: Literal["block", "output"] = "block"
    update: Literal["top", "all"] = "top"
    storage: Literal["dense", "sparse"] | None = None

    def __post_init__(self) -> None:
        finite(self, alpha=self.alpha)
        not_negative(self, gamma=self.gamma)
        if not 0 <= self.beta < 1:
            raise MethodError(f"CreditDecoding: beta is {self.beta}; use at least 0 and less than 1.")
        _one_of("rates", self.rates, "fixed", "adaptive")
        _one_of("scope", self.scope, "block", "output")
        _one_of("update", self.update, "top", "all")
        if self.storage is not None:
            _one_of("storage", self.storage, "dense", "sparse")
        if self.update == "all" and self.storage == "sparse":
            raise MethodError("CreditDecoding: update is 'all', and sparse storage holds top tokens only. Use 'dense'.")

    @classmethod
    def paper(cls, **others: Any) -> CreditDecoding:
        """The paper's coefficients (section 5.1)."""
        return cls(**others)

    @classmethod
    def dinfer(cls, **others: Any) -> CreditDecoding:
        """The defaults of the authors' own inference engine."""
        return cls(alpha=0.7, beta=0.8, gamma=0.2, **others)

    @classmethod
    def adaptive(cls, **others: Any) -> CreditDecoding:
        """The variant without tuning (section 4.3)."""
        return cls(rates="adaptive", **others)

    def check(self, sampler: Sampler) -> None:
        """Refuses an order that takes no notice of the confidence."""
        drawn = sampler.score.ranks_by == "chance"
        if drawn or sampler.commit.draws_places:
            which = repr(sampler.score) if drawn else type(sampler.commit).__name__
            raise MethodError(
                f"CreditDecoding makes positions surer, and {which} reveals at random. Use a score of the probabilities."
            )

    def fuse(self, step: Step) -> Tensor:
        """[rows, width, vocab] in float32, or float64 where that is what arrives."""
        logits = step.fused if step.fused.dtype == torch.float64 else step.fused.float()
        alpha, beta, gamma = self._rates(step)
        top = top_token(logits)
        if self.storage == "dense" or self.update == "all":
            fused = logits + alpha * self._dense(step, logits, top, beta, gamma).log1p()
        else:
            tokens, credit = self._sparse(step, logits, top, beta, gamma)
            # Free places add nothing, to token 0.
            fused = logits.scatter_add(-1, tokens.clamp(min=0), (alpha * credit.log1p()).to(logits.dtype))
        step.count("changed_argmax", ((top_token(fused) != top) & step.masked).sum(1))
        return fused

    def _rates(self, step: Step) -> tuple[Rate, Rate, float]:
        """alpha, beta, gamma of this step."""
        if self.rates == "fixed":
            return self.alpha, self.beta, self.gamma
        if self.scope == "block":
            left, size = step.masked.sum(1), step.end - step.start
        else:
            columns = torch.arange(step.canvas.shape[1], device=step.canvas.device)
            left = ((step.canvas == step.mask_id) & (columns < step.length[:, None])).sum(1)
            size = step.length - step.prompt
        written = (1 - left / size)[:, None, None]
        return written, written, 1.0

    def _dense(self, step: Step, logits: Tensor, top: Tensor, beta: Rate, gamma: float) -> Tensor:
        """[rows, width, vocab] credit after this step."""
        memory = step.memory(self)
        credit = beta * memory.get("credit", *logits.shape[1:], per_block=True)
        if self.update == "all":
            p = (logits.double() - logsumexp(logits)[..., None]).exp().float()
            credit = credit + p.pow(gamma) * step.masked[..., None]
        else:
            credit = credit.scatter_add(-1, top[..., None], _earned(step, logits, top, gamma)[..., None])
        memory.put("credit", credit)
        return credit

    def _sparse(self, step: Step, logits: Tensor, top: Tensor, beta: Rate, gamma: float) -> tuple[Tensor, Tensor]:
        """[rows, width, places] tokens that were on top, -1 where a place is free, and their credit after this step."""
        memory, width = step.memory(self), step.masked.shape[1]
        # As a rule a block takes no more steps than it is wide, but small ones may wait longer.
        places = max(32, width)
        tokens = memory.get("tokens", width, places, fill=-1, dtype=torch.long, per_block=True)
        credit = beta * memory.get("credit", width, places, per_block=True)
        same = tokens == top[..., None]
        known = same.any(-1, keepdim=True)
        least = credit.masked_fill(tokens < 0, -1.0).argmin(-1, keepdim=True)  # the first free one, if there is one
        place = torch.where(known, same.long().argmax(-1, keepdim=True), least)
        earned = _earned(step, logits, top, gamma)[..., None] + credit.gather(-1, place) * known
        credit, tokens = credit.scatter(-1, place, earned), tokens.scatter(-1, place, top[..., None])
        memory.put("tokens", tokens)
        memory.put("credit", credit)
        return tokens, credit


@dataclass(frozen=True)
class CreditThreshold(CommitRule):
    """`Threshold` that counts what credit did, and that can wait.

    `trace.counts["credit_boosted"]`: positions revealed because of credit, clean probability < threshold <= confidence.

    Args:
        threshold: confidence after credit that reveals a position, at least 0.
        fallback: where no position reaches it, reveal the surest ("top1"), or wait for credit to grow ("none", as the
            paper's algorithm reads).
        patience: steps in a row that may reveal nothing before the surest is revealed all the same, no more than four a
            generated position; only without fallback.
    """

    threshold: float = 0.9
    fallback: Literal["top1", "none"] = "top1"
    patience: int = 16

    def __post_init__(self) -> None:
        not_negative(self, threshold=self.threshold)
        _one_of("fallback", self.fallback, "top1", "none")
        if self.fallback == "none" and not 0 < self.threshold <= 1:
            raise MethodError(
                f"CreditThreshold: threshold is {self.threshold}; without fallback use a value above 0 and at most 1."
            )
        if self.patience < 1:
            raise MethodError(f"CreditThreshold: patience is {self.patience}; use at least 1.")

    def commit(self, step: Step) -> Commit:
        sure = step.masked & (step.confidence >= self.threshold)
        boosted = sure & (probability_of(step.clean, step.proposed, sure) < self.threshold)
        step.count("credit_boosted", boosted.sum(1))
        if self.fallback == "top1":
            return Commit(at_least_one(step, sure))
        memory = step.memory(self)
        waited = memory.get("waited", dtype=torch.long, per_block=True) + 1
        due = ~sure.any(1) & (waited > min(self.patience, 4 * step.size))  # the loop ends after that many
        memory.put("waited", waited * ~(sure.any(1) | due))
        return Commit(sure | (best(step) & due[:, None]))


def _earned(step: Step, logits: Tensor, top: Tensor, gamma: float) -> Tensor:
    """[rows, width] credit of the top token, float32; none where the position is written."""
    return probability_of(logits, top, step.masked).float().pow(gamma) * step.masked


def _one_of(name: str, value: str, *known: str) -> None:
    if value not in known:
        raise MethodError(unknown(name, value, known) + f" Use {' or '.join(map(repr, known))}.")
