"""How much to draft: as many nodes as pay, down to none.

A node pays if what it adds to the expected number of committed tokens is worth the rows it adds to the forward. With the
chance of every node (the product of its branch's acceptance estimates) the best tree of n nodes is the n most likely
ones, and the best n maximises expected tokens over expected seconds. Acceptance is learnt from every proposal, whether its
nodes ran or not: what was committed afterwards shows what would have been accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..tree import ROOT, DraftTree, Ints, Path
from .costs import SIZES, Acceptance, DraftCosts, OwnSeconds
from .routes import ForwardRoutes

if TYPE_CHECKING:
    from ..rows import DecodingRow

MARGIN = 1.03  # a draft must promise this much over plain decoding
IDLE_AFTER = 8
LONGEST_REST = 64
UNKNOWN_DRAFT = 0.3  # of a plain forward, for each level of a drafter that was never timed
PROBE_SHARE = 0.01  # of the time, for drafts that are not expected to pay
STAKE = 1.1  # plain steps that drafts may lose in a text which has not shown yet that they pay there
WORTH = 12.0  # plain steps: the most that a text's gains allow to lose again


@dataclass
class _Pending:
    """A proposal whose fate is not yet known.

    Args:
        tree: all that was proposed.
        children: of each node, by token.
        node: the last that was committed.
        watched: nodes of a draft that was thought to pay and did not run, because too much was at stake; None for others.
        risk: plain steps that this draft would have lost had all of it been refused.
        won: its nodes that were committed.
    """

    tree: DraftTree
    children: list[dict[int, int]]
    node: int = 0
    watched: frozenset[int] | None = None
    risk: float = 0.0
    won: int = 0


@dataclass(frozen=True)
class PlannedDraft:
    """What a row's next step is to be.

    Args:
        tree: to run; the root alone where nothing is drafted.
        rest: plain steps to come, this one the first, in which the drafter is not asked; 0 where it was.
    """

    tree: DraftTree
    rest: int = 0


@dataclass(frozen=True)
class RowOutcome:
    """What a step did to one row.

    Args:
        tree: as it ran; None for steps in which the drafter was not asked.
        path: what was committed; without nodes where the row only waited for others.
        steps: forwards; above 1 only without a tree.
        own: seconds, asked for once all was learnt, of the row's share of the step beside the forward.
        drafting: seconds of drafting among them.
    """

    tree: DraftTree | None
    path: Path
    steps: int
    own: Callable[[], float]
    drafting: float = 0.0


class Planner:
    """Chooses one row's drafts (`draft`) and learns from what became of them (`learn`).

    What other texts taught is only a first belief, and where rows are dear one draft that is refused costs several plain steps.
    So a text has a credit, in plain steps: a draft may risk no more. What drafts gain raises it and what they lose lowers it; a
    draft that was thought to pay but risked too much raises it, too, once the text shows that it would have gained. The texts of
    a batch share their forwards, so one that waits for the others would pay for their rows: there, none has a credit to keep to.

    Args:
        routes: forward costs.
        prior: the drafter's belief by kind.
        acceptance: what earlier calls learnt, if they are to be gone on from.
        active: off, every proposal runs whole.
        drafting: what drafting by a model cost in earlier calls, likewise.
        batch: rows that share a forward; each is taken to draft as much as this one.
        budget: nodes that a draft may have beside the root.
    """

    def __init__(
        self,
        routes: ForwardRoutes,
        prior: Callable[[int], float],
        acceptance: Acceptance | None = None,
        active: bool = True,
        drafting: DraftCosts | None = None,
        batch: int = 1,
        budget: int = SIZES[-1],
    ) -> None:
        self.routes, self.prior, self.active, self.batch = routes, prior, active, batch
        self.budget = budget
        self.acceptance = acceptance or Acceptance()
        self.drafting = drafting or DraftCosts()
        self.own = OwnSeconds()
        # Where the last text left off, but with a few looks: this one may be of another kind.
        self.idle = min(self.drafting.idle, IDLE_AFTER // 2)
        self.credit = STAKE if batch == 1 else math.inf
        self._risked = 0.0  # of the draft that runs
        self._rest = 0  # steps that go by without a look
        self._looked = False
        self._pending: list[_Pending] = []
        self._plan: int | None = None
        self._length = 0  # of the text for which it was chosen
        self._began = False  # a draft model's first step of a call reads the prompt too

    # What to draft.

    def draft(self, row: DecodingRow) -> PlannedDraft:
        """What a row's next step runs."""
        drafter, deepest = row.drafter, row.deepest
        if self.batch == 1 and drafter.rests:
            steps = row.run if deepest < 1 or not drafter.drafts else self.resting(row.run)
            if steps:
                return PlannedDraft(row.root(), steps)
        if deepest < 1:
            return PlannedDraft(row.root())
        plans, budget = drafter.plans, self.budget
        if plans:
            budget = self.choose_plan(plans, row.text.length, budget, deepest)
            if budget == 0:
                return PlannedDraft(row.root())
        elif not self.should_look():
            return PlannedDraft(row.root())
        tree = drafter.propose(row.text.ids, budget)
        if tree.draft is not None:
            return PlannedDraft(tree)
        tree = tree.shallower(deepest)
        self.propose(tree)
        return PlannedDraft(tree if plans else self.prune(tree, row.text.length))

    def should_look(self) -> bool:
        """Whether to ask a cheap drafter at all; in text it can't predict, only now and then."""
        self._looked = self.resting() == 0
        return self._looked

    def resting(self, most: int = 1) -> int:
        """Steps to come, of at most so many, that go by without asking the drafter; they count as gone."""
        steps = min(self._rest, most) if self.active else 0
        self._rest -= steps
        return steps

    def prune(self, tree: DraftTree, length: int) -> DraftTree:
        """The nodes that pay, of one row's proposal."""
        if not self.active:
            return tree
        if tree.nodes == 1:
            self._note_look(False)
            return tree
        chances = self.chances(tree)
        order = np.argsort(-chances[1:], kind="stable") + 1
        gains = np.cumsum(chances[order])
        wished = self._best_size(gains, length)
        best = wished
        if wished and self._risk_of(wished, length) > self.credit:
            best = self._best_size(gains, length, self.credit)
        self._note_look(wished > 0)
        if best:
            self._risked = self._risk_of(best, length)
        elif wished:
            self._watch(frozenset(order[:wished].tolist()), self._risk_of(wished, length))
        if best == tree.nodes - 1:
            return tree
        return tree.keep(np.sort(np.concatenate([[0], order[:best]])))

    def _watch(self, nodes: frozenset[int], risk: float) -> None:
        """The last proposal is not run but followed, as one that should have paid; one at a time."""
        if self._pending and all(pending.watched is None for pending in self._pending):
            self._pending[-1].watched, self._pending[-1].risk = nodes, risk

    def _risk_of(self, nodes: int, length: int) -> float:
        """Plain steps lost if all of a draft is refused."""
        plain = self._forward(1, length) + self.own.of(False)
        return _risk(self._forward(1 + nodes, length) + self.own.of(True), plain)

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

    def _best_size(
        self, gains: np.ndarray[tuple[int], np.dtype[np.float64]], length: int, credit: float = math.inf
    ) -> int:
        """How many of the sorted nodes to run. gains: [nodes - 1] cumulative expected acceptances; credit: most at risk."""
        if not self.routes.knows_plain:
            return 0
        plain = self._forward(1, length) + self.own.of(False)
        best, best_rate = 0, 0.0
        for rows in (*(size for size in SIZES[1:] if size <= len(gains)), len(gains) + 1):
            seconds = self._forward(rows, length) + self.own.of(True)
            rate = (1 + gains[rows - 2]) / seconds
            if rate > best_rate and _risk(seconds, plain) <= credit and rate * plain > MARGIN:
                best, best_rate = rows - 1, rate
        return best

    def _forward(self, rows: int, length: int) -> float:
        """Seconds of a forward in which every text of the batch has so many rows."""
        return self.routes.estimate(rows * self.batch, length)

    def choose_plan(self, plans: Sequence[DraftTree], length: int, limit: int, deepest: int) -> int:
        """Node count of the plan that pays most, 0 for none; for drafters that are asked before they draft.

        Args:
            limit, deepest: nodes beside the root and levels that a draft may have.
        """
        if self.resting():
            return 0
        self._looked = True
        fits = [plan.nodes - 1 <= limit and int(plan.depths.max()) <= deepest for plan in plans]
        fitting = [(i, plan) for i, plan in enumerate(plans) if fits[i]]
        self._plan = None
        if not fitting or (self.active and not self.routes.knows_plain):
            return 0
        plain = self._forward(1, length) + self.own.of(False)
        reading = 0.0 if self._began else self._reading(length)
        rates = {}
        for i, plan in fitting:
            drafting = self.drafting.estimate(i, int(plan.depths.max()), UNKNOWN_DRAFT * plain)
            seconds = self._forward(plan.nodes, length) + drafting + self.own.of(False)
            rates[i] = (float(self.chances(plan).sum()) / seconds, seconds)
        risks = {i: _risk(seconds + reading, plain) for i, (_, seconds) in rates.items()}
        paying = [i for i, (rate, _) in rates.items() if rate * plain > MARGIN and risks[i] <= self.credit]
        best = max(paying or rates, key=lambda i: rates[i][0])
        if self.active and not paying:
            self._note_look(False)
            self.drafting.spare += PROBE_SHARE * plain
            if self.drafting.spare < risks[best] * plain:
                return 0
        else:
            self._note_look(True)
        self.drafting.spare = 0.0
        self._risked, self._length = risks[best], length
        self._plan = best if self.active else fitting[-1][0]
        self._depth = int(plans[self._plan].depths.max())
        return plans[self._plan].nodes - 1

    def _reading(self, length: int) -> float:
        """Seconds until a draft model has read a text; as dear a token as the target's widest forward where none was timed."""
        known = self.drafting.reading
        return length * (UNKNOWN_DRAFT * self._forward(SIZES[-1], length) / SIZES[-1] if known is None else known)

    # What became of it.

    def propose(self, tree: DraftTree) -> None:
        """A whole proposal, before pruning: its nodes' kinds are judged by the tokens to come."""
        if tree.nodes > 1 and tree.draft is None:
            self._pending.append(_Pending(tree, tree.children()))

    def learn(self, step: RowOutcome) -> None:
        """What became of the row's step, and what it took."""
        if step.tree is None:
            for token in step.path.tokens:
                self.follow(token)
            self.rested(step.own() / step.steps, step.steps)
            return
        if step.path.nodes:
            self.judge(step.tree, step.path)
        self.spent(step.own(), step.drafting, step.tree.nodes > 1)

    def judge(self, tree: DraftTree, path: Path) -> None:
        """Acceptance and credit by a step's outcome. tree: as it ran; path: what was committed."""
        if tree.nodes > 1:
            self._credit(len(path.nodes) - 1 - self._risked)
            self._risked = 0.0
        if tree.draft is not None:
            accepted, kinds = set(path.nodes), tree.kinds[0].tolist()
            for node, parent in enumerate(tree.parents[0].tolist()):
                if parent != ROOT and parent in accepted:
                    self.acceptance.observe(kinds[node], node in accepted)
            return
        for token in path.tokens:
            self.follow(token)

    def follow(self, token: int) -> None:
        """One more token is committed: what proposals have to say about it."""
        if self._pending:
            self._pending = [pending for pending in self._pending if self._follow(pending, token)]

    def rested(self, own: float, steps: int = 1) -> None:
        """Plain steps without a look. own: seconds of each beside the forward."""
        for _ in range(steps):
            self._regain()
            self.own.rested(own)
        if self.routes.knows_plain:
            self.drafting.spare += steps * PROBE_SHARE * self._forward(1, 1)

    def _credit(self, gain: float) -> None:
        if self.batch == 1:
            self.credit = min(WORTH, self.credit + gain)

    def _regain(self) -> None:
        """What was lost is allowed again, little by little."""
        self.credit += PROBE_SHARE if self.credit < STAKE else 0.0

    def _note_look(self, pays: bool) -> None:
        self.idle = self.drafting.idle = 0 if pays else self.idle + 1

    def _follow(self, pending: _Pending, token: int) -> bool:
        """One more token is known; False once the proposal has nothing more to say."""
        children = pending.children[pending.node]
        kinds: Ints = pending.tree.kinds[0]
        hit = children.get(token)
        for node in children.values():
            self.acceptance.observe(int(kinds[node]), node == hit)
        if hit is None:
            return False
        if pending.watched is not None and hit in pending.watched:
            pending.won += 1
            self._credit(min(1.0, max(0.0, pending.won - pending.risk)))
        pending.node = hit
        return bool(pending.children[hit])

    def spent(self, own: float, drafting: float, drafted: bool) -> None:
        """Seconds of the step beside the forward, and of the drafting among them."""
        beside = own - drafting
        self._regain()
        if self._plan is not None:
            if self._began:
                self.drafting.observe(self._plan, self._depth, drafting)
            elif drafted:
                self.drafting.reading = drafting / self._length
            self._began = True
            own = beside
            self._plan = None  # a step that chooses none must not count as this one's
        if self._looked and not drafted and self.idle >= IDLE_AFTER and self.routes.knows_plain:
            # Looking may take so much of the time while it finds nothing.
            share = PROBE_SHARE * max(self._forward(1, 1), 1e-9)
            cost = max(drafting, own - self.own.of_rest if self.own.of_rest else 0.0)
            self._rest = max(1, min(LONGEST_REST, int(cost / share)))
        self._looked = False
        # What plain decoding would take is without the look.
        self.own.observe(drafted, own if drafted else beside)


def _risk(seconds: float, plain: float) -> float:
    """Plain steps that a step loses which commits one token."""
    return max(0.0, seconds / plain - 1)
