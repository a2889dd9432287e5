"""The vectors that MLPs write, where they lie in every architecture, and the words each of them stands for.

A block's MLP adds `sum_j a_j v_j` to the hidden state: v_j is what inner unit j writes, a_j how far that unit is on.
Multiplied with the output embeddings, v_j gives every token a logit, and the tokens at the top say what it is about.
(Transformer feed-forward layers build predictions, arXiv 2203.14680; ConceptVectors, arXiv 2406.11614)

    logits(v) = E v,   E the output embeddings [vocabulary, hidden], without the final norm
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..runs import progress
from .layout import anatomy

__all__ = [
    "RankedVector",
    "TopTokens",
    "VectorPlace",
    "noise_scale",
    "output_embeddings",
    "rank_by_tokens",
    "replaced",
    "top_tokens",
    "value_vector",
    "value_vectors",
    "write_value_vector",
]

VECTORS_A_PASS = 256  # projected at once: with 50,000 tokens that is 50 MB of logits


class VectorPlace(NamedTuple):
    """Where a value vector lies: its block, and its inner unit, both counted from 0."""

    layer: int
    unit: int


class TopTokens(NamedTuple):
    """The tokens at one end of projections, the furthest first.

    ids: `[vectors, k]`. logits: their logits, `[vectors, k]`; negative ones for the lower end of most vectors.
    """

    ids: Tensor
    logits: Tensor


@dataclass(frozen=True)
class RankedVector:
    """A value vector as a candidate for a set of tokens.

    Args:
        place: where it is.
        lowest: whether the tokens are those at the bottom of its projection: the vector then speaks for them where
            its inner unit is negative, as gated MLPs allow.
        matches: how many of its k tokens are in the set.
        score: the mean logit of its k tokens, of the negated vector at the lower end.
        top: those tokens' ids, the furthest first.
    """

    place: VectorPlace
    lowest: bool
    matches: int
    score: float
    top: tuple[int, ...]


def value_vectors(model: nn.Module, layer: int) -> Tensor:
    """All value vectors of one block, `[inner, hidden]`: a view of the parameter, whichever way it is stored.

    Raises:
        ModelError: no such block, an architecture without a record (mixtures of experts have none), or quantised weights.
    """
    blocks = anatomy(model).blocks
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(blocks):
        raise ModelError(f"layer {layer!r} is not one of the model's {len(blocks)} blocks. Use 0 to {len(blocks) - 1}.")
    return blocks[layer].down.weight.T


def value_vector(model: nn.Module, place: tuple[int, int]) -> Tensor:
    """A detached copy of one value vector, `[hidden]`.

    Raises:
        ModelError: as `value_vectors`; no such unit.
    """
    return _row(model, place).detach().clone()


@torch.no_grad()
def write_value_vector(model: nn.Module, place: tuple[int, int], vector: Tensor) -> None:
    """Replaces one value vector in the model; every other weight keeps its bits.

    Raises:
        ModelError: as `value_vector`; a vector of another width.
    """
    row = _row(model, place)
    if vector.shape != row.shape:
        raise ModelError(f"a vector of shape {tuple(vector.shape)} cannot replace one of {len(row)} entries.")
    row.copy_(vector)


@contextlib.contextmanager
def replaced(model: nn.Module, vectors: Mapping[VectorPlace, Tensor]) -> Iterator[None]:
    """Within the block the model has other value vectors; afterwards its own, bit by bit."""
    own = {place: value_vector(model, place) for place in vectors}
    try:
        for place, vector in vectors.items():
            write_value_vector(model, place, vector)
        yield
    finally:
        for place, vector in own.items():
            write_value_vector(model, place, vector)


def noise_scale(vector: Tensor, noise: float, *, relative: bool = False) -> float:
    """The standard deviation of Gaussian noise on each entry of a value vector.

    Args:
        vector: `[hidden]`.
        noise: the standard deviation itself, as the paper has it; or, if `relative`, the expected length of the noise
            in lengths of the vector (ours: an absolute figure means something else in every model).
    """
    if not relative:
        return noise
    return noise * float(vector.float().norm()) / len(vector) ** 0.5


def output_embeddings(model: nn.Module) -> Tensor:
    """What a hidden state is multiplied with to give logits, `[vocabulary, hidden]`, detached.

    Tied heads share it with the token embeddings. Where a last linear map stands between the hidden state and the
    embeddings (OPT-350m) it is multiplied in; norms, and ModernBERT's prediction head, are left out.

    Raises:
        ModelError: the model has no head.
    """
    parts = anatomy(model)
    if parts.unembedding is None:
        raise ModelError(
            f"{type(parts.model).__name__} has no head, so its vectors name no tokens. Load it with a language-modelling head."
        )
    weight: Tensor = parts.unembedding.weight.detach()
    if isinstance(parts.final_norm, nn.Linear):
        weight = weight @ parts.final_norm.weight.detach()
    return weight


def top_tokens(vectors: Tensor, embeddings: Tensor, k: int = 200, *, lowest: bool = False) -> TopTokens:
    """The k tokens at one end of each vector's projection.

    Args:
        vectors: `[vectors, hidden]`.
        embeddings: `[vocabulary, hidden]`, see `output_embeddings`.
        k: how many; 200 in the paper. All of them where the vocabulary is smaller.
        lowest: the other end, of a vector that is read with its sign turned.

    Raises:
        ModelError: k is below 1.
    """
    if k < 1:
        raise ModelError(f"the top {k} tokens are none. Use 1 or more; the paper has 200.")
    return _ends_of(vectors.detach().float() @ embeddings.float().T, k, lowest)


@torch.no_grad()
def rank_by_tokens(
    model: nn.Module,
    sets: Sequence[Collection[int]],
    *,
    k: int = 200,
    count: int = 10,
    drop: float = 0.3,
    both_ends: bool = True,
    layers: Sequence[int] | None = None,
) -> list[list[RankedVector]]:
    """For each set of tokens the value vectors whose top tokens hold most of it, best first, in one scan of the model.

    Args:
        sets: token ids, one collection a concept.
        k: how many tokens of a projection count.
        count: vectors returned a set, at most; those without a match are left out.
        drop: the share of each block's vectors, those with the lowest scores, that is left out first, in [0, 1); 0.3 in
            the paper.
        both_ends: also look at the tokens at the bottom (ours); the paper's are those at the top.
        layers: the blocks that are scanned; None for all.

    Raises:
        ModelError: a share outside [0, 1), k below 1, or as `value_vectors` and `output_embeddings`.
    """
    if k < 1:
        raise ModelError(f"the top {k} tokens are none. Use 1 or more; the paper has 200.")
    if not 0 <= drop < 1:
        raise ModelError(f"the share of vectors to drop is {drop}; it must be at least 0 and below 1.")
    embeddings = output_embeddings(model).float()
    wanted = torch.zeros(len(sets), len(embeddings), dtype=torch.bool, device=embeddings.device)
    for row, ids in enumerate(sets):
        wanted[row, sorted(ids)] = True
    best: list[list[RankedVector]] = [[] for _ in sets]
    ends = (False, True) if both_ends else (False,)
    for layer in progress(range(len(anatomy(model).blocks)) if layers is None else layers, "projecting value vectors"):
        for lowest, top in zip(ends, _scan(value_vectors(model, layer), embeddings, k, ends), strict=True):
            for row, found in enumerate(_best_of(layer, top, lowest, wanted, count, drop)):
                best[row] = sorted([*best[row], *found], key=_rank)[:count]
    return best


def _scan(vectors: Tensor, embeddings: Tensor, k: int, ends: Sequence[bool]) -> list[TopTokens]:
    """The tokens at each of these ends, of all vectors, which are projected once."""
    parts: list[list[TopTokens]] = [[] for _ in ends]
    for some in vectors.split(VECTORS_A_PASS):
        logits = some.detach().float() @ embeddings.T  # [vectors, vocabulary]
        for tops, lowest in zip(parts, ends, strict=True):
            tops.append(_ends_of(logits, k, lowest))
    return [TopTokens(torch.cat([t.ids for t in tops]), torch.cat([t.logits for t in tops])) for tops in parts]


def _ends_of(logits: Tensor, k: int, lowest: bool) -> TopTokens:
    values, ids = logits.topk(min(k, logits.shape[1]), dim=-1, largest=not lowest)
    return TopTokens(ids, values)


def _best_of(
    layer: int, top: TopTokens, lowest: bool, wanted: Tensor, count: int, drop: float
) -> Iterator[list[RankedVector]]:
    scores = top.logits.mean(1) * (-1 if lowest else 1)  # [vectors]
    among = scores.argsort(descending=True)[: max(1, round(len(scores) * (1 - drop)))]
    for tokens in wanted:
        matches = tokens[top.ids[among]].sum(1)  # [vectors that are left]
        # A stable sort keeps the order of the scores among equals.
        chosen = among[matches.argsort(descending=True, stable=True)[:count]]
        hits = tokens[top.ids[chosen]].sum(1).tolist()
        yield [
            RankedVector(VectorPlace(layer, int(unit)), lowest, hit, float(scores[unit]), tuple(top.ids[unit].tolist()))
            for unit, hit in zip(chosen, hits, strict=True)
            if hit
        ]


def _rank(vector: RankedVector) -> tuple[float, ...]:
    return (-vector.matches, -vector.score, *vector.place)


def _row(model: nn.Module, place: tuple[int, int]) -> Tensor:
    layer, unit = place
    vectors = value_vectors(model, layer)
    if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < len(vectors):
        raise ModelError(
            f"unit {unit!r} is not one of the {len(vectors)} value vectors of layer {layer}. Use 0 to {len(vectors) - 1}."
        )
    return vectors[unit]
