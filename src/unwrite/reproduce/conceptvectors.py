"""ConceptVectors on a real small model: does unlearning touch the vectors that name a concept, and does Needle remove it?

Claim looked at (arXiv 2406.11614): gradient ascent and NPO make a concept less likely and leave the vectors that hold it as
they were; destroying those vectors removes the concept. Concepts are classes of everyday words in SmolLM2-135M, their vectors
found by the words they name. Relearning and prompts that elicit knowledge, of which the paper also speaks, are not measured.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import log
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch

from ..audit.text.concept_search import ConceptCandidate, find_concepts
from ..audit.text.concept_vectors import vector_change
from ..beds.budget import Budget
from ..beds.concepts import CONCEPTS, MODEL, PLANTED, texts, word_nll
from ..forget import NPO
from ..forget.base import Method
from ..forget.gradient_ascent import GradientAscent
from ..forget.needle import Needle
from ..models import load
from ..models.value_vectors import VectorPlace, output_embeddings, replaced, value_vector
from ..scoring.intervals import spread
from .base import Claim, figure
from .checks import Check, reason_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

LAYERS = range(16, 25)  # of 30, as far up as the paper's vectors are, 18 to 25 of 32
CHOSEN = 3  # concepts, those whose first vector has most matches
COUNTS = (1, 5, 20)  # vectors destroyed; checks are on the middle one
VECTORS = COUNTS[1]
NOISE = 6.4  # lengths of the vector: the paper's noise on a vector of length 1 with 4,096 entries
PLANTED_AT = VectorPlace(20, 7)
TRAINING = {"learning_rate": 5e-5, "warmup_epochs": 0.0, "lr_scheduler_type": "constant", "use_cpu": True}
STEPS = 6
OTHERS = 2  # texts of each other concept that are looked at
METHODS: dict[str, Method] = {"GA": GradientAscent(), "NPO + nll": NPO(retain_loss="nll")}
COLUMNS = ("nll of its words, rise", "others' rise", "cosine", "Jaccard")
Figures = dict[str, list[tuple[float, ...]]]


def run(budget: Budget) -> Claim:
    """Every method on the concepts with the clearest vectors, each from the same model."""
    tiny = budget.size == "tiny"
    loaded = load(MODEL)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    candidates, planted_first = _candidates(model, tokenizer, LAYERS[:1] if tiny else LAYERS)
    ranked = sorted(candidates, key=lambda one: -(candidates[one][0].vector.matches if candidates[one] else 0))
    measurements: Figures = {}
    for concept in ranked[: 1 if tiny else CHOSEN]:
        places = [candidate.vector.place for candidate in candidates[concept]]
        _measure(concept, places, model, tokenizer, budget.seeds[:1] if tiny else budget.seeds, measurements, tiny)
    chosen = ranked[:CHOSEN]
    matches = [candidates[one][0].vector.matches if candidates[one] else 0 for one in chosen]
    rows = {
        name: tuple(spread([run[i] for run in runs]) for i in range(len(COLUMNS)))
        for name, runs in measurements.items()
    }
    checks = _checks(measurements, planted_first, matches)
    return Claim(
        slug="conceptvectors",
        claim="unlearning methods barely change the vectors that hold a concept; ablating those vectors removes the knowledge "
        "(Llama-2-7b-chat and OLMo-7B, 285 concepts, arXiv 2406.11614)",
        setting=f"SmolLM2-135M, concepts {', '.join(chosen)}: the {VECTORS} vectors of blocks {LAYERS[0]} to {LAYERS[-1]} "
        f"that name most of their words; {STEPS} steps of GA and NPO; nats a word",
        columns=COLUMNS,
        rows=rows,
        headline=headline(rows, {}),
        reason=reason_of(checks),
        checks=checks,
        seeds=budget.seeds,
        extra={
            "words among the first 200 tokens": {one: [c.vector.matches for c in candidates[one]] for one in chosen},
            "places": {one: [list(c.vector.place) for c in candidates[one][:VECTORS]] for one in chosen},
        },
    )


def _candidates(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int]
) -> tuple[dict[str, list[ConceptCandidate]], bool]:
    """The vectors of every concept, and whether one that was planted for another comes first for that."""
    planted = VectorPlace(layers[len(layers) // 2], PLANTED_AT.unit)
    with replaced(model, {planted: _naming(model, tokenizer, PLANTED, value_vector(model, planted))}):
        found = find_concepts(
            model, tokenizer, {**CONCEPTS, "planted": PLANTED}, at_least=1, count=COUNTS[-1], layers=layers
        )
    first = found.pop("planted")
    return found, bool(first) and first[0].vector.place == planted


def _naming(model: nn.Module, tokenizer: PreTrainedTokenizerBase, words: Sequence[str], like: Tensor) -> Tensor:
    """A vector as long as another that names some words: their mean embedding, less that of all."""
    embeddings = output_embeddings(model)
    ids = [ids[0] for word in words if len(ids := tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1]
    vector = embeddings[ids].mean(0) - embeddings.mean(0)
    return vector * like.norm() / vector.norm()


def _measure(
    concept: str,
    places: Sequence[VectorPlace],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    seeds: Sequence[int],
    measurements: Figures,
    tiny: bool,
) -> None:
    """Adds the figures of every method on one concept."""
    others = [one for one in CONCEPTS if one != concept]
    before = word_nll(model, tokenizer, [concept]), word_nll(model, tokenizer, others, OTHERS)
    forget, retain = texts([concept], "forget"), texts(others, "retain")
    held = places[:VECTORS]

    def figures(after: nn.Module, at: Sequence[VectorPlace]) -> tuple[float, ...]:
        changes = [vector_change(model, after, place) for place in at]
        return (
            word_nll(after, tokenizer, [concept]) - before[0],
            word_nll(after, tokenizer, others, OTHERS) - before[1],
            median(change.cosine for change in changes),
            median(change.jaccard for change in changes),
        )

    def destroyed(at: Sequence[VectorPlace]) -> tuple[float, ...]:
        runs = []
        for seed in seeds:
            needle = Needle(
                layers=tuple(place.layer for place in at),
                units=tuple(place.unit for place in at),
                noise=NOISE,
                scale="relative",
                noise_seed=seed,
            )
            runs.append(figures(needle.apply(model, forget, processing_class=tokenizer, copy=True), at))
        return tuple(map(fmean, zip(*runs, strict=True)))

    for count in COUNTS:
        measurements.setdefault(_needle(count), []).append(destroyed(places[:count]))
    generator = torch.Generator().manual_seed(seeds[0])
    units = torch.randint(model.config.intermediate_size, (VECTORS,), generator=generator).tolist()
    measurements.setdefault("random vectors", []).append(
        destroyed([VectorPlace(place.layer, unit) for place, unit in zip(held, units, strict=True)])
    )
    for name, method in METHODS.items():
        args = {**TRAINING, "max_steps": 1 if tiny else STEPS, "seed": seeds[0]}
        after = method.apply(copy.deepcopy(model), forget, retain, processing_class=tokenizer, args=args)
        measurements.setdefault(name, []).append(figures(after.eval(), held))


def _needle(count: int) -> str:
    return f"Needle, {count} vector{'s' * (count > 1)}"


def _checks(measurements: Figures, planted_first: bool, matches: Sequence[int]) -> tuple[Check, ...]:
    """The card's conditions, each a figure a concept."""

    def of(name: str, column: int) -> list[float]:
        return [figures[column] for figures in measurements[name]]

    def less(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
        return [one - other for one, other in zip(ours, theirs, strict=True)]

    ours, random = _needle(VECTORS), "random vectors"
    alike = [
        Check.by_seed(
            "claim", f"{name}: the median {what} of the concept's vectors stays above {bar}", values, ">", bar
        )
        for name in METHODS
        for what, values, bar in (("Jaccard", of(name, 3), 0.9), ("cosine", of(name, 2), 0.99))
    ]
    return (
        Check.by_seed(
            "set-up", "a concept has a vector with at least 10 of its words", [*map(float, matches)], ">=", 10
        ),
        *(
            Check.by_seed("set-up", f"{name} halves the probability of the concept's words", of(name, 0), ">=", log(2))
            for name in METHODS
        ),
        Check("mechanism", "a planted vector comes first for its words", planted_first),
        Check.by_seed("mechanism", f"{ours}: their Jaccard falls below 0.2", of(ours, 3), "<", 0.2),
        *alike,
        Check.by_seed(
            "claim", f"{ours}: the concept's words lose more than others'", less(of(ours, 0), of(ours, 1)), ">", 0
        ),
        Check.by_seed(
            "control",
            "as much noise on random vectors of the same blocks makes the concept's words lose less",
            less(of(ours, 0), of(random, 0)),
            ">",
            0,
        ),
    )


def headline(rows: Mapping[str, Sequence[Any]], extra: Mapping[str, Any]) -> str:
    """What is left of the vectors, and how much less likely the concept's words are."""
    ga, needle = (figure(rows, "GA", 3), figure(rows, _needle(VECTORS), 3))
    rises = (figure(rows, "GA", 0), figure(rows, _needle(VECTORS), 0))
    return f"Jaccard of the vectors {ga} after GA, {needle} after Needle; nll +{rises[0]} and +{rises[1]}"
