"""Nearest neighbours in a datastore, the distributions they give, and the language model made of them.

The weight of a neighbour falls with its squared distance, and a token's probability is the weight of the neighbours that it followed
(kNN-LM, arXiv 1911.00172; the targets of an MLP memory, arXiv 2508.01832):

    p(v) = sum over neighbours i with value v of softmax(-d_i / T)_i

The search is exact, in chunks. Positions of the datastore itself never find themselves: they are left out by number, for the
nearest hit may be another position of the same distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import MethodError, ModelError, setting
from ...runs import progress
from .checks import above_zero, whole
from .datastore import Datastore

__all__ = ["KNNLM", "ApproximateIndex", "SparseTargets", "knn_targets", "nearest"]

LEAST = 1e-8  # probabilities up to it are left out of a target
_CELLS = 1 << 24  # of a chunk of distances


@dataclass(frozen=True)
class ApproximateIndex:
    """An inverted index with product quantisation (faiss, IndexIVFPQ), for stores that are too large to be searched exactly.

    Distances to what it finds are computed from the keys (ours: the official code takes the index's own).

    Args:
        centroids: lists, at least 1; 4096 as published. Fewer where there are not 39 keys each.
        code_size: bytes a key is coded in; it divides the keys' width.
        probe: lists that are searched, at least 1.
    """

    centroids: int = 4096
    code_size: int = 64
    probe: int = 32

    def __post_init__(self) -> None:
        for name in ("centroids", "code_size", "probe"):
            whole(name, getattr(self, name))

    def of(self, keys: Tensor) -> Any:
        """A trained index of keys [size, width].

        Raises:
            MethodError: faiss is not installed, or the code size doesn't divide the width.
        """
        try:
            import faiss
        except ImportError:
            raise MethodError(
                "an approximate index needs faiss, which is not installed. Install it with: pip install faiss-cpu; or "
                f"leave {setting('index')} out for the exact search."
            ) from None
        width = keys.shape[1]
        if width % self.code_size:
            raise MethodError(
                f"{setting('code_size')} is {self.code_size}, which does not divide the keys' width of {width}."
            )
        lists = max(1, min(self.centroids, len(keys) // 39))
        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(width), width, lists, self.code_size, 8)
        index.nprobe = self.probe
        array = keys.float().cpu().numpy()
        index.train(array)
        index.add(array)
        return index


def nearest(
    store: Datastore,
    k: int,
    queries: Tensor | None = None,
    *,
    exclude_self: bool = True,
    index: ApproximateIndex | None = None,
    chunk: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k nearest keys of each query, the nearest first, chunk by chunk.

    Args:
        k: neighbours, from 1 to the size of the store, less one where a position is left out.
        queries: [queries, width]; None for the store's own keys, in their order.
        exclude_self: leave each position of the store out of its own neighbours; of no meaning for other queries.
        index: an approximate search in place of the exact one.
        chunk: queries at once; by default what keeps a chunk's distances at 64 MB and its neighbours at 256 MB.

    Yields:
        Squared distances [chunk, k] and positions [chunk, k].

    Raises:
        MethodError: k out of range, queries of another width.
    """
    own = queries is None and exclude_self
    whole("k", k)
    largest = len(store) - own
    if k > largest:
        raise MethodError(
            f"{setting('k')} is {k}, and a position of this store has {largest} others to find. Use 1 to {largest}."
        )
    if queries is None:
        queries = store.keys
    if queries.ndim != 2 or queries.shape[1] != store.width:
        raise MethodError(
            f"queries have shape {tuple(queries.shape)}, and keys are {store.width} wide. Give [queries, {store.width}]."
        )
    if chunk is None:
        chunk = max(1, min(_CELLS // len(store), 4 * _CELLS // (k * store.width)))
    whole("chunk", chunk)
    return _chunks(store.keys.float(), queries.float(), k, own, index, chunk)


@torch.no_grad()
def _chunks(
    keys: Tensor, queries: Tensor, k: int, own: bool, index: ApproximateIndex | None, chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    centre = keys.mean(0)
    keys = keys - centre  # smaller numbers, so that the product below loses fewer digits
    squares = keys.square().sum(1)
    searched = None if index is None else index.of(keys)
    for start in range(0, len(queries), chunk):
        some = queries[start : start + chunk].to(keys) - centre
        at = torch.arange(start, start + len(some), device=keys.device)[:, None]
        if searched is not None:
            found = _found(searched, some, k + own).to(keys.device)
        else:
            order = torch.addmm(squares, some, keys.T, alpha=-2)  # |key|^2 - 2 query.key: as distances of one query
            if own:
                order.scatter_(1, at, float("inf"))
            found = order.topk(k, dim=1, largest=False).indices
        absent = (found < 0) | (found == at) if own else found < 0
        distances = (some[:, None] - keys[found.clamp_min(0)]).square().sum(-1).masked_fill(absent, float("inf"))
        distances, order_of = distances.topk(k, dim=1, largest=False, sorted=True)
        yield distances, found.clamp_min(0).gather(1, order_of)


def _found(index: Any, queries: Tensor, k: int) -> Tensor:
    """Positions [queries, k] that an approximate index finds, -1 where it finds fewer."""
    return torch.from_numpy(index.search(queries.cpu().numpy(), k)[1])


@dataclass(frozen=True)
class SparseTargets:
    """A distribution over tokens for each position, of which few are above zero.

    Args:
        starts: [positions + 1], where each position's tokens begin.
        tokens, weights: [entries], token numbers and probabilities in float16, one position after the other.
        vocabulary: how many tokens there are.
    """

    starts: Tensor
    tokens: Tensor
    weights: Tensor
    vocabulary: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, values: Tensor, weights: Tensor, vocabulary: int) -> SparseTargets:
        """From neighbours: equal values are added up, and what is at most 1e-8 is left out.

        Args:
            values: [positions, k], the neighbours' tokens.
            weights: [positions, k], theirs, a distribution a position.
        """
        positions = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
        cells, where = torch.unique(positions * vocabulary + values, return_inverse=True)  # sorted by position, token
        sums = torch.zeros(len(cells), dtype=weights.dtype, device=weights.device)
        sums = sums.scatter_add_(0, where.flatten(), weights.flatten())
        large = sums > LEAST
        rows, tokens = cells[large] // vocabulary, cells[large] % vocabulary
        starts = torch.zeros(len(values) + 1, dtype=torch.long, device=values.device)
        starts[1:] = torch.bincount(rows, minlength=len(values)).cumsum(0)
        return cls(starts.cpu(), tokens.int().cpu(), sums[large].half().cpu(), vocabulary)

    @classmethod
    def joined(cls, parts: list[SparseTargets]) -> SparseTargets:
        """Targets of positions one after the other."""
        counts = torch.cat([part.starts.diff() for part in parts])
        starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        tokens, weights = (torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "weights"))
        return cls(starts, tokens, weights, parts[0].vocabulary)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and probabilities of some positions, `[positions, most tokens of one]` each, filled up with probability 0.

        Probabilities are float32 and add up to 1 again, which half precision ones don't.
        """
        first, counts = self.starts[positions], self.starts.diff()[positions]
        steps = torch.arange(int(counts.max()))
        inside = steps < counts[:, None]
        cells = (first[:, None] + steps).clamp_max(len(self.tokens) - 1)
        weights = self.weights[cells].float() * inside
        return self.tokens[cells].long() * inside, weights / weights.sum(1, keepdim=True)

    def dense(self, positions: Tensor) -> Tensor:
        """The same as `[positions, vocabulary]`."""
        tokens, weights = self.at(positions)
        return torch.zeros(len(positions), self.vocabulary).scatter_add_(1, tokens, weights)


def knn_targets(
    store: Datastore,
    k: int = 1024,
    temperature: float = 16.0,
    *,
    exclude_self: bool = True,
    index: ApproximateIndex | None = None,
) -> SparseTargets:
    """The next-token distribution that neighbours give at every position of a store.

    Args:
        k, temperature: neighbours and T, above 0; 1024 and 16 as published.
        exclude_self: leave each position out of its own neighbours. Without, the target is little but the token itself.
        index: an approximate search.

    Raises:
        MethodError: see `nearest`; a temperature that is not above 0.
    """
    above_zero("temperature", temperature)
    found = nearest(store, k, exclude_self=exclude_self, index=index)
    parts = []
    with progress(len(store), "searching neighbours") as bar:
        for distances, positions in found:
            weights = (-distances / temperature).softmax(1)
            parts.append(SparseTargets.of(store.values.to(positions.device)[positions], weights, store.vocabulary))
            bar.advance(len(positions))
    return SparseTargets.joined(parts)


class KNNLM(nn.Module):
    """The next-token distribution of the neighbours of any state (kNN-LM, arXiv 1911.00172): what an MLP memory stands in for.

    Args:
        store: what is searched.
        k, temperature: neighbours, and T above 0.
        index: an approximate search.

    Raises:
        MethodError: k or the temperature out of range.
    """

    def __init__(
        self,
        store: Datastore,
        k: int = 1024,
        temperature: float = 16.0,
        index: ApproximateIndex | None = None,
    ) -> None:
        super().__init__()
        above_zero("temperature", temperature)
        nearest(store, k, store.keys[:1], exclude_self=False)  # refuses k
        self.store, self.k, self.temperature, self.index = store, k, temperature, index

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.store.vocabulary

    @property
    def input_width(self) -> int:
        """Of a state."""
        return self.store.width

    @torch.no_grad()
    def log_probs(self, states: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities [..., vocabulary] in float32 at states [..., width]; -inf for tokens that no neighbour has.

        Raises:
            ModelError: a temperature of the distribution, which neighbours have no logits for.
        """
        if temperature != 1.0:
            raise ModelError(
                f"{setting('temperature', temperature)} is of a memory's logits, and neighbours have none. Use 1, and give "
                "KNNLM its own."
            )
        parts = []
        for distances, positions in nearest(
            self.store, self.k, states.reshape(-1, states.shape[-1]), exclude_self=False, index=self.index
        ):
            weights = (-distances / self.temperature).softmax(1)
            dense = weights.new_zeros(len(weights), self.vocabulary)
            parts.append(dense.scatter_add_(1, self.store.values.to(positions.device)[positions], weights))
        return torch.cat(parts).log().reshape(*states.shape[:-1], self.vocabulary)
