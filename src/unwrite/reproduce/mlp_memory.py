"""Does a network that imitates nearest neighbours improve a language model, and more than as many weights or steps would otherwise?

Claim looked at (arXiv 2508.01832): mixed with an MLP memory, trained on states of the training set to give the next-token
distribution of their neighbours and the next token, a frozen model predicts new texts better; neighbours teach more than the next
token alone; and a token costs the same however large the training set is. Beside it stand the model trained longer, a model of as
many weights, the neighbours themselves, and targets of neighbours drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ..beds.budget import Budget
from ..beds.datastores import dealt, latency, planted
from ..beds.package_texts import SCALES as TEXT_SCALES
from ..beds.package_texts import PackageScale, PackageTexts, Split
from ..compress.memory.datastore import Datastore, build_datastore
from ..compress.memory.knn import SparseTargets, knn_targets, nearest
from ..compress.memory.mixing import MixtureScores, score_rows
from ..compress.memory.mlp_memory import MemoryShape, MLPMemory
from ..compress.memory.training import MemoryTraining, train_memory
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

BASE, LONGER, LARGER, KNN = "base", "base, trained longer", "base of as many weights", "base + neighbours (kNN-LM)"
OWN, CE, KL, RANDOM = (
    "base + memory",
    "memory, next token alone",
    "memory, neighbours alone",
    "memory, random neighbours",
)
COLUMNS = ("test perplexity", "below the base, %", "weight of the memory", "weights, millions")
GAIN = 2.0  # % of perplexity, at least, that the memory must bring
PLANTED, APART = 0.15, 0.1  # nats: from the planted distribution at most, and farther with random neighbours at least
GROWS, FLAT = (
    0.5,
    0.25,
)  # exponents of time over the size of the store, of neighbours at least and of the memory at most
TEMPERATURES = (1.0, 4.0, 16.0, 64.0, 256.0)  # of neighbours, chosen on validation
HELD_OUT: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class MemoryScale:
    """How large the experiment is.

    Args:
        texts: the bed's.
        k: neighbours.
        blocks, epochs, lr, batch: of the memory and its training.
        longer: epochs that the base is trained on.
        clusters: of the planted states.
    """

    texts: PackageScale
    k: int = 64
    blocks: int = 4
    epochs: int = 3
    lr: float = 1e-3
    batch: int = 256
    longer: int = 2
    clusters: int = 24


SCALES = {
    "tiny": MemoryScale(TEXT_SCALES["tiny"], 8, 1, 1, batch=512, longer=1, clusters=3),
    "small": MemoryScale(PackageScale(train=220_000, held_out=80_000, vocabulary=2048, epochs=4)),
    "medium": MemoryScale(TEXT_SCALES["small"], epochs=5),
}


@dataclass(frozen=True)
class MemoryArm:
    """What a model says of the held-out texts.

    Args:
        test: on the texts that are reported.
        weight: of the memory, chosen on validation.
        millions: weights of all that speaks.
    """

    test: MixtureScores
    weight: float
    millions: float

    @property
    def rows(self) -> Tensor:
        """The mean loss of each row of the test texts, in nats."""
        number = int(self.test.rows.max()) + 1
        loss = self.test.nll(self.weight).double()
        return torch.zeros(number).double().scatter_add_(0, self.test.rows, loss) / self.test.rows.bincount()

    @property
    def perplexity(self) -> float:
        return self.test.perplexity(self.weight)


@dataclass(frozen=True)
class MemoryFigures:
    """What was measured.

    Args:
        arms: {name: one arm a seed}; those without a memory have one.
        distance: {arm: from neighbours' distributions on validation, in nats, one a seed}.
        planted: nats from planted distributions, by neighbours and by random ones.
        slopes: exponents of a token's time over the size of the store, one a round, of neighbours and of the memory.
        milliseconds: of a token at each size of the store, of neighbours and of the memory.
    """

    arms: Mapping[str, Sequence[MemoryArm]]
    distance: Mapping[str, Sequence[float]]
    planted: tuple[float, float]
    slopes: tuple[Sequence[float], Sequence[float]]
    milliseconds: Mapping[int, tuple[float, float]]

    def below(self, name: str) -> list[float]:
        """By how many % an arm's perplexity lies below the base's."""
        base = self.arms[BASE][0].perplexity
        return [100 * (1 - one.perplexity / base) for one in self.arms[name]]


@dataclass
class MemoryBed:
    """The base, its states on the training texts and their neighbours.

    Args:
        scale: how large all is.
    """

    scale: MemoryScale

    @cached_property
    def texts(self) -> PackageTexts:
        return PackageTexts(self.scale.texts)

    @cached_property
    def base(self) -> Any:
        """The frozen model."""
        return self.texts.load()

    @cached_property
    def store(self) -> Datastore:
        """Of the training texts."""
        return build_datastore(self.base, self.texts.blocks["train"])

    @cached_property
    def shape(self) -> MemoryShape:
        """Of the memory."""
        return MemoryShape(vocabulary=self.store.vocabulary, width=self.store.width, blocks=self.scale.blocks)

    @cached_property
    def found(self) -> dict[Split, tuple[Tensor, Tensor]]:
        """Distances and values of the neighbours of every validation and test state, `[tokens, k]` each."""
        found: dict[Split, tuple[Tensor, Tensor]] = {}
        for split in HELD_OUT:
            states = build_datastore(self.base, self.texts.blocks[split]).keys
            parts = list(nearest(self.store, self.scale.k, states, exclude_self=False))
            found[split] = (torch.cat([one for one, _ in parts]), self.store.values[torch.cat([at for _, at in parts])])
        return found

    def neighbours(self, split: Split, temperature: float) -> MixtureScores:
        """The base beside neighbours; what they say of the next token is the weight of those that have it."""
        distances, values = self.found[split]
        plain = self.plain[split]
        labels = torch.tensor([row.labels[1:] for row in self.texts.blocks[split]]).flatten()
        share = ((-distances / temperature).softmax(1) * (values == labels[:, None])).sum(1)
        return MixtureScores(plain.base, share.log(), plain.rows)

    @cached_property
    def plain(self) -> dict[Split, MixtureScores]:
        """The base beside a memory that hasn't learnt, for its own scores."""
        return {split: self.scores(self.base, split) for split in HELD_OUT}

    def scores(self, model: Any, split: Split, memory: MLPMemory | None = None) -> MixtureScores:
        """Of a model on a split; without a memory the memory's scores mean nothing."""
        if memory is None:
            width = model.config.hidden_size
            memory = MLPMemory(MemoryShape(vocabulary=model.config.vocab_size, width=width, blocks=1, inner=1))
        return score_rows(model, memory, self.texts.blocks[split])

    def alone(self, model: Any) -> MemoryArm:
        """A model without a memory."""
        scores = self.plain["test"] if model is self.base else self.scores(model, "test")
        return MemoryArm(scores, 0.0, weights_of(model))

    @cached_property
    def temperature(self) -> float:
        """Of neighbours, with the best weight on validation."""
        scores = {one: self.neighbours("validation", one) for one in TEMPERATURES}
        return min(scores, key=lambda one: scores[one].perplexity(scores[one].best_weight()))

    @cached_property
    def knn(self) -> MemoryArm:
        """The base beside neighbours themselves."""
        weight = self.neighbours("validation", self.temperature).best_weight()
        return MemoryArm(self.neighbours("test", self.temperature), weight, weights_of(self.base))

    @cached_property
    def targets(self) -> SparseTargets:
        """Of the training states, from their neighbours."""
        return knn_targets(self.store, self.scale.k, self.temperature)

    @cached_property
    def random_targets(self) -> SparseTargets:
        """The same targets, dealt out to other states: as sharp, and of no neighbours."""
        return dealt(self.targets)

    def trained(self, targets: SparseTargets | None, alpha: float, seed: int) -> MLPMemory:
        """A memory of one seed."""
        scale = self.scale
        steps = scale.epochs * math.ceil(len(self.store) / scale.batch)
        how = MemoryTraining(
            alpha=alpha,
            epochs=scale.epochs,
            batch_size=scale.batch,
            lr=scale.lr,
            warmup_steps=steps // 20,
            seed=seed,
        )
        return train_memory(MLPMemory(self.shape, seed=seed), self.store, targets, how)

    def beside(self, memory: MLPMemory) -> MemoryArm:
        """The base with a memory, at the weight that is best on validation."""
        weight = self.scores(self.base, "validation", memory).best_weight()
        return MemoryArm(self.scores(self.base, "test", memory), weight, weights_of(self.base) + weights_of(memory))

    def distance(self, memory: MLPMemory) -> float:
        """The divergence of a memory from neighbours' distributions on validation states, in nats."""
        distances, values = self.found["validation"]
        targets = SparseTargets.of(values, (-distances / self.temperature).softmax(1), self.store.vocabulary)
        states = build_datastore(self.base, self.texts.blocks["validation"]).keys
        total = 0.0
        for at in torch.arange(len(states)).split(1024):
            tokens, weights = targets.at(at)
            with torch.no_grad():
                log_p = memory.log_probs(states[at]).gather(1, tokens)
            total += float((torch.xlogy(weights, weights) - weights * log_p).sum())
        return total / len(states)

    def larger(self) -> Any:
        """A model of as many weights as base and memory, trained as the base."""
        wanted = 1e6 * (weights_of(self.base) + weights_of(MLPMemory(self.shape)))
        width = max(8, round(self.scale.texts.width * 1.375 / 8) * 8)

        def count(inner: int) -> float:
            with torch.device("meta"):
                return 1e6 * weights_of(AutoModelForCausalLM.from_config(self.texts.config(width, inner)))

        inner = max(8, round(8 + (wanted - count(8)) / (count(9) - count(8))))
        return self.texts.load(self.texts.fitted(self.texts.recipe(self.texts.config(width, inner))))

    def longer(self) -> Any:
        """The base, trained on at a third of its rate until validation stops improving again, at most `longer` epochs."""
        recipe = self.texts.recipe(self.texts.base, epochs=self.scale.longer, lr=self.scale.texts.lr / 3)
        return self.texts.load(self.texts.fitted(recipe))


def weights_of(model: torch.nn.Module) -> float:
    """Millions of weights."""
    return sum(one.numel() for one in model.parameters()) / 1e6


def run(budget: Budget) -> Claim:
    """Trains all, chooses weights and temperature on validation, reports the test texts."""
    bed = MemoryBed(SCALES.get(budget.size, SCALES["small"]))
    figures = measured(bed, budget.seeds)
    rows, checks = rows_of(figures), checks_of(figures)
    scale = bed.scale
    times = {
        str(size): {"neighbours": round(one, 4), "memory": round(other, 4)}
        for size, (one, other) in figures.milliseconds.items()
    }
    extra = {
        "temperature of neighbours": bed.temperature,
        "nats from neighbours on validation": {name: list(values) for name, values in figures.distance.items()},
        "nats from planted distributions": {"neighbours": figures.planted[0], "random": figures.planted[1]},
        "milliseconds a token by size of the store": times,
    }
    return Claim(
        slug="mlp-memory",
        claim="GPT2-large with an MLP memory of 774 M weights has a perplexity of 9.58 on WikiText-103, 10.42 without and 10.16 as GPT2-XL; "
        "80 times as fast as kNN-LM (arXiv 2508.01832)",
        setting=f"docstrings of installed packages, {len(bed.store)} training tokens, a Llama of {weights_of(bed.base):.1f} M weights, "
        f"{scale.blocks} blocks, {scale.k} neighbours, {scale.epochs} epochs; seeds {', '.join(map(str, budget.seeds))}",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, extra),
        reason=reason_of(checks, _reason(rows)),
        checks=checks,
        seeds=budget.seeds,
        extra=extra,
    )


