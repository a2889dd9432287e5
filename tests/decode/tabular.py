"""A runtime without a network: the next token's logits are a function of the text, and a forward costs what the test says."""

from functools import cache

import numpy as np
import torch

from unwrite.decode.base import Drafter, Strategy
from unwrite.decode.engine.runtime import Output, Runtime
from unwrite.decode.engine.tree import DraftTree


class Clock:
    """Time that passes only when a forward runs."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Tabular(Runtime):
    """logits_of(tuple of ids) -> [vocab]; cost(rows, route) -> seconds."""

    def __init__(
        self, logits_of, vocab, cost=lambda rows, route: 1.0 + 0.05 * rows, clock=None, routes=("stock",), name="t"
    ):
        self.logits_of, self.vocab, self.cost, self.clock = logits_of, vocab, cost, clock or Clock()
        self.routes, self.route, self.name = routes, routes[0], name
        self.forwards = 0

    @property
    def fingerprint(self):
        return self.name

    @property
    def lengths(self):
        return np.array([len(text) for text in self.cached])

    def prefill(self, rows, room):
        self.cached = [row.tolist() for row in rows]
        self.forwards += 1
        return torch.stack([self.logits_of(tuple(text)) for text in self.cached])

    def forward(self, trees, want=frozenset({"logits"}), graft=None):
        self.clock.now += self.cost(trees.nodes, self.route)
        self.forwards += 1
        self.trees = trees
        logits = torch.zeros(*trees.tokens.shape, self.vocab)
        for b, text in enumerate(self.cached):
            for node in range(int(trees.sizes[b])):
                chain = [i for i in range(trees.nodes) if trees.ancestors[b, node, i]]
                logits[b, node] = self.logits_of((*text, *trees.tokens[b, chain].tolist()))
        return Output(logits)

    def commit(self, paths):
        for text, tokens, path in zip(self.cached, self.trees.tokens, paths, strict=True):
            text.extend(int(tokens[node]) for node in path)

    def nbytes(self):
        return 0

    def use(self, route):
        self.route = route


def hashed(vocab, sharpness=3.0, order=2):
    """Fixed random logits for every context of the last `order` ids."""

    @cache
    def after(last):
        return sharpness * torch.randn(vocab, generator=torch.Generator().manual_seed(hash(last) % (2**31)))

    return lambda ids: after(tuple(int(i) for i in ids[-order:]))


def greedy(logits_of, prompt, count):
    """The text plain decoding writes."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits_of(tuple(ids)).argmax()))
    return ids[len(prompt) :]


class Scripted(Strategy):
    """Drafts what a function of the committed ids says: fn(committed, budget) -> DraftTree."""

    def __init__(self, fn, prior=0.5, **options):
        super().__init__(**options)
        object.__setattr__(self, "fn", fn)
        object.__setattr__(self, "start", prior)

    @property
    def key(self):
        return f"Scripted {id(self)}"

    def drafter(self, runtime, sampling):
        strategy = self

        class Calls(Drafter):
            def propose(self, committed, budget):
                return strategy.fn(committed, budget)

            def prior(self, kind):
                return strategy.start

        return Calls()


def oracle(logits_of, depth):
    """Knows the greedy continuation."""
    return lambda committed, budget: DraftTree.chain(
        int(committed[-1]), greedy(logits_of, committed.tolist(), min(depth, budget))
    )


def junk(vocab, nodes=12, seed=0):
    """A random tree of random tokens."""
    generator = np.random.default_rng(seed)

    def draft(committed, budget):
        count = min(nodes, budget)
        parents = [-1, *(int(generator.integers(i)) for i in range(1, count + 1))]
        tokens = [int(committed[-1]), *generator.integers(vocab, size=count).tolist()]
        return DraftTree.of(tokens, parents)

    return draft
