"""The loop: propose, forward, walk, roll back, learn; until every row has ended.

The walk is the acceptance rule. At each node it asks the target for the next token (the arg max, or one draw, as plain
decoding would) and steps to the child that carries it; where no child does, the token is committed and the step ends. One
draw per committed token, whatever was drafted: greedy text is identical to `generate`'s, and so is sampled text at the
same seed. Drafters whose trees hold samples bring a rule of their own (`Drafter.accept`), equal in distribution.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...errors import MethodError, ModelError, setting
from .planning.costs import Acceptance, DraftCosts
from .planning.knowledge import Knowledge, knowledge_of
from .planning.planner import PlannedDraft, Planner, RowOutcome
from .recorder import Clock, PhaseRecorder
from .rows import DecodingRow, Text, padded
from .runtime import LOGITS, Output, Runtime
from .sampling import Sampling
from .stats import Stats, remember
from .stopping import Stopping
from .tree import DraftTree, Ints, Path

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

    from ..base import Drafter, Strategy

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
        streamer: BaseStreamer | None = None,
        keep_scores: bool = False,
        clock: Clock = time.perf_counter,
        device: torch.device | str = "cpu",
    ) -> None:
        self.runtime, self.strategy, self.sampling, self.stopping = runtime, strategy, sampling, stopping
        self.streamer, self.device = streamer, device
        self.scores: list[Tensor] | None = [] if keep_scores else None
        self.stats = Stats()
        self.recorder = PhaseRecorder(clock, self.stats)
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
        self.recorder.begin()
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
        self.recorder.lap("prefill")
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
            self._enter(routes.begin(new, int(self.runtime.lengths.max()), sunk=self.runtime.entered), "prefill")
        return logits

    def _beyond(self, length: int) -> bool:
        """Whether a text so long, padding included, can only go on in the model's own steps."""
        return self.runtime.limit is not None and length > self.runtime.limit

    def _waits(self, row: DecodingRow) -> bool:
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

    def _row(self, index: int, text: Text, drafter: Drafter) -> DecodingRow:
        known = self.knowledge.acceptance.setdefault(self.strategy.key, Acceptance())
        spent = self.knowledge.drafting.setdefault(self.strategy.key, DraftCosts())
        planner = Planner(
            self.knowledge.routes, drafter.prior, known, self.strategy.cost_model, spent, self.stats.batch, self.budget
        )
        sampling = self.sampling.of_row(index) if self.stats.batch > 1 else self.sampling
        return DecodingRow(text, drafter, planner, sampling)

    def _first(self, row: DecodingRow, logits: Tensor) -> None:
        scores = self._scores(row, logits)
        self._commit_token(row, self.sampling.pick(scores), scores)

    def _step(self, rows: list[DecodingRow]) -> None:
        """Draft, forward, verify, keep, learn."""
        if self.runtime.limit is not None and all(map(self._waits, rows)):
            self._own_step(rows)
            return
        self.recorder.begin()
        drafts, drafting = [], []
        for row in rows:
            drafts.append(self._draft(row))
            drafting.append(self.recorder.lap("draft"))
        if drafts[0].rest:
            self._plain(rows[0], drafts[0].rest)
            return
        route, length = self._route(), int(self.runtime.lengths.max())
        trees = [draft.tree for draft in drafts]
        output, committed = self._forward(DraftTree.stack(trees), route, length)
        paths = [
            self._verify(row, tree, output.row(index, tree.nodes)) if not self._waits(row) else Path(nodes=[])
            for index, (row, tree) in enumerate(zip(rows, trees, strict=True))
        ]
        if not committed:
            self.runtime.commit([path.nodes for path in paths])
        for index, (row, tree, path) in enumerate(zip(rows, trees, paths, strict=True)):
            if path.nodes:
                row.drafter.observe(tree, output.row(index, tree.nodes), path)
                row.drafter.commit(path)
                self.stats.drafted += tree.nodes - 1
                self.stats.accepted += len(path.nodes) - 1
        for row, tree, path, seconds in zip(rows, trees, paths, drafting, strict=True):
            row.planner.learn(RowOutcome(tree, path, 1, lambda: self.recorder.own() / len(rows), seconds))
        self.recorder.lap("verify")

    def _draft(self, row: DecodingRow) -> PlannedDraft:
        if self._waits(row):
            return PlannedDraft(row.root())
        row.deepest = self._deepest(row)
        limit = self.runtime.limit
        row.run = RUN if limit is None else min(RUN, limit + 1 - row.text.padded_length)
        return row.planner.draft(row)

    def _forward(self, trees: DraftTree, route: str, length: int) -> tuple[Output, bool]:
        """What the target says of every node, and whether the lone node of the only row is kept already."""
        single = trees.tokens.size == 1 and self.strategy.needs <= LOGITS
        self.recorder.lap("other")
        if single:
            output = Output(self.runtime.step(int(trees.tokens[0, 0]))[None, None])
        else:
            output = self.runtime.forward(trees, self.strategy.needs)
        seconds = self._waited(output.logits)
        self.knowledge.routes.observe(route, trees.tokens.size, length, seconds)
        self.recorder.count(route, trees.nodes)
        return output, single

    def _waited(self, logits: Tensor) -> float:
        """Seconds of the forward that gave these logits, until they are there."""
        if logits.is_cuda:  # the walk waits for it anyway; here it counts as the forward's
            torch.cuda.synchronize(logits.device)
        return self.recorder.lap("forward")

    def _own_step(self, rows: list[DecodingRow]) -> None:
        """Beyond the limit: one token of every row, as `generate` computes it."""
        self.recorder.begin()
        if not self._own:
            length, texts = int(self.runtime.limit or 0), [row.text for row in rows]
            self.runtime.hand_over(padded(texts, length), [text.padding for text in texts])
            self._own = True
        self.recorder.lap("other")
        logits = self.runtime.own_step(np.array([row.text.ids[-1] for row in rows]))
        self._waited(logits)
        for index, row in enumerate(rows):
            if not row.done:
                scores = self._scores(row, logits[index])
                self._commit_token(row, row.sampling.pick(scores), scores)
        self.recorder.count(OWN, 1)
        self.recorder.lap("verify")

    def _plain(self, row: DecodingRow, steps: int) -> None:
        """Steps of the only row in which nothing is drafted: no tree, no observation, one token each.

        Small forwards empty the processor's caches of this code, so what can wait is done once for all of them.
        """
        length, route = int(self.runtime.lengths[0]), self._route()
        if route != self.knowledge.routes.current:
            steps = 1  # a try
        self.recorder.lap("other")
        path = Path()
        forwards: list[float] = []
        while len(forwards) < steps and not row.done:
            logits = self.runtime.step(int(row.text.ids[-1]))
            forwards.append(self._waited(logits))
            scores = self._scores(row, logits)
            token = row.sampling.pick(scores)
            self._commit_token(row, token, scores)
            path.tokens.append(token)
            self.recorder.lap("verify")
        self.knowledge.routes.passed(len(forwards) - 1)
        for seconds in forwards:
            self.knowledge.routes.observe(route, 1, length, seconds)
        row.planner.learn(RowOutcome(None, path, len(forwards), self.recorder.own))
        self.recorder.count(route, 1, len(forwards))
        self.recorder.lap("verify")

    def _route(self) -> str:
        """The route of this step's forward, entered."""
        route = self.knowledge.routes.next()
        self._enter(route, "other")
        return route

    def _enter(self, route: str, phase: str) -> None:
        """Makes the runtime ready for a route; what that takes is the phase's."""
        self.recorder.lap(phase)
        ready = self.runtime.use(route)
        spent = self.recorder.lap(phase)
        self.recorder.entering += spent
        self.knowledge.routes.entered(route, spent if ready is None else ready)

    def _deepest(self, row: DecodingRow) -> int:
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

    def _columns(self, row: DecodingRow) -> int:
        """Of the cache and the largest tree together."""
        return max(row.text.length - 1, int(self.runtime.lengths.max())) + self.budget + 1

    def _verify(self, row: DecodingRow, tree: DraftTree, output: Output) -> Path:
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

    def _scores(self, row: DecodingRow, logits: Tensor) -> Tensor:
        if self.sampling.plain and self.scores is None:
            return logits
        return row.sampling.scores(logits, row.text.tensor)

    def _commit_token(self, row: DecodingRow, token: int, scores: Tensor) -> None:
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
