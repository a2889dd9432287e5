"""What is planted in datastores, what is dealt out anew in them, and how long a token takes beside one of each size.

Planted states lie around centres that each have a known distribution of next tokens: what teaches a memory right brings it there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..compress.memory.datastore import Datastore
from ..compress.memory.knn import SparseTargets, knn_targets, nearest
from ..compress.memory.mlp_memory import MemoryShape, MLPMemory
from ..compress.memory.training import MemoryTraining, train_memory

LATENCY_TOKENS, ROUNDS = 32, 5


def latency(
    store: Datastore, memory: MLPMemory, k: int
) -> tuple[tuple[list[float], list[float]], dict[int, tuple[float, float]]]:
    """Exponents of time over size, one a round, and the fastest round's milliseconds a token, of neighbours and of the memory."""
    sizes = [max(k, len(store) // part) for part in (16, 4, 1)]
    stores = [store.subset(torch.arange(size)) for size in sizes]
    states = store.keys[:LATENCY_TOKENS]

    def searching(one: Datastore) -> None:
        list(nearest(one, k, states, exclude_self=False))

    def remembering(_: Datastore) -> None:
        with torch.no_grad():
            memory(states)

    rounds: dict[str, list[list[float]]] = {"neighbours": [], "memory": []}
    for _ in range(ROUNDS + 1):  # the first is not counted
        for name, work in (("neighbours", searching), ("memory", remembering)):
            rounds[name].append([_seconds(work, one) for one in stores])
    counted = {name: torch.tensor(times[1:]).double() for name, times in rounds.items()}  # [rounds, sizes]
    logs = torch.tensor(sizes).double().log()
    centred = logs - logs.mean()
    slopes = {
        name: ((times.log() * centred).sum(1) / centred.square().sum()).tolist() for name, times in counted.items()
    }
    best = {name: (1000 * times.min(0).values / LATENCY_TOKENS).tolist() for name, times in counted.items()}
    both = zip(best["neighbours"], best["memory"], strict=True)
    return (slopes["neighbours"], slopes["memory"]), dict(zip(sizes, both, strict=True))


def _seconds(work: Callable[[Datastore], None], store: Datastore, times: int = 3) -> float:
    """The shortest of a few calls."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work(store)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def planted(clusters: int = 24, each: int = 40) -> tuple[float, float]:
    """How far memories are from planted distributions on new states, in nats: taught by neighbours, and by random ones.

    States lie around centres, each with a distribution over four tokens, and every state shows one token of it.
    """
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters, 16, generator=generator)
    tokens = torch.rand(clusters, 32, generator=generator).argsort(1)[:, :4]
    weights = torch.rand(clusters, 4, generator=generator).add(0.2)
    truth = torch.zeros(clusters, 32).scatter_(1, tokens, weights / weights.sum(1, keepdim=True))
    cluster = torch.arange(clusters).repeat_interleave(each)
    states = centres[cluster] + 0.1 * torch.randn(len(cluster), 16, generator=generator)
    values = torch.multinomial(truth[cluster], 1, generator=generator)[:, 0]
    store = Datastore(states, values, 32)
    fresh = centres + 0.1 * torch.randn(clusters, 16, generator=generator)
    right = knn_targets(store, 32, 1.0)
    how = MemoryTraining(alpha=0.5, epochs=15, batch_size=64, lr=1e-2, warmup_steps=10, seed=0)
    distances = []
    for targets in (right, dealt(right)):
        shape = MemoryShape(vocabulary=32, width=16, blocks=2, inner=64, dropout=0.0, std=0.1)
        memory = train_memory(MLPMemory(shape), store, targets, how)
        with torch.no_grad():
            log_p = memory.log_probs(fresh)
        distances.append(float((torch.xlogy(truth, truth) - truth * log_p).sum(1).mean()))
    return distances[0], distances[1]


def dealt(targets: SparseTargets, seed: int = 0) -> SparseTargets:
    """The same targets for other positions, drawn at random."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    counts = targets.starts.diff()[order]
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    cells = torch.repeat_interleave(targets.starts[order] - starts[:-1], counts) + torch.arange(int(starts[-1]))
    return SparseTargets(starts, targets.tokens[cells], targets.weights[cells], targets.vocabulary)
