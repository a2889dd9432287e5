"""What carries a target model: one forward over a tree, and a cache that keeps just the accepted rows.

Invariant between steps: the cache holds every committed token but the last, which is the root of the next tree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .tree import ROOT, DraftTree, Ints

LOGITS = frozenset({"logits"})


@dataclass
class Output:
    """What a forward returned.

    Args:
        logits: [batch, nodes, vocab], raw, of the next token after every node, in the model's dtype.
        final_hidden: [batch, nodes, width] before the head, if wanted.
        layers: {index: [batch, nodes, width]} outputs of the blocks that were wanted.
    """

    logits: Tensor
    final_hidden: Tensor | None = None
    layers: dict[int, Tensor] | None = None

    def row(self, index: int, size: int) -> Output:
        """One row of the batch, without padding: [nodes, ...]."""
        cut = lambda value: None if value is None else value[index, :size]  # noqa: E731
        layers = None if self.layers is None else {k: v[index, :size] for k, v in self.layers.items()}
        return Output(self.logits[index, :size], cut(self.final_hidden), layers)


class Runtime(ABC):
    """A target model with its cache.

    Attributes:
        vocab: width of the logits.
        provides: what `Output` can hold, of "logits", "final_hidden", "layers".
        lengths: [batch] cached tokens of every row.
        max_nodes: rows one forward may have; None for no limit.
        max_positions: positions the model can encode; None for no limit.
        inverts: no `generate` decodes this target, so a draw need not be the one it would make (`Sampling.inverts`).
        routes: names of the routes that a forward can take, the default first; the loop times them and picks (see `use`).
        entered: of these, the ones this call is ready for.
        limit: tokens of a text, padding included, up to which `forward` says what plain decoding says; beyond it `own_prefill`,
            `hand_over` and `own_step` go on. None for any number, 0 for plain decoding only.
        limited_by: what sets the limit, as a sentence.
        max_columns: cached tokens and nodes of a forward together; None for any number.
    """

    vocab: int
    provides: frozenset[str] = LOGITS
    lengths: Ints
    max_nodes: int | None = None
    max_positions: int | None = None
    inverts: ClassVar[bool] = False
    routes: tuple[str, ...] = ("stock",)
    entered: Collection[str] = ()
    limit: int | None = None
    limited_by: str = ""
    max_columns: int | None = None

    @abstractmethod
    def prefill(self, rows: Sequence[Ints], room: int) -> Tensor:
        """Starts anew: caches whole prompts, one array of ids a row, and returns [batch, vocab] logits after each.

        Args:
            rows: token ids without padding, one array a row.
            room: tokens that may follow at most, drafts included; the cache is made that large at once.
        """

    @abstractmethod
    def forward(self, trees: DraftTree, want: frozenset[str] = LOGITS, graft: Any = None) -> Output:
        """One forward over all nodes; their keys lie behind the cached ones until `commit`.

        Args:
            want: what to return; layers as "layer:<index>".
            graft: rows added above a layer that no real row sees (hidden transfer); refused where there is none.
        """

    @abstractmethod
    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keeps the named nodes of every row (root first, in path order) and drops the other rows of the step."""

    def step(self, token: int) -> Tensor:
        """One plain token of the only row, forwarded and kept. Returns [vocab] logits after it, valid until the next call."""
        output = self.forward(DraftTree.of([token], [ROOT]))
        self.commit([[0]])
        return output.logits[0, 0]

    def own_prefill(self, ids: Ints, padding: Sequence[int], room: int) -> Tensor:
        """Starts anew beyond the limit. ids: [batch, length], padded on the left. Returns [batch, vocab] logits after them."""
        raise NotImplementedError

    def hand_over(self, ids: Ints, padding: Sequence[int]) -> None:
        """From here on `own_step`. ids: [batch, limit], what is cached of rows that still run, padded on the left."""
        raise NotImplementedError

    def own_step(self, tokens: Ints) -> Tensor:
        """One plain token of every row beyond the limit. tokens: [batch]. Returns [batch, vocab] logits after them."""
        raise NotImplementedError

    def reach(self, length: int) -> int | None:
        """Levels that a draft behind `length` cached tokens may have; None for any, 0 where decoding must be plain."""
        return None

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes the cache's storage takes."""

    def use(self, route: str) -> float | None:
        """Runs the next forwards by the named route.

        Returns:
            Seconds that getting ready for it took in this call, now or earlier; None to have this call timed.
        """
        return None

    @property
    def fingerprint(self) -> str:
        """Names model, machine and threads for the stored forward-cost curve."""
        return type(self).__name__


def positions(trees: DraftTree, lengths: Ints) -> Ints:
    """[batch, nodes] position ids: siblings share one."""
    return lengths[:, None] + trees.depths


def visible(trees: DraftTree, lengths: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[batch, nodes, columns]: what each node may see of the cache with the step's rows behind each row's own length.

    columns = max(lengths) + nodes; row b's node j lies in column lengths[b] + j.
    """
    batch, nodes = trees.tokens.shape
    shown = np.zeros((batch, nodes, int(lengths.max()) + nodes), dtype=bool)
    for row, length in enumerate(lengths.tolist()):
        shown[row, :, :length] = True
        shown[row, :, length : length + nodes] = trees.ancestors[row]
    return shown
