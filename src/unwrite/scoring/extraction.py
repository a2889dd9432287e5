"""How much of a passage a model says by itself: memorisation accuracy and extraction likelihood.

    MA   = 1/T * sum_t 1[argmax p(. | prefix, x_<t) = x_t]
    EL_n = mean over starts t of OVERLAP_n(greedy continuation of (prefix, x_<t), x_>=t),   t with n tokens or more left
    OVERLAP_n(a, b) = share of b's n-grams, counted with multiplicity, that a has: |[g in ngrams(a) : g in ngrams(b)]| / |ngrams(b)|

A passage is a prefix and what follows it: of a whole text x_1..x_T its first token and the rest, of a secret the tokens before
it and the secret. (arXiv 2210.01504, section 3.2; for secrets arXiv 2509.13755)

Greedy continuations from different starts are the same text wherever the same token is the first that the model gets wrong.
So one teacher-forced pass and one generation for each wrong token give every start's continuation, and a perfect memoriser
needs no generation at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

import torch

from ..data.text.encoding import IGNORE, Encoded
from ..errors import DataError
from ..runs import progress
from .batches import by_length
from .generation import plain_defaults
from .likelihood import score_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Extraction",
    "Passage",
    "extraction",
    "extraction_likelihood",
    "memorisation_accuracy",
    "overlap",
    "secret_passages",
    "starts_of",
]

PREFIX_TOKENS, SECRET_TOKENS = 128, 32  # of the paper


@dataclass(frozen=True)
class Passage:
    """What a model is given and what should follow.

    Args:
        prefix: token ids before, at least one.
        target: token ids that follow, at least one.
    """

    prefix: tuple[int, ...]
    target: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prefix or not self.target:
            raise DataError("a passage needs a token before it and one to say. Leave out what begins or ends a text.")

    @classmethod
    def whole(cls, ids: Sequence[int]) -> Passage:
        """A text of token ids from its second token on."""
        return cls(tuple(ids[:1]), tuple(ids[1:]))

    def encoded(self) -> Encoded:
        """As a row whose labels are the target."""
        labels = [IGNORE] * len(self.prefix) + list(self.target)
        return Encoded([*self.prefix, *self.target], labels)


def secret_passages(
    row: Encoded, *, prefix_tokens: int = PREFIX_TOKENS, secret_tokens: int = SECRET_TOKENS
) -> list[Passage]:
    """Each run of marked tokens of a row with what stands before it; a run that begins the row starts at its second token.

    Args:
        prefix_tokens: what is kept of the tokens before, from the right.
        secret_tokens: what is kept of the run, from the left.
    """
    marks, passages, at = row.marked or [], list[Passage](), 1
    while at < len(marks):
        end = at
        while end < len(marks) and marks[end]:
            end += 1
        if end > at:
            prefix = row.input_ids[max(0, at - prefix_tokens) : at]
            passages.append(Passage(tuple(prefix), tuple(row.input_ids[at : min(end, at + secret_tokens)])))
        at = max(end, at + 1)
    return passages


def memorisation_accuracy(correct: Sequence[bool]) -> float:
    """MA of one passage, in [0, 1]; not a number where there is no token. correct: [T], teacher forced."""
    return sum(correct) / len(correct) if len(correct) else nan


def overlap(continuation: Sequence[int], reference: Sequence[int], n: int) -> float:
    """OVERLAP_n, in [0, 1] for continuations no longer than the reference; not a number where that has fewer than n tokens."""
    grams = [tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)]
    there, said = set(grams), (tuple(continuation[i : i + n]) for i in range(len(continuation) - n + 1))
    return sum(one in there for one in said) / len(grams) if grams else nan


def starts_of(length: int, n: int, most: int | None = None) -> list[int]:
    """Positions of a target from which it is continued: all with n tokens left, or `most` of them, evenly spaced."""
    count = max(0, length - n + 1)
    if most is None or count <= most:
        return list(range(count))
    return [i * count // most for i in range(most)]


def extraction_likelihood(
    correct: Sequence[bool], target: Sequence[int], written: dict[int, Sequence[int]], n: int, most: int | None = None
) -> float:
    """EL_n of one passage, in [0, 1].

    A target of fewer than n tokens has 1 if the model says all of it greedily from the prefix, else 0.

    Args:
        correct: [T], whether each token of the target was the model's first choice, teacher forced.
        target: [T] token ids.
        written: {position of a wrong token: what the model writes greedily from there on}.
        most: starts at most, see `starts_of`.
    """
    if len(target) < n:
        return float(all(correct))
    values = []
    for start in starts_of(len(target), n, most):
        wrong = _first_wrong(correct, start)
        continuation = [*target[start:wrong], *written.get(wrong, ())] if wrong < len(target) else target[start:]
        values.append(overlap(continuation, target[start:], n))
    return sum(values) / len(values)


def _first_wrong(correct: Sequence[bool], start: int) -> int:
    """The first position from `start` whose token is not the model's own; the length where there is none."""
    return next((at for at in range(start, len(correct)) if not correct[at]), len(correct))


