"""What an ARC encoder is trained on: going on with a text, writing it out again, and answers after compressed documents.

continuation     the first half of a piece is compressed, the second half is text to predict
reconstruction   a piece is compressed, and the text to predict is the piece itself
fine-tuning      documents compressed one by one, questions and answers between them as text, a loss on the last answer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import DataError, MethodError
from .inputs import MixedRow, decoder_loss, mixed_inputs
from .pipeline import LearnedText, beginning, padded
from .settings import Purpose

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "SHORTEST",
    "ContextRow",
    "ContextText",
    "PendingBatch",
    "Translator",
    "answering",
    "context_loss",
    "context_pieces",
    "continuation",
    "few_shot_row",
    "reconstruction",
]

SHORTEST = 7  # tokens of a piece: 6 with a token after each, as in the published code


@dataclass(frozen=True)
class ContextText:
    """A text of a training row that is compressed."""

    text: str


ContextRow = Sequence[str | LearnedText | ContextText]


@dataclass(frozen=True)
class PendingBatch:
    """A batch whose contexts aren't encoded yet.

    Args:
        contexts: ids of all texts to compress, by the encoder's tokenizer, row by row.
        rows: of text, by the decoder's tokenizer; each place waits for the next context.
        purpose: which learned vector follows each context.
        decoder: the number of the decoder that is to predict.
    """

    contexts: Sequence[Sequence[int]]
    rows: Sequence[PendingRow]
    purpose: Purpose
    decoder: int = 0


@dataclass(frozen=True)
class PendingRow:
    """Text of one row, with places for contexts; see `MixedRow`."""

    tokens: Sequence[int]
    places: Sequence[int]
    learned: Sequence[bool]


class Translator:
    """Ids of one tokenizer as ids of another, by way of the text.

    Args:
        source, target: tokenizers; ids stay as they are where both are one, or have one vocabulary.
    """

    def __init__(self, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
        self.source, self.target = source, target
        self.same = source is target or source.get_vocab() == target.get_vocab()

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """The same text; where the source's token of a beginning or an end stands in it, so does the target's."""
        if self.same:
            return list(ids)
        source, target = self.source, self.target
        text = source.decode(list(ids), skip_special_tokens=True)
        inner = target(text, add_special_tokens=False)["input_ids"]
        first = [target.bos_token_id] if source.bos_token_id in ids and target.bos_token_id is not None else []
        last = [target.eos_token_id] if source.eos_token_id in ids and target.eos_token_id is not None else []
        return [*first, *inner, *last]


def context_pieces(texts: Sequence[Sequence[int]], seq_len: int) -> list[list[int]]:
    """Stretches of at most 2 seq_len + 1 tokens of each text, one after another, without those of fewer than 7.

    Args:
        texts: token ids of each text, by the first decoder's tokenizer.
        seq_len: the most tokens that are compressed, and that are predicted after them, >= 3.

    Raises:
        MethodError: a `seq_len` below 3.
        DataError: no text is long enough.
    """
    if seq_len < 3:
        raise MethodError(f"pieces of {seq_len} tokens leave nothing to predict. Take at least 3, 256 in the paper.")
    cut = (list(text[start : start + 2 * seq_len + 1]) for text in texts for start in range(0, len(text), 2 * seq_len))
    pieces = [piece for piece in cut if len(piece) >= SHORTEST]
    if not pieces:
        raise DataError(f"none of {len(texts)} texts has {SHORTEST} tokens. Give longer ones.")
    return pieces


def continuation(
    pieces: Sequence[Sequence[int]], encode: Translator, decode: Translator, decoder: int = 0
) -> PendingBatch:
    """First halves as contexts; second halves as text, of which nothing is learnt where a context is one token over and over."""
    contexts, rows = [], []
    for piece in pieces:
        half = (len(piece) - 1) // 2
        context, text = piece[:half], decode(piece[half : 2 * half + 1])
        contexts.append(encode(context))
        rows.append(PendingRow(text, [0], [len({*context}) > 1] * len(text)))
    return PendingBatch(contexts, rows, "continuation", decoder)


def reconstruction(
    pieces: Sequence[Sequence[int]], encode: Translator, decode: Translator, seq_len: int, decoder: int = 0
) -> PendingBatch:
    """The first `seq_len` tokens of each piece as context, and as text."""
    contexts, rows = [], []
    for piece in pieces:
        text = decode(piece[:seq_len])
        contexts.append(encode(piece[:seq_len]))
        rows.append(PendingRow(text, [0], [True] * len(text)))
    return PendingBatch(contexts, rows, "reconstruction", decoder)


def answering(
    rows: Sequence[ContextRow],
    encoder_tokenizer: PreTrainedTokenizerBase,
    decoder_tokenizer: PreTrainedTokenizerBase,
    decoder: int = 0,
) -> PendingBatch:
    """Rows of text, texts to compress and answers, each document compressed by itself; the loss is on `LearnedText`.

    Raises:
        DataError: a row without an answer, or an empty text to compress.
    """
    contexts: list[list[int]] = []
    pending = []
    first = beginning(decoder_tokenizer)
    for number, row in enumerate(rows):
        tokens: list[int] = [] if first is None else [first]
        marks, places = [False] * len(tokens), []
        for segment in row:
            if isinstance(segment, ContextText):
                places.append(len(tokens))
                contexts.append(encoder_tokenizer(segment.text, add_special_tokens=False)["input_ids"])
                if not contexts[-1]:
                    raise DataError(f"row {number + 1} has an empty text to compress. Leave it out.")
                continue
            text = segment if isinstance(segment, str) else segment.text
            ids = decoder_tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens += ids
            marks += [isinstance(segment, LearnedText)] * len(ids)
        if not any(marks[1:]):
            raise DataError(f"row {number + 1} has no answer to learn. Give it one LearnedText behind other text.")
        pending.append(PendingRow(tokens, places, marks))
    return PendingBatch(contexts, pending, "continuation", decoder)


def few_shot_row(
    examples: Sequence[tuple[str, str, str]], end: str = "", *, most: int = 5
) -> list[str | LearnedText | ContextText]:
    """A row of documents, questions and answers, the documents to be compressed; the last answer is to be learnt.

    Args:
        examples: (document, question, answer); up to `most` in front of the last are kept, the nearest ones.
        end: what ends the last answer, as the decoder's token of an end.
    """
    if not examples:
        raise DataError("a row needs at least one document with question and answer.")
    row: list[str | LearnedText | ContextText] = []
    *shots, last = examples
    for document, question, answer in shots[len(shots) - most :] if len(shots) > most else shots:
        row += ["Document: ", ContextText(document), f"\nQuestion: {question}\nAnswer: {answer}\n\n"]
    document, question, answer = last
    return [
        *row,
        "Document: ",
        ContextText(document),
        f"\nQuestion: {question}\nAnswer:",
        LearnedText(f" {answer}{end}"),
    ]


def context_loss(
    encoder: torch.nn.Module, decoders: Sequence[PreTrainedModel], batch: PendingBatch, *, frozen: bool = False
) -> Tensor:
    """The mean cross-entropy of a batch's learned tokens, in nats, through encoder, projector and decoder.

    Args:
        encoder: an `ArcEncoder`, or a wrapper with its forward.
        frozen: compute no gradient of the encoder's layers.
    """
    weight = decoders[batch.decoder].get_input_embeddings().weight
    ids, texts = padded(batch.contexts, weight.device) if batch.contexts else (None, None)
    vectors = iter(
        encoder(ids, texts, decoder=batch.decoder, purpose=batch.purpose, frozen=frozen) if batch.contexts else ()
    )
    rows = [MixedRow(row.tokens, [next(vectors) for _ in row.places], row.places, row.learned) for row in batch.rows]
    inputs = mixed_inputs(rows, decoders[batch.decoder].get_input_embeddings())
    return decoder_loss(decoders[batch.decoder], inputs)
