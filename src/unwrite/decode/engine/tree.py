"""A draft: a tree of proposed tokens as flat arrays, rooted at the last committed token.

Node 0 is the root; a parent comes before its children; a chain is parents 0, 1, 2, ... Structure lives in numpy,
because it is tiny and every step makes one: sixty nodes cost microseconds there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
ROOT = -1  # the parent of a root, and of padding


@dataclass(frozen=True)
class DraftTree:
    """Proposed tokens for every row of a batch.

    Args:
        tokens: [batch, nodes] token ids; column 0 is each row's last committed token.
        parents: [batch, nodes], the node each follows; -1 for the root and for padding; parents[b, i] < i.
        kinds: [batch, nodes] small integers that say what acceptance statistics a node belongs to; by default its
            depth. A drafter whose nodes differ in more than depth (rank, length of a match) gives its own.
        sizes: [batch] nodes that are not padding.
        draft: what a drafter keeps with nodes whose children were SAMPLED, such as draft probabilities
            [nodes, vocab]; None when the draft is a function of the past. Rows of such trees are never pruned.
    """

    tokens: Ints
    parents: Ints
    kinds: Ints
    sizes: Ints
    draft: Any = None

    @staticmethod
    def of(
        tokens: Sequence[int] | Ints,
        parents: Sequence[int] | Ints,
        kinds: Sequence[int] | Ints | None = None,
        draft: Any = None,
    ) -> DraftTree:
        """The tree of one row, from flat sequences. tokens, parents, kinds: [nodes]."""
        flat = np.asarray(parents, dtype=np.int64)
        marks = depths_of(flat) if kinds is None else np.asarray(kinds, dtype=np.int64)
        own = np.asarray(tokens, dtype=np.int64)
        return DraftTree(own[None], flat[None], marks[None], np.array([len(own)]), draft)

    @staticmethod
    def chain(root: int, tokens: Sequence[int] | Ints, kinds: Sequence[int] | Ints | None = None) -> DraftTree:
        """One continuation of the root."""
        count = len(tokens) + 1
        marks = None if kinds is None else [0, *kinds]
        return DraftTree.of([root, *tokens], np.arange(-1, count - 1), marks)

    @staticmethod
    def stack(trees: Sequence[DraftTree]) -> DraftTree:
        """Trees of one row each, side by side, padded to the largest."""
        if len(trees) == 1:
            return trees[0]
        width = max(tree.tokens.shape[1] for tree in trees)

        def padded(arrays: list[Ints], fill: int) -> Ints:
            return np.stack([np.pad(a[0], (0, width - a.shape[1]), constant_values=fill) for a in arrays])

        return DraftTree(
            padded([t.tokens for t in trees], 0),
            padded([t.parents for t in trees], ROOT),
            padded([t.kinds for t in trees], 0),
            np.concatenate([t.sizes for t in trees]),
            [t.draft for t in trees],
        )

    @property
    def nodes(self) -> int:
        """The width of the arrays, root and padding included."""
        return int(self.tokens.shape[1])

    @cached_property
    def depths(self) -> Ints:
        """[batch, nodes], 0 at the root."""
        return np.stack([depths_of(row) for row in self.parents])

    @cached_property
    def ancestors(self) -> NDArray[np.bool_]:
        """[batch, nodes, nodes]: True where the column is the row's node itself or above it."""
        return np.stack([ancestors_of(row) for row in self.parents])

    def row(self, index: int) -> DraftTree:
        """One row without its padding."""
        if len(self.tokens) == 1:
            return self
        size, draft = int(self.sizes[index]), self.draft
        cut = lambda array: array[index : index + 1, :size]  # noqa: E731
        return DraftTree(
            cut(self.tokens), cut(self.parents), cut(self.kinds), self.sizes[index : index + 1], draft and draft[index]
        )

    def children(self) -> list[dict[int, int]]:
        """Row 0 as {token: node} of every node's children; of equal siblings the first counts."""
        children: list[dict[int, int]] = [{} for _ in range(self.nodes)]
        for node, (token, parent) in enumerate(zip(self.tokens[0].tolist(), self.parents[0].tolist(), strict=True)):
            if parent != ROOT:
                children[parent].setdefault(token, node)
        return children

    def keep(self, nodes: Ints) -> DraftTree:
        """Row 0 cut to some of its nodes, ascending; they must hold the root and every kept node's parent."""
        place = np.full(self.nodes + 1, ROOT)
        place[nodes] = np.arange(len(nodes))
        return DraftTree.of(self.tokens[0, nodes], place[self.parents[0, nodes]], self.kinds[0, nodes], self.draft)

    def shallower(self, deepest: int) -> DraftTree:
        """Row 0 without nodes below a depth."""
        depths = self.depths[0]
        return self if depths.max() <= deepest else self.keep(np.flatnonzero(depths <= deepest))

    def without_twins(self) -> DraftTree:
        """Row 0 with equal siblings merged, their subtrees too: the same token twice below one node wastes a row."""
        places: dict[tuple[int, int], int] = {}
        place, nodes, parents = [0] * self.nodes, [0], [ROOT]
        tokens, above = self.tokens[0].tolist(), self.parents[0].tolist()
        for node in range(1, self.nodes):
            key = (place[above[node]], tokens[node])
            if key not in places:
                places[key] = len(nodes)
                nodes.append(node)
                parents.append(key[0])
            place[node] = places[key]
        if len(nodes) == self.nodes:
            return self
        return DraftTree.of(self.tokens[0, nodes], parents, self.kinds[0, nodes], self.draft)


def depths_of(parents: Ints) -> Ints:
    """[nodes] from [nodes]; padding counts as depth 0."""
    depths = [0] * len(parents)
    for node, parent in enumerate(parents.tolist()):
        if parent != ROOT:
            depths[node] = depths[parent] + 1
    return np.array(depths, dtype=np.int64)


def ancestors_of(parents: Ints) -> NDArray[np.bool_]:
    """[nodes, nodes] from [nodes]; every node sees itself."""
    ancestors = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents.tolist()):
        if parent != ROOT:
            ancestors[node] |= ancestors[parent]
    return ancestors


@dataclass
class Path:
    """What one row of a step committed.

    Args:
        nodes: accepted nodes, the root first; their keys stay in the cache.
        tokens: committed tokens: those of `nodes` after the root, then the target's own (absent where the text ended
            on an accepted node).
    """

    nodes: list[int] = field(default_factory=lambda: [0])
    tokens: list[int] = field(default_factory=list)
