"""Drafting with a smaller model: its own runtime, grown level by level, sampled without replacement.

Siblings are drawn without replacement by the Gumbel-top-k trick and verified in the order they were drawn by recursive
rejection, which leaves the target's distribution exactly as it is (RSD, arXiv 2402.14160; a chain is its special case of one
child a level, Leviathan et al., arXiv 2211.17192):

    accept X_k if r < min(1, q_k(X_k) / p_k(X_k));  else q <- norm(max(q - p, 0)),  p <- p without X_k, renormalised
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import MethodError, setting
from .base import Drafter
from .engine.runtime import Runtime
from .engine.sampling import STATEFUL, Sampling
from .engine.tree import DraftTree, Ints, Path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOM, LARGEST = 1 << 10, 1 << 7  # columns a draft's cache has for new tokens at first, and for a tree at most
WIDE = 32  # siblings beyond this order share their statistics


def kind_of(depth: int, order: int) -> int:
    """Acceptance statistics by depth and by how many siblings were drawn before."""
    return depth * WIDE + min(order, WIDE - 1)


def uniform(shape: Sequence[int], sampling: Sampling, like: Tensor) -> Tensor:
    """Uniform on (0, 1), both ends left out."""
    device = sampling.generator.device if sampling.generator is not None else like.device
    drawn = torch.rand(*shape, generator=sampling.generator, device=device, dtype=torch.float64)
    return drawn.clamp_(1e-300, 1 - 1e-16).to(like.device)


def gumbel(shape: Sequence[int], sampling: Sampling, like: Tensor) -> Tensor:
    """Standard Gumbel noise in float64."""
    device = sampling.generator.device if sampling.generator is not None else like.device
    drawn = torch.empty(*shape, device=device, dtype=torch.float64).exponential_(generator=sampling.generator)
    return drawn.clamp_(min=1e-300).log_().neg_().to(like.device)


def gumbel_top_k(log_p: Tensor, k: int, sampling: Sampling) -> Tensor:
    """An ordered sample without replacement: the k largest of log p + Gumbel noise.

    Args:
        log_p: [vocab]; tokens at -inf are never drawn.

    Returns:
        [at most k] token ids in the order drawn; fewer where fewer have any probability.
    """
    support = torch.isfinite(log_p).nonzero()[:, 0]
    noisy = log_p[support].double() + gumbel([len(support)], sampling, log_p)
    return support[noisy.topk(min(k, len(support))).indices]


def stochastic_beam_step(
    phi: Tensor, u: Tensor, log_p: Tensor, width: int, sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of stochastic beam search (Kool et al., arXiv 1903.06059).

    Args:
        phi: [beam] log-probability of every beam node's branch.
        u: [beam] its perturbed value, the maximum its children must have.
        log_p: [beam, vocab] of the next token.
        width: children kept over all nodes.

    Returns:
        (parent, token, phi, u) of the kept children, [at most width] each, by decreasing u.
    """
    every = phi.double()[:, None] + log_p.double()
    # Conditioning keeps the order within a row, so only a row's `width` largest can be kept.
    noisy, tokens = (every + gumbel(every.shape, sampling, log_p)).topk(min(width, every.shape[1]), -1)
    joint, most = every.gather(1, tokens), noisy[:, :1]
    # Conditioned on the largest being u, in the form that overflows nowhere; the largest itself gets u.
    a = u.double()[:, None] - noisy + torch.log1p(-torch.exp(noisy - most))
    conditioned = u.double()[:, None] - a.clamp(min=0) - torch.log1p(torch.exp(-a.abs()))
    conditioned = torch.where(torch.isfinite(joint), conditioned, -torch.inf)
    flat = conditioned.flatten()
    count = min(width, int(torch.isfinite(flat).sum()))
    best = flat.topk(count)
    token = tokens.flatten()[best.indices]
    return best.indices // joint.shape[1], token, joint.flatten()[best.indices], best.values


