"""Token Recycling: what the target last thought could follow a token is the draft the next time the token comes up.

A table keeps, for every token of the vocabulary, the k likeliest successors that the target last computed after it, on
rejected drafts too. Unrolled from the last token along a fixed tree, it is verified in one forward, whose own top-k
rows refresh it. No training, under 2 MB of state.  (Luo et al., ACL 2025, arXiv 2408.08696)

    draft[node] = table[draft[parent(node)], rank(node)],     table[draft[node]] <- top-k of logits[node]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, MethodError, setting, unknown
from ..runs import hash_json, read_tensors
from .base import Drafter, Strategy
from .engine.tree import ROOT, DraftTree, Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .engine.runtime import Output, Runtime
    from .engine.sampling import Sampling
    from .engine.tree import Path

BLOCK = 256  # logits whose maximum `top_k` looks at first

# Children of every node that has any, named by the ranks that lead to it.
TEMPLATES: dict[str, dict[str, int]] = {
    "2.2.2": {
        "": 8,
        **{"0": 8, "1": 4, "2": 3, "3": 2, "4": 1, "5": 1, "6": 1, "7": 1},
        **{"00": 8, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1},
        **{"10": 2, "11": 1, "20": 1, "30": 1, "40": 1, "50": 1},
        **{"000": 5, "001": 2, "002": 1, "003": 1, "004": 1, "010": 1, "020": 1, "100": 1, "200": 1, "300": 1},
        **{"0000": 3, "0001": 1, "0002": 1, "0010": 1, "0100": 1, "1000": 1},
        **{"00000": 2, "00010": 1},
    }
}
# How often the successor of each rank is the next token, before anything was measured.
_FORMAT = "unwrite recycling table"
RANK_PRIOR = (0.45, 0.12, 0.06, 0.04, 0.03, 0.02, 0.016, 0.013)


@dataclass(frozen=True)
class TreeTemplate:
    """A fixed shape of tree: one branch of candidate ranks per node, in level order.

    Args:
        branches: the rank chosen at every level from the root down; closed under prefixes, none twice.
        name: of a published template, empty for one's own.
    """

    branches: tuple[tuple[int, ...], ...] = field(repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        known = set(self.branches)
        if not known or len(known) != len(self.branches):
            raise MethodError("a tree template needs at least one branch, and none twice")
        for branch in self.branches:
            if not branch or min(branch) < 0:
                raise MethodError(f"template branch {list(branch)} must name at least one rank, from 0 up")
            if len(branch) > 1 and branch[:-1] not in known:
                raise MethodError(f"template branch {list(branch)} has no parent: add {list(branch[:-1])}")
        object.__setattr__(self, "branches", tuple(sorted(self.branches, key=lambda branch: (len(branch), branch))))

    @staticmethod
    def of(shape: str | Sequence[Sequence[int]]) -> TreeTemplate:
        """A published template by name ("2.2.2", 80 nodes), or one's own from its branches.

        Raises:
            MethodError: an unknown name, a branch without its parent, a branch twice, a negative rank.
        """
        if not isinstance(shape, str):
            return TreeTemplate(tuple(tuple(int(rank) for rank in branch) for branch in shape))
        if shape not in TEMPLATES:
            raise MethodError(unknown("template", shape, TEMPLATES))
        branches = ((*map(int, above), rank) for above, count in TEMPLATES[shape].items() for rank in range(count))
        return TreeTemplate(tuple(branches), shape)

    def best(self, nodes: int) -> TreeTemplate:
        """The smaller template of the `nodes` likeliest nodes by rank alone."""
        return TreeTemplate(tuple(self.branches[node - 1] for node in self.order[1 : nodes + 1].tolist()))

    @cached_property
    def fathers(self) -> Ints:
        """[nodes + 1] index of each node's parent; -1 for the root, which is node 0."""
        place = {(): 0} | {branch: i + 1 for i, branch in enumerate(self.branches)}
        return np.array([ROOT] + [place[branch[:-1]] for branch in self.branches])

    @cached_property
    def ranks(self) -> Ints:
        """[nodes + 1] which successor of its parent each node is; 0 for the root."""
        return np.array([0] + [branch[-1] for branch in self.branches])

    @cached_property
    def depths(self) -> Ints:
        """[nodes + 1], 0 at the root."""
        return np.array([0] + [len(branch) for branch in self.branches])

    @cached_property
    def levels(self) -> list[slice]:
        """The nodes of every level, from depth 1 down."""
        ends = np.searchsorted(self.depths, np.arange(1, self.depths[-1] + 2)).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]

    @cached_property
    def order(self) -> Ints:
        """[nodes + 1] node indices, likeliest first; a parent always comes before its children."""
        prior = np.array(RANK_PRIOR)
        chance = [1.0] + [float(np.prod(prior[np.minimum(branch, len(prior) - 1)])) for branch in self.branches]
        return np.lexsort((np.arange(len(chance)), self.depths, -np.array(chance)))


PUBLISHED = TreeTemplate.of("2.2.2")