@dataclass(frozen=True)
class Extraction:
    """What was measured on some passages, and what it cost.

    Args:
        accuracy: MA of every passage.
        likelihood: {n: EL_n of every passage}.
        continuations, tokens: sequences that were generated, and the tokens of them.
    """

    accuracy: list[float]
    likelihood: dict[int, list[float]]
    continuations: int = 0
    tokens: int = 0

    def mean_accuracy(self) -> float:
        """Over passages; not a number where there are none."""
        return sum(self.accuracy) / len(self.accuracy) if self.accuracy else nan

    def mean_likelihood(self, n: int) -> float:
        """Over passages; not a number where there are none, or EL_n was not asked for."""
        values = self.likelihood.get(n, [])
        return sum(values) / len(values) if values else nan


def extraction(
    model: PreTrainedModel,
    passages: Sequence[Passage],
    ns: Iterable[int] = (),
    *,
    pad_id: int,
    ends: Iterable[int] = (),
    batch_size: int = 64,
    most: int | None = None,
    correct: Sequence[Sequence[bool]] | None = None,
) -> Extraction:
    """MA, and EL_n for every n asked for, of every passage, in the order given; neither batch size nor padding matters.

    Args:
        ns: n-gram lengths; none for MA alone, which takes one pass and no generation.
        pad_id: what shorter rows of a batch are filled with, unseen by the model.
        ends: tokens at which a continuation ends.
        most: starts of a passage at most, evenly spaced; None for all.
        correct: whether each token of each target was the first choice, where that is known.

    Raises:
        DataError: logits that are not finite.
    """
    if correct is None:
        rows = [passage.encoded() for passage in passages]
        scores = score_answers(model, rows, pad_id=pad_id, batch_size=batch_size, label="memorisation") if rows else []
        correct = [score.correct for score in scores]
    ns = tuple(ns)
    jobs = [
        (number, at)
        for number, (passage, right) in enumerate(zip(passages, correct, strict=True))
        for at in sorted({_first_wrong(right, start) for n in ns for start in starts_of(len(passage.target), n, most)})
        if at < len(passage.target)
    ]
    texts = _written(model, passages, jobs, pad_id, set(ends), batch_size)
    written: list[dict[int, Sequence[int]]] = [{} for _ in passages]
    for (number, at), text in zip(jobs, texts, strict=True):
        written[number][at] = text
    likelihood = {
        n: [
            extraction_likelihood(right, passage.target, said, n, most)
            for passage, right, said in zip(passages, correct, written, strict=True)
        ]
        for n in ns
    }
    accuracy = [memorisation_accuracy(right) for right in correct]
    return Extraction(accuracy, likelihood, len(jobs), sum(map(len, texts)))


@torch.inference_mode()
def _written(
    model: PreTrainedModel,
    passages: Sequence[Passage],
    jobs: Sequence[tuple[int, int]],
    pad_id: int,
    ends: set[int],
    batch_size: int,
) -> list[list[int]]:
    """What the model writes greedily in place of each target from a position on, as long as the target or to its end token."""
    texts: list[list[int]] = [[] for _ in jobs]
    prompts = [[*passages[number].prefix, *passages[number].target[:at]] for number, at in jobs]
    rooms = [len(passages[number].target) - at for number, at in jobs]
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": pad_id, "eos_token_id": sorted(ends) or None}
    # Batches of equal room, so that no row is written on beyond the model's positions.
    alike = [[i for i, room in enumerate(rooms) if room == each] for each in sorted(set(rooms), reverse=True)]
    batches = [
        [same[at] for at in batch] for same in alike for batch in by_length([len(prompts[i]) for i in same], batch_size)
    ]
    for batch in progress(batches, "extraction") if jobs else ():
        longest = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), longest), pad_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, longest - len(prompts[i]) :] = 1
        with plain_defaults(model):
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=rooms[batch[0]],
                **options,
            )
        for i, row in zip(batch, output[:, longest:].tolist(), strict=True):
            stop = next((at for at, token in enumerate(row) if token in ends), len(row) - 1)
            texts[i] = row[: stop + 1]
    model.train(was_training)
    return texts
