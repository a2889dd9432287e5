"""ADED: a tree search over a trigram table drafts, and the text just written is folded back into the table.

The last two tokens are the root of a Monte-Carlo tree search whose most visited nodes become the draft, each lengthened
by its likeliest successor; the target verifies them in one forward.  (Liu et al., AAAI 2025, arXiv 2407.12021)

    next child = argmax  W/n + (c1 + ln((N + c2 + 1) / c2)) * p * sqrt(N) / (1 + n),     p = table[parent pair][token]

The authors' reward looks up the word two successive pairs share, so it is 1 whatever is drafted; here it is the weight
of the word drafted (`reward="official"` keeps theirs). Their sampling draws anew for every draft and is not lossless;
the engine's one draw per committed token is.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..errors import MethodError, unknown
from .base import Drafter, Strategy
from .engine.tree import DraftTree, Ints
from .trigrams import Successors, TrigramTable

if TYPE_CHECKING:
    from torch import Tensor

    from .engine.runtime import Output, Runtime
    from .engine.sampling import Sampling
    from .engine.tree import Path

WINDOW = 16  # latest tokens whose trigrams are folded in before every draft
SHARES = 8  # classes a draft token's share of its pair's weight falls into, for acceptance statistics
CACHED = 4096  # drafts kept ready
LEAST = 8  # nodes always searched for

Update = Literal["window", "new_only", "none"]
Reward = Literal["weights", "official"]
Cut = Literal["longest", "low_visits"]


@dataclass(frozen=True)
class ADED(Strategy):
    """Drafts from a trigram table by tree search, and learns while writing (arXiv 2407.12021).

    Args:
        table: shared between calls, fitted on a corpus or not; empty and fresh in every call if None.
        depth: pairs a draft of the search may hold, the root's included, at least 2; the tail adds a token to depth - 1.
        iterations: of the search, at least 1; its share of them where only a share of the budget pays.
        n_drafts: most visited nodes whose branches are kept, the root's included, at least 2.
        c1, c2: weights of the exploration term, c1 >= 0, c2 > 0.
        seed: of the rollouts; a draft is a function of seed, table and the last two tokens.
        update: "window" adds all trigrams of the last 16 tokens before every draft, as published; "new_only" each
            trigram once; "none" leaves the table as it is.
        reward: "weights" of what was drafted, or "official": 1, unless a token repeats itself.
        cut: while the drafts hold more tokens than the budget drop the "longest", as published, or "low_visits" first.
        budget: see `Strategy`; 64 as published.
        tokenizer: the target's; if given, a table of another one is refused.

    Raises:
        MethodError: a value out of the ranges above, or a table of another vocabulary.
        DataError: a table of another tokenizer.
    """

    table: TrigramTable | None = None
    depth: int = 4
    iterations: int = 150
    n_drafts: int = 24
    c1: float = 32.0
    c2: float = 8.0
    seed: int = 0
    update: Update = "window"
    reward: Reward = "weights"
    cut: Cut = "longest"
    tokenizer: Any = None
    budget: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        for name, least in (("depth", 2), ("iterations", 1), ("n_drafts", 2), ("budget", 1)):
            if getattr(self, name) < least:
                raise MethodError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not (self.c1 >= 0 and self.c2 > 0):
            raise MethodError(f"c1 must be at least 0 and c2 above 0, not {self.c1} and {self.c2}")
        for name, choices in (("update", Update), ("reward", Reward), ("cut", Cut)):
            if getattr(self, name) not in get_args(choices):
                raise MethodError(unknown(name, getattr(self, name), get_args(choices)))
        if self.table is not None:
            self.table.check(self.tokenizer)

    def drafter(self, runtime: Runtime, sampling: Sampling) -> ADEDDrafter:
        """Raises MethodError where the table has another vocabulary than the target."""
        table = TrigramTable(runtime.vocab) if self.table is None else self.table
        if table.vocab != runtime.vocab:
            raise MethodError(
                f"the trigram table has a vocabulary of {table.vocab}, but the model's logits are {runtime.vocab} wide: "
                "it belongs to another model. Fit one on this model's tokens."
            )
        return ADEDDrafter(self, table)


class ADEDDrafter(Drafter):
    """Searches once per pair of last tokens, and again only after a weight that the search read has changed.

    With a cost model the search shrinks and grows with what is left of its drafts. A node's kind is depth * SHARES + the
    class of its share of the weight of the pair before it.
    """

    rests = True

    def __init__(self, settings: ADED, table: TrigramTable) -> None:
        self.settings, self.table = settings, table
        self.searches = 0  # run so far; the other drafts came from the cache
        self.limit = settings.budget  # nodes worth searching for
        self._proposed = 0
        self._folded = 0
        self._ready: dict[tuple[int, int], tuple[DraftTree, dict[int, Successors]]] = {}

    def reset(self, prompt: Ints, prefill: Tensor | None) -> None:
        self._folded = 0

    def propose(self, committed: Ints, budget: int) -> DraftTree:
        if self.settings.update != "none":
            self._fold(committed)
        self._proposed = 0
        if len(committed) < 2:
            return DraftTree.chain(int(committed[-1]), [])
        tree = self._draft(int(committed[-2]), int(committed[-1]), min(budget, self.limit))
        self._proposed = tree.nodes - 1
        return tree

    def observe(self, tree: DraftTree, output: Output, path: Path) -> None:
        ran = tree.nodes - 1
        if not self.settings.cost_model or not self._proposed:
            return
        if ran == self._proposed:
            self.limit = min(2 * self.limit, self.settings.budget)
        elif 4 * ran <= self.limit:
            self.limit = max(self.limit // 2, min(LEAST, self.settings.budget))

    def prior(self, kind: int) -> float:
        return 0.75 * (kind % SHARES + 0.5) / SHARES

    def _fold(self, committed: Ints) -> None:
        """Adds the latest trigrams to the table."""
        start = max(0, len(committed) - WINDOW)
        if self.settings.update == "new_only":
            start = max(start, self._folded - 2)
        self._folded = len(committed)
        self.table.add(committed[start:].tolist())

    def _draft(self, first: int, second: int, budget: int) -> DraftTree:
        key = (self.table.key(first, second), budget)
        ready = self._ready.pop(key, None)
        if ready is None or any(self.table.successors(pair) is not old for pair, old in ready[1].items()):
            ready = self._searched(first, second, budget)
        if len(self._ready) >= CACHED:
            del self._ready[next(iter(self._ready))]
        self._ready[key] = ready  # the newest lies last
        return ready[0]

    def _searched(self, first: int, second: int, budget: int) -> tuple[DraftTree, dict[int, Successors]]:
        own = self.settings
        self.searches += 1
        random = Random(own.seed << 64 | self.table.key(first, second)).random
        search = Search(self.table, (first, second), own.depth, own.c1, own.c2, own.reward, random)
        search.run(math.ceil(own.iterations * budget / own.budget))
        branches = trie(cut(search.drafts(own.n_drafts), own.budget, own.cut), own.budget)
        place = {(): 0} | {branch: node for node, branch in enumerate(branches, 1)}
        parents, kinds, chances = [-1], [0], [1.0]
        for branch in branches:
            before = (first, second, *branch)[-3:-1]
            share = search.successors(self.table.key(*before)).share(branch[-1])
            parents.append(place[branch[:-1]])
            kinds.append(len(branch) * SHARES + min(int(share * SHARES), SHARES - 1))
            chances.append(chances[parents[-1]] * share)
        tree = DraftTree.of([second, *(branch[-1] for branch in branches)], parents, kinds)
        if len(branches) > budget:
            # Parents are never less likely than their children, and come first where they are equally likely.
            tree = tree.keep(np.sort(np.argsort(-np.array(chances), kind="stable")[: budget + 1]))
        return tree, search.read


class Search:
    """Monte-Carlo tree search over pairs of tokens.

    Args:
        table: its weights, as they are, are the prior.
        root: the last two tokens.
        depth: pairs a branch may hold, the root's included.
        c1, c2: see `exploration`; an infinite c2 makes the logarithm 0.
        reward: "weights" or "official", see `ADED`.
        uniform: gives the rollouts' numbers in [0, 1).

    Attributes:
        words: [nodes] the token of every node; its pair is (its parent's token, its own).
        parents, visits, scores, priors: [nodes] parent (-1 for the root), n, W and p of every node.
        read: successors of every pair that was looked at, by key.
    """

    def __init__(
        self,
        table: TrigramTable,
        root: tuple[int, int],
        depth: int,
        c1: float,
        c2: float,
        reward: Reward,
        uniform: Callable[[], float],
    ) -> None:
        self.table, self.depth, self.c1, self.c2, self.uniform = table, depth, c1, c2, uniform
        self.official = reward == "official"
        self.before = [root[0]]
        self.words, self.parents, self.visits = [root[1]], [-1], [0]
        self.scores, self.priors, self.gains = [0.0], [0.0], [0.0]
        self.means, self.bonuses = [0.0], [0.0]  # W / n and p / (1 + n)
        self.first, self.count, self.tried = [0], [0], [0]  # children lie side by side
        self.read: dict[int, Successors] = {}

    def successors(self, key: int) -> Successors:
        """Of a pair, noting that it was looked at."""
        successors = self.read.get(key)
        if successors is None:
            successors = self.read[key] = self.table.successors(key)
        return successors

    def run(self, iterations: int) -> None:
        """Selects, expands, rolls out and backs up, so many times."""
        parents, visits, scores, gains, words = self.parents, self.visits, self.scores, self.gains, self.words
        priors, means, bonuses, count = self.priors, self.means, self.bonuses, self.count
        weights = _explorations(iterations + visits[0] + 1, self.c1, self.c2)
        for _ in range(iterations):
            node, states, reward = 0, 1, 1.0
            while states < self.depth and count[node]:
                node = self._select(node, weights[visits[node]]) if count[node] > 1 else self.first[node]
                reward += gains[node]
                states += 1
            if states < self.depth and self._expand(node):
                node = self.first[node] + count[node] - 1
                reward += gains[node]
                states += 1
            if states < self.depth:
                reward += self._rollout(self.before[node], words[node], self.depth - states)
            while node >= 0:
                visits[node] += 1
                scores[node] += reward
                means[node] = scores[node] / visits[node]
                bonuses[node] = priors[node] / (1 + visits[node])
                node = parents[node]

    def _select(self, node: int, weight: float) -> int:
        """The child of the highest value; one never visited has an infinite one."""
        start = self.first[node]
        end = start + self.count[node]
        fresh = start + self.tried[node]
        if fresh < end - 1:  # the last one was visited when it was made
            self.tried[node] += 1
            return fresh
        pairs = zip(self.means[start:end], self.bonuses[start:end], strict=True)
        values = [mean + weight * bonus for mean, bonus in pairs]
        return start + values.index(max(values))

    def _expand(self, node: int) -> int:
        """Makes all children of a node; returns how many."""
        word = self.words[node]
        successors = self.successors(self.before[node] * self.table.vocab + word)
        many = len(successors.tokens)
        if many:
            self.first[node], self.count[node] = len(self.words), many
            weights = list(successors.weights.values())
            self.words += successors.tokens
            self.priors += weights
            # The official reward looks up the word that both pairs share, the node's own.
            self.gains += [successors.weights.get(word, 0.0)] * many if self.official else weights
            self.before += [word] * many
            self.parents += [node] * many
            self.scores += [0.0] * many
            self.means += [0.0] * many
            self.bonuses += weights
            for zeros in (self.visits, self.first, self.count, self.tried):
                zeros += [0] * many
        return many

    def _rollout(self, before: int, word: int, steps: int) -> float:
        """The rewards of successors drawn by weight, until a pair is unknown."""
        reward = 0.0
        for _ in range(steps):
            successors = self.successors(before * self.table.vocab + word)
            if not successors.tokens:
                break
            chosen = successors.tokens[
                min(bisect_left(successors.cumulative, self.uniform()), len(successors.tokens) - 1)
            ]
            reward += successors.weights.get(word, 0.0) if self.official else successors.weights[chosen]
            before, word = word, chosen
        return reward

    def drafts(self, count: int) -> list[tuple[int, ...]]:
        """Paths to the most visited nodes, most visited first, each with its likeliest next token, none twice.

        Args:
            count: nodes taken, the root among them, which gives no draft.
        """
        visited = [node for node, n in enumerate(self.visits) if n]
        pool = visited if len(visited) >= count else list(range(len(self.words)))
        ranked = sorted(pool, key=lambda node: (-self.visits[node], self._branches(node)))[:count]
        drafts: dict[tuple[int, ...], None] = {}
        for node in ranked:
            branch: list[int] = []
            last = self.successors(self.before[node] * self.table.vocab + self.words[node]).tokens[:1]
            at = node
            while at > 0:
                branch.append(self.words[at])
                at = self.parents[at]
            if branch:
                drafts[(*reversed(branch), *last)] = None
        return list(drafts)

    def _branches(self, node: int) -> list[int]:
        """Which child was taken at every level down to a node: nodes sort by it as a walk of the tree meets them."""
        branches: list[int] = []
        while node > 0:
            parent = self.parents[node]
            branches.append(node - self.first[parent])
            node = parent
        return branches[::-1]


def exploration(parent_visits: int, c1: float, c2: float) -> float:
    """What a child's p / (1 + n) is multiplied with: (c1 + ln((N + c2 + 1) / c2)) * sqrt(N)."""
    return (c1 + math.log1p((parent_visits + 1) / c2)) * math.sqrt(parent_visits)


@lru_cache(maxsize=64)
def _explorations(count: int, c1: float, c2: float) -> tuple[float, ...]:
    return tuple(exploration(visits, c1, c2) for visits in range(count))


def cut(drafts: list[tuple[int, ...]], budget: int, order: Cut) -> list[tuple[int, ...]]:
    """Drops drafts until the sum of their numbers of distinct tokens is at most the budget.

    Args:
        drafts: most visited first; of equally long ones the least visited goes first.
    """
    sizes = [len(set(draft)) for draft in drafts]
    places = range(len(drafts))
    going = sorted(places, key=lambda at: (-sizes[at] if order == "longest" else 0, -at))
    total, dropped = sum(sizes), set()
    for at in going:
        if total <= budget:
            break
        total -= sizes[at]
        dropped.add(at)
    return [draft for at, draft in enumerate(drafts) if at not in dropped]


def trie(drafts: list[tuple[int, ...]], budget: int) -> list[tuple[int, ...]]:
    """All prefixes of the drafts, at most `budget`, by depth and then by branches, which count in order of appearance."""
    branch: dict[tuple[int, int], int] = {}  # (depth, token) -> how many other tokens were met at that depth before
    counts: dict[int, int] = {}
    branches: dict[tuple[int, ...], tuple[int, ...]] = {}
    for draft in drafts:
        marks: tuple[int, ...] = ()
        for depth, token in enumerate(draft):
            if (depth, token) not in branch:
                branch[depth, token] = counts[depth] = counts.get(depth, -1) + 1
            marks = (*marks, branch[depth, token])
            branches[marks] = draft[: depth + 1]
    return [branches[marks] for marks in sorted(branches, key=lambda marks: (len(marks), marks))[:budget]]