class RecyclingTable:
    """The k likeliest successors of every token, as the target last saw them.

    Args:
        vocab: width of the target's logits, which may exceed the tokenizer's length.
        k: successors kept per token.
        tokenizer: the tokenizer the ids belong to; only its fingerprint is kept.

    Attributes:
        successors: [vocab, k] int32 ids, likeliest first; 0 where nothing was seen.
        seen: [vocab] whether the row was ever written.

    Raises:
        MethodError: k below 1 or above the vocabulary.
    """

    def __init__(self, vocab: int, k: int = 8, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        if not 1 <= k <= vocab:
            raise MethodError(f"k must lie between 1 and the vocabulary size {vocab}, not {k}")
        self.successors: NDArray[np.int32] = np.zeros((vocab, k), dtype=np.int32)
        self.seen: NDArray[np.bool_] = np.zeros(vocab, dtype=bool)
        self.tokenizer = fingerprint(tokenizer)

    @property
    def vocab(self) -> int:
        """Width of the logits it was made for."""
        return len(self.successors)

    @property
    def k(self) -> int:
        """Successors kept per token."""
        return int(self.successors.shape[1])

    def nbytes(self) -> int:
        """Bytes of the table itself."""
        return self.successors.nbytes + self.seen.nbytes

    @staticmethod
    def of(rows: Any, seen: Any = None, tokenizer: PreTrainedTokenizerBase | None = None) -> RecyclingTable:
        """A table with given rows. rows: [vocab, k] ids; seen: [vocab], all of them if None.

        Raises:
            DataError: not integers, not two-dimensional, or ids outside the vocabulary.
        """
        own = np.asarray(rows)
        if own.ndim != 2 or not np.issubdtype(own.dtype, np.integer):
            raise DataError(f"a recycling table is [vocab, k] integers, not {own.dtype} of shape {list(own.shape)}")
        if own.size and (own.min() < 0 or own.max() >= len(own)):
            wrong = int(own.min() if own.min() < 0 else own.max())
            raise DataError(f"a recycling table of {len(own)} rows holds the id {wrong}")
        table = RecyclingTable(own.shape[0], own.shape[1], tokenizer)
        table.successors[:] = own
        table.seen[:] = True if seen is None else np.asarray(seen, dtype=bool)
        return table

    def unroll(self, root: int, template: TreeTemplate) -> Ints:
        """[nodes + 1] tokens of the template below a root, one gather per level."""
        tokens = np.empty(len(template.fathers), dtype=np.int64)
        tokens[0] = root
        for level in template.levels:
            tokens[level] = self.successors[tokens[template.fathers[level]], template.ranks[level]]
        return tokens

    def update(self, tokens: Ints, top: Ints, path: Sequence[int]) -> None:
        """Writes one row per node. tokens: [nodes]; top: [nodes, k] ids, best first; path: accepted nodes, root first.

        Where a token stands at several nodes the last accepted one counts, else the earliest.
        """
        order = np.concatenate((np.arange(len(tokens) - 1, -1, -1), np.asarray(path, dtype=np.int64)))
        self.successors[tokens[order]] = top[order]  # numpy keeps the last of several writes to one row
        self.seen[tokens] = True

    def save(self, path: str | FilePath) -> None:
        """Writes a safetensors file."""
        from safetensors.numpy import save_file

        metadata = {"format": _FORMAT, "tokenizer": self.tokenizer or ""}
        save_file({"successors": self.successors, "seen": self.seen}, str(path), metadata)

    @staticmethod
    def load(path: str | FilePath, tokenizer: PreTrainedTokenizerBase | None = None) -> RecyclingTable:
        """Reads what `save` wrote.

        Raises:
            DataError: the file is no recycling table, or one of another tokenizer.
        """
        kinds = {"successors": ("int32", 2), "seen": ("bool", 1)}
        arrays, metadata = read_tensors(path, "recycling table", DataError, kinds, framework="np")
        if metadata.get("format") != _FORMAT or len(arrays["seen"]) != len(arrays["successors"]):
            raise DataError(
                f"{path} is no recycling table: it is of another format, or its two tensors have other lengths"
            )
        try:
            table = RecyclingTable.of(arrays["successors"], arrays["seen"])
        except MethodError as error:
            raise DataError(f"{path} is no recycling table: {error}") from None
        table.tokenizer = metadata.get("tokenizer") or None
        table.check(tokenizer)
        return table

    def check(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Refuses a tokenizer that isn't the table's, where both are known.

        Raises:
            DataError: they differ.
        """
        other = fingerprint(tokenizer)
        if self.tokenizer and other and self.tokenizer != other:
            raise DataError(
                f"the recycling table was filled with another tokenizer ({self.tokenizer}, here {other}): "
                "its ids mean other words. Start a fresh one."
            )


@dataclass(frozen=True)
class TokenRecycling(Strategy):
    """Remembers the last top-k successors of every token and unrolls them into a tree (arXiv 2408.08696).

    Args:
        k: successors kept per token, at least 1.
        template: shape of the tree; its ranks lie below k. The engine runs the part of it that pays.
        table: shared between calls ("hot"), saved and loaded by you; fresh in every call if None ("cold").
        prune_unseen: leave out what follows a token that was never seen: its row is all zeros.
        tokenizer: the target's; if given, a table of another one is refused.

    Raises:
        MethodError: k or budget below 1, template ranks not below k, a table of another k, vocabulary or tokenizer.
    """

    k: int = 8
    template: TreeTemplate = PUBLISHED
    table: RecyclingTable | None = None
    prune_unseen: bool = True
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise MethodError(f"{setting('k')} must be at least 1, not {self.k}")
        if self.budget < 1:
            raise MethodError(f"{setting('budget')} must be at least 1 node, not {self.budget}")
        highest = int(self.template.ranks.max())
        if highest >= self.k:
            raise MethodError(
                f"the template uses rank {highest}, so {setting('k')} must be at least {highest + 1}, not {self.k}"
            )
        if self.table is not None and self.table.k != self.k:
            raise MethodError(
                f"the table keeps {self.table.k} successors a token, not {self.k}: pass {setting('k', self.table.k)}"
            )
        if self.table is not None:
            self.table.check(self.tokenizer)

    @property
    def key(self) -> str:
        """Kinds depend on k."""
        return f"TokenRecycling {self.k}"

    def drafter(self, runtime: Runtime, sampling: Sampling) -> RecyclingDrafter:
        """Raises MethodError where the table has another vocabulary than the target."""
        table = RecyclingTable(runtime.vocab, self.k) if self.table is None else self.table
        if table.vocab != runtime.vocab:
            raise MethodError(
                f"the recycling table has {table.vocab} rows, but the model's logits are {runtime.vocab} wide: "
                "it belongs to another model. Start a fresh one."
            )
        return RecyclingDrafter(table, self.template, self.prune_unseen)


class RecyclingDrafter(Drafter):
    """Unrolls the table before every forward and refreshes it after. A node's kind is depth * k + rank."""

    rests = True

    def __init__(self, table: RecyclingTable, template: TreeTemplate, prune_unseen: bool = True) -> None:
        self.table, self.template, self.prune_unseen = table, template, prune_unseen
        self.kinds = template.depths * table.k + template.ranks

    def reset(self, prompt: Ints, prefill: Tensor | None) -> None:
        """The row of the prompt's last token: what the first forward's root is in the authors' loop."""
        if len(prompt) and prefill is not None:
            top = top_k(torch.as_tensor(prefill)[None], self.table.k).cpu().numpy()
            self.table.update(np.asarray(prompt[-1:]), top, [0])

    def propose(self, committed: Ints, budget: int) -> DraftTree:
        template = self.template
        tokens = self.table.unroll(int(committed[-1]), template)
        order = template.order
        if self.prune_unseen:
            usable = np.ones(len(tokens), dtype=bool)
            for level in template.levels:
                fathers = template.fathers[level]
                usable[level] = usable[fathers] & self.table.seen[tokens[fathers]]
            order = order[usable[order]]
        nodes = np.sort(order[: budget + 1])
        place = np.full(len(tokens), ROOT)
        place[nodes] = np.arange(len(nodes))
        parents = place[template.fathers[nodes]]
        parents[0] = ROOT
        tree = DraftTree.of(tokens[nodes], parents, self.kinds[nodes])
        # A row the target wrote has no id twice; zero rows and made-up ones may.
        twins = len(np.unique(parents * self.table.vocab + tokens[nodes])) < len(nodes)
        return tree.without_twins() if twins else tree

    def observe(self, tree: DraftTree, output: Output, path: Path) -> None:
        top = top_k(output.logits, self.table.k).cpu().numpy()
        self.table.update(tree.tokens[0], top, path.nodes)

    def prior(self, kind: int) -> float:
        return RANK_PRIOR[min(kind % self.table.k, len(RANK_PRIOR) - 1)]


def top_k(logits: Tensor, k: int) -> Tensor:
    """[nodes, k] ids of the largest logits, best first: what `topk` gives, about four times as fast on a large vocabulary.

    The k largest lie in the k blocks with the largest maxima, so only those are looked into. logits: [nodes, vocab].
    """
    vocab = logits.shape[-1]
    blocks = vocab // BLOCK
    if blocks <= 2 * k:
        return logits.topk(k).indices
    body = logits[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
    chosen = body.amax(-1).topk(k).indices  # [nodes, k] blocks
    inside = body.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)  # [nodes, k * BLOCK]
    rest = logits[:, blocks * BLOCK :]
    values = torch.cat((inside, rest), 1) if rest.shape[1] else inside
    picked = values.topk(k).indices
    block = chosen.gather(1, (picked // BLOCK).clamp(max=k - 1))
    return torch.where(picked < k * BLOCK, block * BLOCK + picked % BLOCK, picked + (blocks - k) * BLOCK)


def fingerprint(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """A hash of a tokenizer's vocabulary; None without one."""
    return None if tokenizer is None else hash_json(tokenizer.get_vocab())