def measured(bed: MemoryBed, seeds: Sequence[int]) -> MemoryFigures:
    """Every arm; what stands beside the two that the claim compares is trained from the first seed alone."""
    own = [bed.trained(bed.targets, 0.5, seed) for seed in seeds]
    plain = [bed.trained(None, 0.0, seed) for seed in seeds]
    arms = {
        BASE: [bed.alone(bed.base)],
        LONGER: [bed.alone(bed.longer())],
        LARGER: [bed.alone(bed.larger())],
        KNN: [bed.knn],
        RANDOM: [bed.beside(bed.trained(bed.random_targets, 0.5, seeds[0]))],
        KL: [bed.beside(bed.trained(bed.targets, 1.0, seeds[0]))],
        CE: [bed.beside(one) for one in plain],
        OWN: [bed.beside(one) for one in own],
    }
    distance = {OWN: [bed.distance(one) for one in own], CE: [bed.distance(one) for one in plain]}
    slopes, milliseconds = latency(bed.store, own[0], bed.scale.k)
    return MemoryFigures(arms, distance, planted(bed.scale.clusters), slopes, milliseconds)


def checks_of(figures: MemoryFigures) -> tuple[Check, ...]:
    """The card's conditions: by seed, or by row of the test texts where one model stands against another."""
    arms = figures.arms
    near, far = figures.planted

    def losses(name: str) -> list[float]:
        rows: list[float] = torch.stack([one.rows for one in arms[name]]).mean(0).tolist()
        return rows

    lead = [100 * (1 - one.perplexity / other.perplexity) for one, other in zip(arms[OWN], arms[CE], strict=True)]
    nearer = [other - one for one, other in zip(figures.distance[OWN], figures.distance[CE], strict=True)]
    own = losses(OWN)
    first = arms[OWN][0].rows.tolist()
    return (
        Check.paired("set-up", "neighbours themselves predict better than the base alone", losses(BASE), losses(KNN)),
        Check("mechanism", "planted distributions are learnt from neighbours, nats", near, "<=", PLANTED),
        Check("mechanism", "and not from neighbours dealt at random", far - near, ">=", APART),
        Check.by_seed("mechanism", "it is nearer to neighbours than without their targets", nearer, ">", 0),
        Check.by_seed(
            "claim", f"base and memory lie {GAIN:g} % below the base in perplexity", figures.below(OWN), ">=", GAIN
        ),
        Check.by_seed(
            "claim", "neighbours and next token teach at least as much as the next token alone", lead, ">=", 0
        ),
        Check.by_seed("claim", "a search takes longer in a larger store, exponent", figures.slopes[0], ">=", GROWS),
        Check.by_seed("claim", "a memory does not, exponent", figures.slopes[1], "<=", FLAT),
        Check.paired("control", "the base trained longer predicts worse", losses(LONGER), own),
        Check.paired("control", "a base of as many weights predicts worse", losses(LARGER), own),
        Check.paired("control", "random neighbours teach less", losses(RANDOM), first),
    )


def rows_of(figures: MemoryFigures) -> dict[str, tuple[str, ...]]:
    """A row an arm."""
    return {
        name: (
            spread([one.perplexity for one in arms], 4),
            spread(figures.below(name)),
            spread([one.weight for one in arms]),
            f"{arms[0].millions:.3g}",
        )
        for name, arms in figures.arms.items()
    }


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """Perplexity with the memory, without, with neighbours themselves and of as many weights."""
    own, base, knn, larger = (figure(rows, name, 0) for name in (OWN, BASE, KNN, LARGER))
    return f"perplexity {own} with memory, {base} without, {knn} kNN-LM, {larger} as many weights"


def _reason(rows: Mapping[str, Sequence[Any]]) -> str:
    return "below the base, %: " + ", ".join(f"{figure(rows, name, 1)} {name}" for name in rows if name != BASE)
