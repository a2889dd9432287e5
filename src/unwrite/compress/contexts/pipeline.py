"""An ARC encoder and one of its decoders at work: texts become vectors once, and any number of prompts hold them.

passages = pipeline.embed(["...", "..."])                        # to keep: they are the same for every prompt and decoder
prompt = ["Document: ", passages[0], "\\nQuestion: who? Answer:"]
text = pipeline.generate([prompt], max_new_tokens=20)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...errors import DataError, MethodError, ModelError, setting
from .arc_encoder import ArcEncoder
from .inputs import DecoderInputs, MixedRow, mixed_inputs
from .settings import Purpose

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ArcPipeline", "CompressedText", "LearnedText", "Segment"]


@dataclass(frozen=True)
class CompressedText:
    """A text as an encoder's vectors, before any decoder's projector.

    Args:
        vectors: [vectors, width of the encoder].
        tokens: of the text, by the encoder's tokenizer.
    """

    vectors: Tensor
    tokens: int

    @property
    def slots(self) -> int:
        """Inputs of a decoder that it takes: its vectors and the learned one behind them."""
        return len(self.vectors) + 1


@dataclass(frozen=True)
class LearnedText:
    """A piece of text that a loss counts; where a row has one, its other text isn't counted."""

    text: str


Segment = str | LearnedText | CompressedText


class ArcPipeline:
    """Texts in, vectors between tokens, text out.

    Args:
        encoder: see `ArcEncoder`.
        decoder: a causal language model of transformers; only its token embeddings and its forward are used.
        encoder_tokenizer, decoder_tokenizer: of either; the decoder's where only one is given.
        index: the decoder's number among those of the encoder.
        batch_size: texts that `embed` reads at a time.

    Raises:
        MethodError: an encoder without a projector for that decoder, or with one of another width.
    """

    def __init__(
        self,
        encoder: ArcEncoder,
        decoder: PreTrainedModel,
        encoder_tokenizer: PreTrainedTokenizerBase,
        decoder_tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        index: int = 0,
        batch_size: int = 16,
    ) -> None:
        check_pair(encoder, decoder, index)
        self.encoder, self.decoder, self.index, self.batch_size = encoder, decoder, index, batch_size
        self.encoder_tokenizer = encoder_tokenizer
        self.decoder_tokenizer = decoder_tokenizer or encoder_tokenizer

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> list[CompressedText]:
        """Each text compressed, in evaluation mode and without gradients. Texts get no special tokens, as in the published code.

        Raises:
            DataError: a text without a token.
        """
        ids = [self.encoder_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        empty = next((number for number, one in enumerate(ids) if not one), None)
        if empty is not None:
            raise DataError(f"text {empty + 1} of {len(texts)} is empty: {texts[empty]!r:.40}. Leave it out.")
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        vectors: dict[int, Tensor] = {}
        mode, device = self.encoder.training, next(self.encoder.parameters()).device
        self.encoder.eval()
        try:
            for start in range(0, len(order), self.batch_size):
                some = order[start : start + self.batch_size]
                vectors |= dict(
                    zip(some, self.encoder.encode(*padded([ids[one] for one in some], device)), strict=True)
                )
        finally:
            self.encoder.train(mode)
        return [CompressedText(vectors[number], len(one)) for number, one in enumerate(ids)]

    def build_inputs(
        self,
        rows: Sequence[Sequence[Segment]],
        *,
        purpose: Purpose = "continuation",
        bos: bool = True,
        side: Literal["left", "right"] = "right",
    ) -> DecoderInputs:
        """What the decoder takes of each row of text and compressed texts.

        Args:
            rows: of segments, in order. Text is tokenised piece by piece.
            purpose: which learned vector ends a compressed text; "continuation" for inference.
            bos: where the decoder's tokenizer begins texts with a token of its own, put it first, once a row, also where a row begins
                with vectors, as the published code does for inference.
            side: where padding goes; "left" for generation.

        Raises:
            DataError: a row without a segment.
            MethodError: vectors of another width than the encoder's.
        """
        if not rows or not all(rows):
            raise DataError("a row has no segment. Give each at least one text or compressed text.")
        compressed = [one for row in rows for one in row if isinstance(one, CompressedText)]
        wrong = next((one for one in compressed if one.vectors.shape[-1] != self.encoder.width), None)
        if wrong is not None:
            raise MethodError(
                f"a compressed text has vectors of {wrong.vectors.shape[-1]} numbers, the encoder {self.encoder.width}. "
                "Compress it with this encoder."
            )
        device = next(self.encoder.parameters()).device
        vectors = [one.vectors.to(device) for one in compressed]
        projected = iter(self.encoder.project(vectors, decoder=self.index, purpose=purpose) if vectors else ())
        first = beginning(self.decoder_tokenizer) if bos else None
        mixed = [
            self._row(row, [next(projected) for one in row if isinstance(one, CompressedText)], first) for row in rows
        ]
        return mixed_inputs(mixed, self.decoder.get_input_embeddings(), side)

    def generate(self, rows: Sequence[Sequence[Segment]], *, bos: bool = True, **options: Any) -> list[str]:
        """The decoder's text after each row, without special tokens.

        Args:
            rows, bos: see `build_inputs`.
            options: of transformers' `generate`: `max_new_tokens`, `do_sample`, `past_key_values` with any cache, ...
        """
        return self.decoder_tokenizer.batch_decode(
            self.generate_ids(rows, bos=bos, **options), skip_special_tokens=True
        )

    @torch.no_grad()
    def generate_ids(self, rows: Sequence[Sequence[Segment]], *, bos: bool = True, **options: Any) -> Tensor:
        """The ids of what `generate` returns, [rows, new tokens]."""
        inputs = self.build_inputs(rows, bos=bos, side="left")
        model: Any = self.decoder
        output = model.generate(**inputs.model_inputs(), **options)
        return output if isinstance(output, Tensor) else output.sequences

    def _row(self, row: Sequence[Segment], vectors: list[Tensor], first: int | None) -> MixedRow:
        tokens: list[int] = [] if first is None else [first]
        marks, places = [False] * len(tokens), []
        marked = any(isinstance(one, LearnedText) for one in row)
        for segment in row:
            if isinstance(segment, CompressedText):
                places.append(len(tokens))
                continue
            text = segment if isinstance(segment, str) else segment.text
            ids = self.decoder_tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens += ids
            marks += [not marked or isinstance(segment, LearnedText)] * len(ids)
        return MixedRow(tokens, vectors, places, marks)


def beginning(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a tokenizer puts before every text; None where it puts none."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def padded(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and numbers of texts, [batch, longest] each, one text a row and padding to the right."""
    longest = max(map(len, ids))
    tokens = torch.tensor([[*one, *[0] * (longest - len(one))] for one in ids], device=device)
    texts = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids], device=device)
    return tokens, texts


def check_pair(encoder: ArcEncoder, decoder: PreTrainedModel, index: int) -> None:
    """Refuses a decoder that the encoder has no projector for.

    Raises:
        MethodError: no projector of that number, or one of another width than the decoder's token embeddings.
        ModelError: a decoder without token embeddings.
    """
    encoder.check_decoder(index)
    embed = decoder.get_input_embeddings()
    if embed is None:
        raise ModelError(f"{type(decoder).__name__} has no token embeddings that vectors could stand beside.")
    width, out = embed.weight.shape[1], encoder.settings.out_dims[index]
    if width != out:
        raise MethodError(
            f"the projector for decoder {index} gives vectors of {out} numbers, and {type(decoder).__name__} embeds tokens in "
            f"{width}. Take the decoder it was trained for, or add one to {setting('out_dims')}."
        )