def recursive_rejection(
    target: Tensor, log_p: Tensor, ordered: Sequence[int], sampling: Sampling
) -> tuple[int, int | None]:
    """The next token under `target`, taken from ordered children where they are accepted.

    Args:
        target: [vocab] probabilities.
        log_p: [vocab] draft log-probabilities the children were drawn from, without replacement.
        ordered: the children's tokens in the order drawn.

    Returns:
        (token, its place among the children, or None if it was drawn from what was left).
    """
    q, left = target.double(), log_p.double().clone()
    for place, token in enumerate(ordered):
        p = left.softmax(-1)
        if float(uniform([1], sampling, target)) * float(p[token]) < float(q[token]):
            return token, place
        rest = (q - p).clamp_(min=0)
        total = float(rest.sum())
        # Rounding can leave nothing where q and p agree; then q itself is what is left.
        q = rest / total if total > 0 else q
        left[token] = -torch.inf
        if not torch.isfinite(left).any():
            break
    drawn = torch.multinomial(q[None].float(), 1, generator=sampling.generator)
    return int(drawn), None


@dataclass
class Drawn:
    """What verifying sampled children takes. log_p: {node: [vocab]} the draft's, of every node with children."""

    log_p: dict[int, Tensor]


class ModelDrafter(Drafter):
    """Grows a tree with a draft model; what a level adds is the subclass's.

    Its cache always ends before the root: each proposal first feeds what was committed since, then the tree so far once a
    level. A draft model is small, so rows again cost next to nothing, and nothing has to be rolled back.

    Args:
        draft: the draft model's runtime, for this drafter alone.
        sampling: the target's; the draft is warped alike.
    """

    rests = True

    def __init__(self, draft: Runtime, sampling: Sampling) -> None:
        names = [type(processor).__name__ for processor in sampling.processors]
        if bad := [name for name in names if name in STATEFUL]:
            raise MethodError(
                f"{bad[0]} keeps a state that drafting would disturb. Use a strategy without a draft model."
            )
        self.draft, self.sampling = draft, sampling
        self._started, self._room, self._ends = False, ROOM, 0

    def reset(self, prompt: Ints, prefill: Tensor | None) -> None:
        self._started = False

    @abstractmethod
    def grow(self, growing: Growing, depth: int, shape: int) -> bool:
        """Adds the level at `depth` (from 1) for the plan number `shape`; False once there is nothing to add."""

    def depth_of(self, shape: int) -> int:
        """Levels of a plan."""
        return int(self.plans[shape].depths.max())

    def propose(self, committed: Ints, budget: int) -> DraftTree:
        shape = max((i for i, plan in enumerate(self.plans) if plan.nodes - 1 <= budget), default=None)
        if shape is None:
            return DraftTree.of([int(committed[-1])], [-1])
        deepest = self.depth_of(shape)
        if self.draft.max_positions is not None:
            deepest = min(deepest, self.draft.max_positions - len(committed))
        growing = Growing(self, committed)
        for depth in range(1, deepest + 1):
            growing.look(depth)
            if not self.grow(growing, depth, shape):
                break
        return growing.tree(self.sampling.do_sample)

    def first_logits(self, committed: Ints) -> Tensor:
        """[vocab] after the root; feeds what the draft's cache lacks and leaves the root out of it."""
        if not self._started or len(committed) + LARGEST > self._ends:
            self._room *= 2 if self._started else 1
            self._ends = len(committed) + self._room
            self.draft.prefill([committed[:-1]], self._room) if len(committed) > 1 else None
            self._started = True
        cached = int(self.draft.lengths[0]) if len(committed) > 1 else 0
        missing, most = committed[cached:], self.draft.max_nodes or len(committed)
        while len(missing) > most:
            self.draft.forward(DraftTree.chain(int(missing[0]), missing[1:most]))
            self.draft.commit([list(range(most))])
            missing = missing[most:]
        logits = self.draft.forward(DraftTree.chain(int(missing[0]), missing[1:])).logits[0, -1]
        self.draft.commit([list(range(len(missing) - 1))])
        return logits

    def accept(self, tree: DraftTree, node: int, scores: Tensor, sampling: Sampling) -> tuple[int, int | None]:
        below = np.flatnonzero(tree.parents[0] == node)
        tokens = tree.tokens[0, below].tolist()
        drawn: Drawn = tree.draft
        if not tokens:
            return sampling.pick(scores), None
        token, place = recursive_rejection(scores.softmax(-1), drawn.log_p[node], tokens, sampling)
        return token, None if place is None else int(below[place])

    def prior(self, kind: int) -> float:
        """A first child is right more often than not; later siblings less and less."""
        return (0.6, 0.15, 0.08)[min(kind % WIDE, 2)]

    def commit(self, path: Path) -> None:
        """Nothing: the cache ends before the root, and what was accepted is fed next time."""


