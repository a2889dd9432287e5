"""Which value vectors hold a concept: candidates by the words they name, a judge, and a test by disturbing them.

A vector is a candidate for a concept if many of its first 200 tokens are words of it. It holds the concept if noise on it
changes the answers to questions about the concept far more than those to other questions.
(Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv 2406.11614, section 3)

    gap = similarity(answers to other questions) - similarity(answers to related ones),  before against after v <- v + eps
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...data.text.encoding import encode_text
from ...errors import DataError, MethodError, setting
from ...models.layout import anatomy
from ...models.value_vectors import RankedVector, VectorPlace, noise_scale, rank_by_tokens, replaced, value_vector
from ...scoring import generate_answers, rouge_l
from ...scoring.bleu import bleu

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ConceptCandidate", "ConceptValidation", "coherence", "find_concepts", "judged", "validate_concept"]

Judge = Callable[[Sequence[str]], tuple[str, float]]


@dataclass(frozen=True)
class ConceptCandidate:
    """A value vector that may hold a concept.

    Args:
        concept: its name.
        vector: where the vector is, and how well it fits.
        words: the vector's first tokens as text, the furthest first.
        coherence: how alike these tokens are, see `coherence`.
        clarity: the judge's figure, 0 to 1; None before one was asked.
    """

    concept: str
    vector: RankedVector
    words: tuple[str, ...]
    coherence: float
    clarity: float | None = None


def find_concepts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    concepts: Mapping[str, Collection[str]],
    *,
    k: int = 200,
    at_least: int = 10,
    count: int = 10,
    drop: float = 0.3,
    both_ends: bool = True,
    layers: Sequence[int] | None = None,
) -> dict[str, list[ConceptCandidate]]:
    """The candidates for each concept, best first, from lists of words: a judge that needs no second model (ours).

    Args:
        concepts: words that belong to each concept; a token is one of them if it spells it whole, in any case.
        k: how many tokens of a vector's projection count; 200 in the paper.
        at_least: how many of them must be words of the concept, >= 1 (ours).
        count: candidates a concept, at most.
        drop, both_ends, layers: as `rank_by_tokens`.

    Raises:
        DataError: a concept of whose words the tokenizer spells none by one token.
        MethodError: `at_least` below 1.
    """
    if at_least < 1:
        raise MethodError(f"{setting('at_least')} is {at_least}; a candidate needs at least 1 word of its concept.")
    spelling = [tokenizer.decode([i]).strip().casefold() for i in range(len(anatomy(model).embeddings.weight))]
    sets = []
    for concept, words in concepts.items():
        wanted = {word.strip().casefold() for word in words} - {""}
        ids = [i for i, word in enumerate(spelling) if word in wanted]
        if not ids:
            raise DataError(
                f"no word of {concept!r} is a token of this tokenizer. Add shorter words, or parts of words."
            )
        sets.append(ids)
    ranked = rank_by_tokens(model, sets, k=k, count=count, drop=drop, both_ends=both_ends, layers=layers)
    embeddings = anatomy(model).embeddings.weight
    return {
        concept: [
            ConceptCandidate(concept, vector, tuple(spelling[i] for i in vector.top), coherence(vector.top, embeddings))
            for vector in vectors
            if vector.matches >= at_least
        ]
        for concept, vectors in zip(concepts, ranked, strict=True)
    }


def judged(candidates: Sequence[ConceptCandidate], judge: Judge, bar: float = 0.85) -> list[ConceptCandidate]:
    """The candidates whose words a judge finds clearly about one concept, under the name that it gives.

    Args:
        judge: takes a vector's words, and returns the concept's name and how clear it is, 0 to 1. The paper asks a strong
            language model.
        bar: clarity must be above it; 0.85 in the paper.

    Raises:
        MethodError: a clarity that is no number from 0 to 1.
    """
    clear = []
    for candidate in candidates:
        concept, clarity = judge(candidate.words)
        if not 0 <= clarity <= 1:
            raise MethodError(f"the judge's clarity for {concept!r} is {clarity}; it must be from 0 to 1.")
        if clarity > bar:
            clear.append(replace(candidate, concept=concept, clarity=clarity))
    return clear


@torch.no_grad()
def coherence(tokens: Sequence[int], embeddings: Tensor, first: int = 50) -> float:
    """The mean cosine between the input embeddings of a vector's first tokens, -1 to 1; nan for fewer than two (ours).

    Args:
        embeddings: `[vocabulary, hidden]`.
        first: tokens that count.
    """
    rows = torch.nn.functional.normalize(embeddings[list(tokens[:first])].float(), dim=-1)
    n = len(rows)
    if n < 2:
        return float("nan")
    return float((rows.sum(0).square().sum() - rows.square().sum()) / (n * (n - 1)))


@dataclass(frozen=True)
class ConceptValidation:
    """How alike answers before and after noise on a vector are: 1 for the same.

    Args:
        related, unrelated: mean BLEU of the answers to questions about the concept, and to others.
        related_rouge, unrelated_rouge: the same by ROUGE-L F1.
        bar: the gap that a vector which holds the concept exceeds.
    """

    related: float
    unrelated: float
    related_rouge: float
    unrelated_rouge: float
    bar: float = 0.2

    @property
    def gap(self) -> float:
        """By how much more related answers change."""
        return self.unrelated - self.related

    @property
    def holds(self) -> bool:
        """Whether the vector holds the concept, rather than nothing or everything."""
        return self.gap > self.bar


def validate_concept(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    place: VectorPlace,
    questions: Sequence[str],
    unrelated: Sequence[str],
    *,
    noise: float = 0.1,
    relative: bool = False,
    seed: int = 0,
    bar: float = 0.2,
    prompt: str = "Question: {question}\n Answer:",
    max_new_tokens: int = 100,
    batch_size: int = 16,
) -> ConceptValidation:
    """Disturbs one value vector, compares greedy answers with those before, and puts the vector back bit by bit.

    Args:
        questions, unrelated: about the concept, and about others.
        noise, relative: see `noise_scale`; the paper's 0.1 is for vectors of 4,096 entries.
        seed: of the noise.
        bar: see `ConceptValidation`; 0.2 in a digest of the paper.
        prompt: how a question is asked, with "{question}" in it.

    Raises:
        DataError: no questions of a kind.
        ModelError: a place that the model doesn't have.
    """
    if not questions or not unrelated:
        raise DataError("a vector is tested by questions about its concept and by others. Give at least one of each.")
    prompts = [encode_text(prompt.format(question=one), tokenizer) for one in (*questions, *unrelated)]

    def answers() -> list[str]:
        return generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)

    vector = value_vector(model, place)
    generator = torch.Generator().manual_seed(seed)
    disturbance = torch.randn(vector.shape, generator=generator) * noise_scale(vector, noise, relative=relative)
    before = answers()
    with replaced(model, {place: vector + disturbance.to(vector)}):
        after = answers()
    bleus = [bleu(*pair) for pair in zip(before, after, strict=True)]
    rouges = [rouge_l(*pair, stemmer=False).f1 for pair in zip(before, after, strict=True)]
    n = len(questions)
    return ConceptValidation(fmean(bleus[:n]), fmean(bleus[n:]), fmean(rouges[:n]), fmean(rouges[n:]), bar)
