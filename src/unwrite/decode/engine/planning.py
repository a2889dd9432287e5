"""How much to draft: as many nodes as pay, down to none.

A node pays if what it adds to the expected number of committed tokens is worth the rows it adds to the forward. With the
chance of every node (the product of its path's acceptance estimates) the best tree of n nodes is the n most likely
ones, and the best n maximises expected tokens over expected seconds. Acceptance is learnt from every proposal, whether its
nodes ran or not: what was committed afterwards shows what would have been accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .costs import SIZES, Acceptance, ForwardCosts
from .tree import ROOT, DraftTree, Ints, Path

MARGIN = 1.03  # a draft must promise this much over plain decoding
IDLE_AFTER, LOOK_EVERY = 8, 4
UNKNOWN_DRAFT = 0.3  # of a plain forward, for each level of a drafter that was never timed
PROBE_SHARE = 0.01  # of the time, for drafts that are not expected to pay


class ForwardPaths:
    """The ways a runtime can run a forward, and which is fastest here and now.

    The default runs; now and then a step runs another way, ever more rarely, and the faster of the two stays.
    """

    FIRST, RAREST = 4, 512

    def __init__(self, names: Sequence[str], shape: tuple[float, ...] | None = None) -> None:
        self.costs = {name: ForwardCosts(shape) if shape else ForwardCosts() for name in names}
        self.names, self.current = tuple(names), names[0]
        self._step, self._gap = 0, self.FIRST
        self._due = self.FIRST
        self._rival = 0
        self._wins: dict[str, int] = {}

    def next(self) -> str:
        """The path for the next forward."""
        self._step += 1
        if len(self.names) == 1 or self._step < self._due:
            return self.current
        rivals = [name for name in self.names if name != self.current]
        return rivals[self._rival % len(rivals)]

    def observe(self, path: str, rows: int, length: int, seconds: float) -> None:
        """Learns; after a rival's forward, decides."""
        self.costs[path].observe(rows, length, seconds)
        if path == self.current:
            return
        faster = seconds < 0.95 * self.costs[self.current].estimate(rows, length)
        self._wins[path] = self._wins.get(path, 0) + 1 if faster else 0
        if self._wins[path] >= 2:
            self.current, self._gap, self._wins = path, self.FIRST, {}
        elif not faster:
            self._gap = min(2 * self._gap, self.RAREST)
            self._rival += 1
        self._due = self._step + self._gap

    def estimate(self, rows: int, length: int) -> float:
        """Seconds of a forward on the current path."""
        return self.costs[self.current].estimate(rows, length)

    @property
    def knows_plain(self) -> bool:
        """Whether a first step, which is plain, was timed: without it, nothing says what a draft must beat."""
        return self.costs[self.current].steps > 0


@dataclass
class _Pending:
    """A proposal whose fate is not yet known."""

    tree: DraftTree
    children: list[dict[int, int]]
    node: int = 0


