"""The loop: propose, forward, walk, roll back, learn; until every row has ended.

The walk is the acceptance rule. At each node it asks the target for the next token (the arg max, or one draw, as plain
decoding would) and steps to the child that carries it; where no child does, the token is committed and the step ends. One
draw per committed token, whatever was drafted: greedy text is identical to `generate`'s, and so is sampled text at the
same seed. Drafters whose trees hold samples bring a rule of their own (`Drafter.accept`), equal in distribution.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...errors import MethodError, ModelError, setting
from .planning.costs import Acceptance, DraftCosts
from .planning.knowledge import Knowledge, knowledge_of
from .planning.planner import Planner
from .rows import Row, Text, padded, root, shallower
from .runtime import LOGITS, Output, Runtime
from .sampling import Sampling
from .stats import Stats, remember
from .stopping import Stopping
from .tree import DraftTree, Ints, Path

if TYPE_CHECKING:
    from ..base import Drafter, Strategy

Clock = Callable[[], float]
RUN = 8  # plain steps between two looks at what they cost
OWN = "own"  # the route of the model's own steps, in the statistics


@dataclass
class Decoded:
    """What `generate` returns.

    Args:
        sequences: [batch] lists of new token ids, the end token included.
        stats: of the call.
        scores: processed scores of every new token, [new tokens] of [vocab], for one row and if asked for.
    """

    sequences: list[list[int]]
    stats: Stats
    scores: list[Tensor] | None = None


class Decoding:
    """One call: rows, runtime and what they share."""

    def __init__(
        self,
        runtime: Runtime,
        strategy: Strategy,
        sampling: Sampling,
        stopping: Stopping,
        *,
        streamer: Any = None,
        keep_scores: bool = False,
        clock: Clock = time.perf_counter,
        device: Any = "cpu",
    ) -> None:
        self.runtime, self.strategy, self.sampling, self.stopping = runtime, strategy, sampling, stopping
        self.streamer, self.clock, self.device = streamer, clock, device
        self.scores: list[Tensor] | None = [] if keep_scores else None
        self.stats = Stats()
        self.knowledge: Knowledge
        self._own = False  # whether the model's own steps have taken over
        self.budget = min(strategy.budget, (runtime.max_nodes or strategy.budget + 1) - 1)

    def run(self, prompts: Sequence[Ints], padding: Sequence[int] | None = None) -> Decoded:
        """Decodes all rows to their ends.

        Args:
            prompts: one array of ids a row; the maximal length counts from the longest.
            padding: how many ids at the beginning of each row are padding; none where it is left out.

        Raises:
            MethodError, DataError: what the drafters refuse, before the first forward.
        """
        start = self.clock()
        padding = padding or [0] * len(prompts)
        width = max(len(prompt) for prompt in prompts)
        new = self.stopping.max_length - width
        drafters = [self._drafter() for _ in prompts]
        if self.streamer is not None:
            self.streamer.put(torch.tensor(prompts[0])[None])  # as `generate` does: streamers may skip it
        texts = [
            Text(prompt, new, self.device, count, width - len(prompt))
            for prompt, count in zip(prompts, padding, strict=True)
        ]
        logits = self._prefill(texts, width, new)
        self.stats.batch = len(prompts)
        rows = [self._row(index, *parts) for index, parts in enumerate(zip(texts, drafters, strict=True))]
        self.stats.forwards += 1
        for index, row in enumerate(rows):
            row.drafter.reset(row.text.ids, logits[index])
            self._first(row, logits[index])
        self.stats.seconds["prefill"] += self.clock() - start
        while not all(row.done for row in rows):
            self._step(rows)
        if self.streamer is not None:
            self.streamer.end()
        return Decoded([row.text.new for row in rows], remember(self.stats), self.scores)

    def _prefill(self, texts: list[Text], width: int, new: int) -> Tensor:
        """[batch, vocab] logits after the prompts."""
        self._own = self._beyond(width)
        if self._own:
            logits = self.runtime.own_prefill(padded(texts, width), [text.padding for text in texts], new)
        else:
            logits = self.runtime.prefill([text.ids for text in texts], new + self.budget + 1)
        # Which routes a forward can run is known once the prompt is cached.
        self.knowledge = knowledge_of(self.runtime.fingerprint, self.runtime.routes)
        routes = self.knowledge.routes
        if not self._own:
            self._use(routes.begin(new, int(self.runtime.lengths.max()), sunk=self.runtime.entered))
        return logits

    def _beyond(self, length: int) -> bool:
        """Whether a text so long, padding included, can only go on in the model's own steps."""
        return self.runtime.limit is not None and length > self.runtime.limit

    def _waits(self, row: Row) -> bool:
        """Whether a row has ended, or has come to the limit before others."""
        return row.done or self._beyond(row.text.padded_length)

    def _drafter(self) -> Drafter:
        drafter, strategy = self.strategy.drafter(self.runtime, self.sampling), self.strategy
        smallest = min((plan.nodes - 1 for plan in drafter.plans), default=0)
        if strategy.budget < smallest:
            raise MethodError(
                f"{setting('budget', strategy.budget)} is below the smallest tree, {smallest} nodes. Use "
                f"{setting('budget', smallest)} or more."
            )
        return drafter

    def _row(self, index: int, text: Text, drafter: Drafter) -> Row:
        known = self.knowledge.acceptance.setdefault(self.strategy.key, Acceptance())
        spent = self.knowledge.drafting.setdefault(self.strategy.key, DraftCosts())
        planner = Planner(
            self.knowledge.routes, drafter.prior, known, self.strategy.cost_model, spent, self.stats.batch
        )
        sampling = self.sampling.of_row(index) if self.stats.batch > 1 else self.sampling
        return Row(text, drafter, planner, sampling)

    def _first(self, row: Row, logits: Tensor) -> None:
        scores = self._scores(row, logits)
        self._commit_token(row, self.sampling.pick(scores), scores)

    def _step(self, rows: list[Row]) -> None:
        if self.runtime.limit is not None and all(map(self._waits, rows)):
            self._own_step(rows)
            return
        alone = rows[0] if len(rows) == 1 else None
        if alone and alone.drafter.rests and (steps := self._resting(alone)):
            self._plain(alone, steps)
            return
        began = self.clock()
        route, entering = self._route()
        trees, drafting = [], []
        for row in rows:
            before = self.clock()
            trees.append(self._draft(row) if not self._waits(row) else root(row))
            drafting.append(self.clock() - before)
        stacked = DraftTree.stack(trees)
        length = int(self.runtime.lengths.max())
        single = alone is not None and stacked.nodes == 1 and self.strategy.needs <= LOGITS
        ready = self.clock()
        output = (
            Output(self.runtime.step(int(stacked.tokens[0, 0]))[None, None])
            if single
            else self.runtime.forward(stacked, self.strategy.needs)
        )
        if output.logits.is_cuda:  # the walk waits for it anyway; here it counts as the forward's
            torch.cuda.synchronize(output.logits.device)
        forwarded = self.clock()
        self.knowledge.routes.observe(route, stacked.nodes * len(rows), length, forwarded - ready)
        paths = [
            self._walk(row, tree, output.row(index, tree.nodes)) if not self._waits(row) else Path(nodes=[])
            for index, (row, tree) in enumerate(zip(rows, trees, strict=True))
        ]
        if not single:
            self.runtime.commit([path.nodes for path in paths])
        for index, (row, tree, path) in enumerate(zip(rows, trees, paths, strict=True)):
            if path.nodes:
                row.planner.learn(tree, path)
                row.drafter.observe(tree, output.row(index, tree.nodes), path)
                row.drafter.commit(path)
                self.stats.drafted += tree.nodes - 1
                self.stats.accepted += len(path.nodes) - 1
        ended = self.clock()
        own = (ended - began) - (forwarded - ready) - entering
        for row, tree, seconds in zip(rows, trees, drafting, strict=True):
            row.planner.spent(own / len(rows), seconds, tree.nodes > 1)
        self._count(route, stacked.nodes, sum(drafting), ready - began, forwarded - ready, ended - forwarded)

    def _own_step(self, rows: list[Row]) -> None:
        """Beyond the limit: one token of every row, as `generate` computes it."""
        began = self.clock()
        if not self._own:
            length, texts = int(self.runtime.limit or 0), [row.text for row in rows]
            self.runtime.hand_over(padded(texts, length), [text.padding for text in texts])
            self._own = True
        ready = self.clock()
        logits = self.runtime.own_step(np.array([row.text.ids[-1] for row in rows]))
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        forwarded = self.clock()
        for index, row in enumerate(rows):
            if not row.done:
                scores = self._scores(row, logits[index])
                self._commit_token(row, row.sampling.pick(scores), scores)
        self._count(OWN, 1, 0.0, ready - began, forwarded - ready, self.clock() - forwarded)

    def _resting(self, row: Row) -> int:
        """Steps to come, of at most `RUN`, in which the only row's drafter is not asked."""
        run = RUN if self.runtime.limit is None else min(RUN, self.runtime.limit + 1 - row.text.padded_length)
        if not row.drafter.drafts or self._deepest(row) < 1:
            return run
        return row.planner.resting(run)

    def _plain(self, row: Row, steps: int) -> None:
        """Steps of the only row in which nothing is drafted: no tree, no observation, one token each.

        Small forwards empty the processor's caches of this code, so what can wait is done once for all of them.
        """
        began, length = self.clock(), int(self.runtime.lengths[0])
        route, entering = self._route()
        if route != self.knowledge.routes.current:
            steps = 1  # a try
        spent = self.clock() - began
        forwards: list[float] = []
        while len(forwards) < steps and not row.done:
            ready = self.clock()
            logits = self.runtime.step(int(row.text.ids[-1]))
            if logits.is_cuda:
                torch.cuda.synchronize(logits.device)
            forwards.append(self.clock() - ready)
            scores = self._scores(row, logits)
            token = row.sampling.pick(scores)
            self._commit_token(row, token, scores)
            row.planner.follow(token)
        self.knowledge.routes.passed(len(forwards) - 1)
        for seconds in forwards:
            self.knowledge.routes.observe(route, 1, length, seconds)
        verifying = self.clock() - began - spent - sum(forwards)
        row.planner.rested((spent + verifying - entering) / len(forwards), len(forwards))
        self._count(route, 1, 0.0, spent, sum(forwards), verifying, len(forwards))

    def _route(self) -> tuple[str, float]:
        """The route this step's forward runs, and seconds that entering it took."""
        route = self.knowledge.routes.next()
        return route, self._use(route)

    def _use(self, route: str) -> float:
        before = self.clock()
        ready = self.runtime.use(route)
        spent = self.clock() - before
        self.knowledge.routes.entered(route, spent if ready is None else ready)
        return spent

    def _count(
        self, route: str, nodes: int, drafting: float, before: float, forward: float, after: float, steps: int = 1
    ) -> None:
        self.stats.forwards += steps
        self.stats.rows[nodes] += steps
        self.stats.routes[route] += steps
        seconds = self.stats.seconds
        seconds["draft"] += drafting
        seconds["other"] += before - drafting
        seconds["forward"] += forward
        seconds["verify"] += after

    def _draft(self, row: Row) -> DraftTree:
        text, planner = row.text, row.planner
        deepest = self._deepest(row)
        if deepest < 1:
            return root(row)
        plans = row.drafter.plans
        budget = self.budget
        if plans:
            budget = planner.choose_plan(plans, text.length, budget, deepest)
            if budget == 0:
                return root(row)
        elif not planner.should_look():
            return root(row)
        tree = row.drafter.propose(text.ids, budget)
        if tree.draft is not None:
            return tree
        tree = shallower(tree, deepest)
        planner.propose(tree)
        return tree if plans else planner.prune(tree, text.length)

    def _deepest(self, row: Row) -> int:
        """Levels that a draft may have: a node deeper than the text may still grow can't be committed, one beyond the
        positions can't be encoded, one beyond the runtime's reach would not be what plain decoding says."""
        if self.budget < 1:
            return 0
        deepest = self.stopping.max_length - row.text.padded_length - 1
        if self.runtime.max_positions is not None:
            deepest = min(deepest, self.runtime.max_positions - row.text.length)
        if self.runtime.limit is not None:
            deepest = min(deepest, self.runtime.limit - row.text.padded_length)
        if self.runtime.max_columns is not None and self._columns(row) > self.runtime.max_columns:
            return 0
        reach = self.runtime.reach(row.text.length - 1)
        return deepest if reach is None else min(deepest, reach)

    def _columns(self, row: Row) -> int:
        """Of the cache and the largest tree together."""
        return max(row.text.length - 1, int(self.runtime.lengths.max())) + self.budget + 1

    def _walk(self, row: Row, tree: DraftTree, output: Output) -> Path:
        """The acceptance rule: from the root down as far as the target agrees."""
        path, children = Path(), tree.children() if tree.draft is None else None
        node = 0
        while True:
            scores = self._scores(row, output.logits[node])
            child: int | None
            if children is None:
                token, child = row.drafter.accept(tree, node, scores, self.sampling)
            else:
                token = self.sampling.pick(scores)
                child = children[node].get(token)
            path.tokens.append(token)
            self._commit_token(row, token, scores)
            if child is None or row.done:
                return path
            path.nodes.append(child)
            node = child

    def _scores(self, row: Row, logits: Tensor) -> Tensor:
        if self.sampling.plain and self.scores is None:
            return logits
        return row.sampling.scores(logits, row.text.tensor)

    def _commit_token(self, row: Row, token: int, scores: Tensor) -> None:
        row.text.append(token)
        self.stats.tokens += 1
        if self.scores is not None:
            self.scores.append(scores)
        if self.streamer is not None:
            self.streamer.put(torch.tensor([token]))
        row.done = self.stopping(row.text, scores)


def check(runtime: Runtime, strategy: Strategy, batch: int) -> None:
    """What can't be decoded so is refused before the first token.

    Raises:
        MethodError: the strategy needs what the runtime lacks, has no batch, or may draft nothing.
        ModelError: the strategy drafts, and the target decodes plainly only.
    """
    missing = sorted(n for n in strategy.needs if ("layers" if n.startswith("layer:") else n) not in runtime.provides)
    name = type(strategy).__name__
    if missing:
        raise MethodError(
            f"{name} needs {', '.join(missing)} of the target, which {type(runtime).__name__} does not give. "
            "Use TransformersRuntime, or a strategy that needs logits only, such as TokenRecycling."
        )
    if runtime.limit == 0 and strategy.drafts:
        raise ModelError(
            f"{runtime.limited_by}: {name} cannot draft for it. Use Plain(), or the model's own `generate`."
        )
    if batch > 1 and not strategy.batched:
        raise MethodError(f"{name} decodes one text at a time, but the batch has {batch}. Call it row by row.")
    if strategy.budget < 1:
        raise MethodError(
            f"{setting('budget')} is {strategy.budget}: a draft needs at least 1 node. Use plain generate, or leave budget out."
        )
