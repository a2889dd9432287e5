"""Texts in two halves, and a small frozen decoder that goes on with the second after the first, or after what stands for it.

Decoder and texts are those of `package_texts`. Whatever stands before it, the same tokens of a text are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compress.contexts.inputs import IGNORED, DecoderInputs, MixedRow, mixed_inputs
from ..runs import hash_json
from .package_texts import PackageTexts, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 40  # rows that are looked at together


class Pieces(list[list[int]]):
    """Stretches of text as token ids, with the content hash that `trained` asks for."""

    @property
    def hash(self) -> str:
        """Of all tokens."""
        return hash_json(list(self))


@dataclass(frozen=True)
class CompressedContexts:
    """Pieces of text and the decoder.

    Args:
        texts: the bed that text, tokenizer and decoder are of.
        half: tokens of a context, and tokens of the text after it.
        counted: of these, the first ones whose loss counts: later ones have enough text of their own before them. None for all.
    """

    texts: PackageTexts
    half: int
    counted: int | None = None

    @cached_property
    def decoder(self) -> PreTrainedModel:
        """The frozen decoder."""
        with torch.enable_grad():  # it may be trained now, whoever asks for it first
            model: PreTrainedModel = self.texts.load()
        model.requires_grad_(False)
        return model

    def pieces(self, split: Split) -> Pieces:
        """The texts of a split as one run, in pieces of twice a half and one token more: the last one is only predicted."""
        run = [token for row in self.texts.blocks[split] for token in row.input_ids]
        length = 2 * self.half
        return Pieces(run[start : start + length + 1] for start in range(0, len(run) - length, length))

    def context(self, piece: Sequence[int]) -> list[int]:
        """A piece's first half."""
        return list(piece[: self.half])

    def text(self, piece: Sequence[int]) -> list[int]:
        """What follows: one token that is given, then those that are predicted."""
        return list(piece[self.half :])

    def after_tokens(self, pieces: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]) -> list[float]:
        """The loss of each piece's text after tokens of its context, in nats a token.

        Args:
            kept: places in the context, in order, for each piece; none for no context.
        """
        return self.losses(
            [
                MixedRow([*(piece[at] for at in places), *self.text(piece)])
                for piece, places in zip(pieces, kept, strict=True)
            ]
        )

    def after_vectors(self, pieces: Sequence[Sequence[int]], vectors: Sequence[Tensor]) -> list[float]:
        """The loss of each piece's text after vectors of the decoder's width, in nats a token."""
        return self.losses([MixedRow(self.text(piece), [one], [0]) for piece, one in zip(pieces, vectors, strict=True)])

    @torch.no_grad()
    def losses(self, rows: Sequence[MixedRow]) -> list[float]:
        """The mean loss of the tokens that count, of each row; rows are of one length."""
        losses: list[float] = []
        for start in range(0, len(rows), BATCH):
            logits, targets = self.predicted(mixed_inputs(rows[start : start + BATCH], self.embeddings))
            nll = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            losses += nll[:, -self.half :][:, : self.counted].mean(1).tolist()
        return losses

    @torch.no_grad()
    def right(self, rows: Sequence[MixedRow]) -> float:
        """% of all tokens but the first of each row that are the decoder's likeliest one."""
        hits = []
        for start in range(0, len(rows), BATCH):
            logits, targets = self.predicted(mixed_inputs(rows[start : start + BATCH], self.embeddings))
            hits.append((logits.argmax(-1) == targets).flatten())
        return 100 * float(torch.cat(hits).float().mean())

    def predicted(self, inputs: DecoderInputs) -> tuple[Tensor, Tensor]:
        """Logits [rows, columns, vocabulary] and targets [rows, columns] of the columns that predict a token, in rows of one form."""
        columns = (inputs.labels[0, 1:] != IGNORED).nonzero()[:, 0]
        model: Any = self.decoder
        logits = model(**inputs.model_inputs(), use_cache=False, logits_to_keep=columns).logits
        return logits, inputs.labels[:, columns + 1]

    @property
    def embeddings(self) -> nn.Module:
        """The decoder's token embeddings."""
        embeddings: nn.Module = self.decoder.get_input_embeddings()
        return embeddings
