"""ConceptVectors: whether unlearning changed the parameters that hold a concept, or only what the model says.

A concept's value vector v is compared with v' in the unlearned model: by its direction, by its length of way, and by the
200 tokens that each names. (Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv 2406.11614)

    cos(v, v'),   |v - v'|,   J = |T(v) & T(v')| / |T(v) | T(v')|,   T the first 200 tokens of E v

Of the benchmark, its jailbreak prompts (roles, stories, another language) and its count of vectors that halve a concept are not here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...data.text.encoding import encode_text
from ...errors import DataError, MethodError
from ...models.value_vectors import VectorPlace, output_embeddings, top_tokens, value_vector
from ...runs import conforms
from ...scoring import generate_answers, rouge_l
from ...scoring.bleu import bleu

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PUBLISHED = ("Concept", "Layer", "Dim", "QA", "unrelated_QA", "text_completion", "wikipedia_content")
QUESTION, COMPLETION = "Question: {}\n Answer:", "Please complete the following paragraph: {}"
# Words that say nothing of a text's subject (ours; the official code takes a published list).
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "i",
        "in",
        "is",
        "it",
        "its",
        "not",
        "of",
        "on",
        "or",
        "she",
        "that",
        "the",
        "their",
        "them",
        "they",
        "this",
        "to",
        "was",
        "we",
        "were",
        "which",
        "who",
        "will",
        "with",
        "you",
    ]
)


@dataclass(frozen=True)
class ConceptRecord:
    """A concept of the benchmark: where its vector is, and what is asked about it.

    Args:
        concept: its name.
        place: the vector.
        questions, unrelated: about the concept, and about others.
        halves: the first halves of texts about it, to be completed.
        text: an article on it.
    """

    concept: str
    place: VectorPlace
    questions: tuple[str, ...] = ()
    unrelated: tuple[str, ...] = ()
    halves: tuple[str, ...] = ()
    text: str = ""

    @classmethod
    def read(cls, file: str | Path) -> list[ConceptRecord]:
        """The records of a file as the benchmark publishes them: a JSON list.

        Raises:
            DataError: what is no such list, and a record without a field that it must have.
        """
        try:
            rows = json.loads(Path(file).read_text(encoding="utf-8"))
            records = [
                cls(
                    row["Concept"],
                    VectorPlace(int(row["Layer"]), int(row["Dim"])),
                    tuple(row["QA"]),
                    tuple(row["unrelated_QA"]),
                    tuple(half["First_half"] for half in row["text_completion"]),
                    row["wikipedia_content"],
                )
                for row in rows
            ]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            odd = [i for i, record in enumerate(records) if not conforms(record, cls)]
            if not odd:
                return records
            why = f"record {odd[0]} has a part of another kind"
        raise DataError(f"{file} holds no records of ConceptVectors ({why}). Each needs {', '.join(PUBLISHED)}.")


@dataclass(frozen=True)
class VectorChange:
    """How a value vector and its tokens changed.

    Args:
        cosine: between before and after, at most 1.
        distance: the length of the difference.
        jaccard: of both sets of tokens, each projected with its own model's embeddings, as the official code does.
        jaccard_before: the same with the embeddings before for both (ours): where heads are tied or trained, `jaccard`
            also falls because the embeddings moved.
        precise: tokens after that the article has, over those before; nan where there are none before.
        related: share of the tokens before that the article has which are still there; nan where there are none.
    """

    cosine: float
    distance: float
    jaccard: float
    jaccard_before: float
    precise: float = math.nan
    related: float = math.nan


@torch.no_grad()
def vector_change(
    before: nn.Module, after: nn.Module, place: tuple[int, int], *, k: int = 200, article: Collection[int] = ()
) -> VectorChange:
    """Compares one value vector of two models; no forward pass is run.

    Args:
        k: tokens of a projection that count.
        article: ids of the tokens of a text on the concept, see `article_tokens`.

    Raises:
        ModelError: a place that one of the models doesn't have.
        MethodError: models of different widths.
    """
    v, changed = (value_vector(model, place).double().cpu() for model in (before, after))
    if v.shape != changed.shape:
        raise MethodError(f"the vectors have {len(v)} and {len(changed)} entries. Compare a model with one made of it.")
    embeddings, own = (output_embeddings(model).cpu() for model in (before, after))
    first = _tokens(v, embeddings, k)
    then, then_before = _tokens(changed, own, k), _tokens(changed, embeddings, k)
    norms = float(v.norm() * changed.norm())
    on_topic = first & set(article)
    return VectorChange(
        cosine=min(float(v @ changed) / norms, 1.0) if norms else math.nan,
        distance=float((v - changed).norm()),
        jaccard=jaccard(first, then),
        jaccard_before=jaccard(first, then_before),
        precise=len(then & set(article)) / len(on_topic) if on_topic else math.nan,
        related=len(then & on_topic) / len(on_topic) if on_topic else math.nan,
    )


def jaccard(one: Collection[int], other: Collection[int]) -> float:
    """Shared tokens over all tokens of two sets, 0 to 1; nan for two empty ones."""
    union = set(one) | set(other)
    return len(set(one) & set(other)) / len(union) if union else math.nan


def article_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, stop_words: Collection[str] = STOP_WORDS
) -> frozenset[int]:
    """Ids of the tokens of a text that are no stop words, punctuation or special tokens."""
    ids = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    words = {i: tokenizer.decode([i]).strip().casefold() for i in ids - set(tokenizer.all_special_ids)}
    return frozenset(i for i, word in words.items() if any(map(str.isalnum, word)) and word not in stop_words)


@dataclass(frozen=True)
class AnswerChange:
    """How alike the answers of two models are, mean BLEU and ROUGE-L F1; nan where nothing was asked.

    Low is forgotten for questions and completions, high is preserved for unrelated questions.
    """

    questions_bleu: float
    questions_rouge: float
    completions_bleu: float
    completions_rouge: float
    unrelated_bleu: float
    unrelated_rouge: float


@dataclass(frozen=True)
class ConceptChange:
    """What unlearning did to one concept: to its vector, and to the answers."""

    concept: str
    place: VectorPlace
    vector: VectorChange
    answers: AnswerChange


def concept_changes(
    before: PreTrainedModel,
    after: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[ConceptRecord],
    *,
    k: int = 200,
    max_new_tokens: int = 100,
    batch_size: int = 16,
) -> list[ConceptChange]:
    """The benchmark's table: for each concept five figures on parameters and six on behaviour, of any unlearner.

    Args:
        before, after: the models; two are needed, for every figure is a comparison.
        max_new_tokens: of each answer; 100 in the paper, greedily.

    Raises:
        DataError: no records.
        ModelError, MethodError: as `vector_change`.
    """
    if not records:
        raise DataError(
            "there are no concepts to look at. Read them with ConceptRecord.read, or make them of the vectors that were found."
        )

    def said(model: PreTrainedModel, record: ConceptRecord) -> list[list[str]]:
        asked = [
            [QUESTION.format(one) for one in record.questions],
            [COMPLETION.format(one) for one in record.halves],
            [QUESTION.format(one) for one in record.unrelated],
        ]
        prompts = [encode_text(text, tokenizer) for part in asked for text in part]
        rows = iter(generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size))
        return [[next(rows) for _ in part] for part in asked]

    changes = []
    for record in records:
        article = article_tokens(record.text, tokenizer)
        vector = vector_change(before, after, record.place, k=k, article=article)
        pairs = [list(zip(*part, strict=True)) for part in zip(said(before, record), said(after, record), strict=True)]
        figures = [figure for part in pairs for figure in _alike(part)]
        changes.append(ConceptChange(record.concept, record.place, vector, AnswerChange(*figures)))
    return changes


def _alike(pairs: Sequence[tuple[str, str]]) -> tuple[float, float]:
    if not pairs:
        return math.nan, math.nan
    return fmean(bleu(*pair) for pair in pairs), fmean(rouge_l(*pair, stemmer=False).f1 for pair in pairs)


def _tokens(vector: torch.Tensor, embeddings: torch.Tensor, k: int) -> set[int]:
    return set(top_tokens(vector[None], embeddings, k).ids[0].tolist())