class Growing:
    """A tree in the making: tokens, parents, and what the draft says after the newest level."""

    def __init__(self, drafter: ModelDrafter, committed: Ints) -> None:
        self.drafter, self.committed = drafter, committed
        self.tokens, self.parents, self.kinds = [int(committed[-1])], [-1], [0]
        self.frontier = [0]
        self.log_p: dict[int, Tensor] = {}

    def look(self, depth: int) -> None:
        """Log-probabilities after every node of the frontier, warped as the target's are."""
        drafter = self.drafter
        if depth == 1:
            frontier_logits = {0: drafter.first_logits(self.committed)}
        else:
            output = drafter.draft.forward(DraftTree.of(self.tokens, self.parents))
            drafter.draft.commit([[]])
            frontier_logits = {node: output.logits[0, node] for node in self.frontier}
        for node, logits in frontier_logits.items():
            scores = drafter.sampling.scores(logits, self._text(node))
            self.log_p[node] = scores.log_softmax(-1)

    def add(self, parent: int, tokens: Sequence[int], depth: int) -> list[int]:
        """Children of one node in the order drawn. Returns their nodes."""
        first = len(self.tokens)
        already = sum(1 for above in self.parents if above == parent)
        self.tokens += tokens
        self.parents += [parent] * len(tokens)
        self.kinds += [kind_of(depth, already + order) for order in range(len(tokens))]
        return list(range(first, len(self.tokens)))

    def tree(self, sampled: bool) -> DraftTree:
        """The finished tree; with what verifying takes if its children were drawn."""
        return DraftTree.of(self.tokens, self.parents, self.kinds, Drawn(self.log_p) if sampled else None)

    def _text(self, node: int) -> Tensor:
        """[1, length] ids up to a node, for processors that read them."""
        if not self.drafter.sampling.processors:
            return torch.empty(1, 0, dtype=torch.long)
        branch: list[int] = []
        while node > 0:
            branch.append(self.tokens[node])
            node = self.parents[node]
        return torch.from_numpy(np.concatenate([self.committed, np.array(branch[::-1], dtype=np.int64)]))[None]


def name_of(draft_model: PreTrainedModel | Runtime | None) -> str:
    """Tells draft models of different shape apart, for what is remembered of them."""
    if isinstance(draft_model, Runtime):
        return draft_model.fingerprint
    config = getattr(draft_model, "config", None)
    return " ".join(str(getattr(config, key, "")) for key in ("model_type", "num_hidden_layers", "hidden_size"))


def draft_runtime(draft_model: PreTrainedModel | Runtime | None, target: Runtime, name: str) -> Runtime:
    """A runtime for the draft model, checked against the target.

    Raises:
        MethodError: no draft model, or one of another vocabulary.
    """
    if draft_model is None:
        raise MethodError(f"{name} drafts with a smaller model. Pass one: {setting('draft_model')}.")
    if isinstance(draft_model, Runtime):
        runtime = draft_model
    else:
        from .engine.transformers.runtime import TransformersRuntime

        runtime = TransformersRuntime(draft_model)
    if runtime.max_nodes == 1:
        raise MethodError(
            f"the draft model decodes plainly, one row a step, and {name} needs rows that see one another."
        )
    if runtime.vocab != target.vocab:
        raise MethodError(
            f"draft and target have vocabularies of {runtime.vocab} and {target.vocab} tokens. Use a draft model of the "
            "target's own family, such as its first layers (anatomy.truncate)."
        )
    return runtime