class Planner:
    """Chooses one row's drafts and learns from what became of them.

    Args:
        paths: forward costs.
        prior: the drafter's belief by kind.
        acceptance: what earlier calls learnt, if they are to be gone on from.
        active: off, every proposal runs whole.
    """

    def __init__(
        self,
        paths: ForwardPaths,
        prior: Callable[[int], float],
        acceptance: Acceptance | None = None,
        active: bool = True,
    ) -> None:
        self.paths, self.prior, self.active = paths, prior, active
        self.acceptance = acceptance or Acceptance()
        self.own = {True: 0.0, False: 0.0}  # the engine's and drafter's own seconds, of a step with and without a draft
        self.idle = 0
        self._steps = 0
        self._pending: list[_Pending] = []
        self._plan_seconds: dict[int, float] = {}
        self._plan: int | None = None
        self._spare = 0.0

    # What to draft.

    def should_look(self) -> bool:
        """Whether to ask a cheap drafter at all; in text it can't predict, only now and then."""
        self._steps += 1
        return not self.active or self.idle < IDLE_AFTER or self._steps % LOOK_EVERY == 0

    def prune(self, tree: DraftTree, length: int) -> DraftTree:
        """The nodes that pay, of one row's proposal."""
        if not self.active or tree.nodes == 1:
            return tree
        chances = self.chances(tree)
        order = np.argsort(-chances[1:], kind="stable") + 1
        best = self._best_size(np.cumsum(chances[order]), length)
        self.idle = self.idle + 1 if best == 0 else 0
        if best == tree.nodes - 1:
            return tree
        return tree.keep(np.sort(np.concatenate([[0], order[:best]])))

    def chances(self, tree: DraftTree) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """[nodes] estimated probability that each node is accepted; 1 for the root."""
        known: dict[int, float] = {}
        chances = [1.0] * tree.nodes
        kinds, parents = tree.kinds[0].tolist(), tree.parents[0].tolist()
        for node in range(1, tree.nodes):
            kind = kinds[node]
            if kind not in known:
                known[kind] = self.acceptance.estimate(kind, self.prior(kind))
            chances[node] = chances[parents[node]] * known[kind]
        return np.array(chances)

    def _best_size(self, gains: np.ndarray[tuple[int], np.dtype[np.float64]], length: int) -> int:
        """How many of the sorted nodes to run. gains: [nodes - 1] cumulative expected acceptances."""
        if not self.paths.knows_plain:
            return 0
        best, best_rate = 0, MARGIN / (self.paths.estimate(1, length) + self.own[False])
        for rows in (*(size for size in SIZES[1:] if size <= len(gains)), len(gains) + 1):
            rate = (1 + gains[rows - 2]) / (self.paths.estimate(rows, length) + self.own[True])
            if rate > best_rate:
                best, best_rate = rows - 1, rate
        return best

    def choose_plan(self, plans: Sequence[DraftTree], length: int, limit: int) -> int:
        """Node count of the plan that pays most, 0 for none; for drafters that are asked before they draft."""
        fitting = [(i, plan) for i, plan in enumerate(plans) if plan.nodes - 1 <= limit]
        self._plan = None
        if not fitting or (self.active and not self.paths.knows_plain):
            return 0
        plain = self.paths.estimate(1, length) + self.own[False]
        rates = {}
        for i, plan in fitting:
            drafting = self._plan_seconds.get(i, UNKNOWN_DRAFT * plain * int(plan.depths.max()))
            seconds = self.paths.estimate(plan.nodes, length) + drafting + self.own[False]
            rates[i] = (float(self.chances(plan).sum()) / seconds, seconds)
        best = max(rates, key=lambda i: rates[i][0])
        pays = not self.active or rates[best][0] > MARGIN / plain
        if not pays:
            self._spare += PROBE_SHARE * plain
            if self._spare < rates[best][1] - plain:
                return 0
        self._spare = 0.0
        self._plan = best if self.active else fitting[-1][0]
        return plans[self._plan].nodes - 1

    # What became of it.

    def propose(self, tree: DraftTree) -> None:
        """A whole proposal, before pruning: its nodes' kinds are judged by the tokens to come."""
        if tree.nodes > 1 and tree.draft is None:
            self._pending.append(_Pending(tree, tree.children()))

    def learn(self, tree: DraftTree, path: Path) -> None:
        """The step's outcome. tree: as it ran; path: what was committed."""
        if tree.draft is not None:
            kept, kinds = set(path.nodes), tree.kinds[0].tolist()
            for node, parent in enumerate(tree.parents[0].tolist()):
                if parent != ROOT and parent in kept:
                    self.acceptance.observe(kinds[node], node in kept)
            return
        for token in path.tokens:
            self._pending = [pending for pending in self._pending if self._follow(pending, token)]

    def _follow(self, pending: _Pending, token: int) -> bool:
        """One more token is known; False once the proposal has nothing more to say."""
        children = pending.children[pending.node]
        kinds: Ints = pending.tree.kinds[0]
        hit = children.get(token)
        for node in children.values():
            self.acceptance.observe(int(kinds[node]), node == hit)
        if hit is None:
            return False
        pending.node = hit
        return bool(pending.children[hit])

    def spent(self, own: float, drafting: float, drafted: bool) -> None:
        """Seconds of the step beside the forward, and of the drafting among them."""
        if self._plan is not None:
            before = self._plan_seconds.get(self._plan, drafting)
            self._plan_seconds[self._plan] = 0.7 * before + 0.3 * drafting
            own -= drafting
        before = self.own[drafted]
        self.own[drafted] = 0.8 * before + 0.2 * own if before else own


@dataclass
class Knowledge:
    """What calls on one runtime leave for the next: forward costs, and acceptance by strategy."""

    paths: ForwardPaths
    acceptance: dict[str, Acceptance] = field(default_factory=dict)


_known: dict[str, Knowledge] = {}


def knowledge_of(fingerprint: str, names: Sequence[str]) -> Knowledge:
    """This process's knowledge of a runtime; the first time with the cost shape kept on disk."""
    key = f"{fingerprint}|{'|'.join(names)}"
    if key not in _known:
        from .curves import read_shape

        _known[key] = Knowledge(ForwardPaths(names, read_shape(fingerprint)))
    return _known[key]


def forget_knowledge() -> None:
    """Starts anew, as a fresh process does."""
    _known.clear()
