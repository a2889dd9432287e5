"""A decoder's input of text and vectors: token embeddings, with the vectors of compressed texts between them.

    text[:i] ++ vectors ++ text[i:],   positions 0, 1, 2, ... over all of it       (ARC-Encoder, arXiv 2510.20535)

Tokens are predicted inside the stream of text: token k + 1 from the input at token k, whatever vectors stand between them. What the
decoder says at a vector is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import MethodError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["IGNORED", "DecoderInputs", "MixedRow", "decoder_loss", "mixed_inputs"]

IGNORED = -100


@dataclass(frozen=True)
class MixedRow:
    """One row of a decoder's input, before its tokens are embedded.

    Args:
        tokens: the ids of all its text, in order.
        learned: which tokens the loss counts, one a token; None for all.
        vectors: [n, dim] of each compressed text.
        places: before which token each of them stands, in ascending order; as many as there are tokens puts it at the end.
    """

    tokens: Sequence[int]
    vectors: Sequence[Tensor] = ()
    places: Sequence[int] = ()
    learned: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.places) or list(self.places) != sorted(self.places):
            raise MethodError(
                f"{len(self.vectors)} compressed texts stand before tokens {list(self.places)}. Give each a place, in ascending order."
            )
        if any(not 0 <= place <= len(self.tokens) for place in self.places):
            raise MethodError(
                f"a compressed text stands before token {max(self.places)} of {len(self.tokens)}. Take 0 to that."
            )
        if self.learned is not None and len(self.learned) != len(self.tokens):
            raise MethodError(
                f"{len(self.tokens)} tokens and {len(self.learned)} marks of what is learnt. Give each token one."
            )
        if not self.tokens and not self.vectors:
            raise MethodError("a row has neither text nor vectors. Leave it out.")

    def __len__(self) -> int:
        """Inputs of the decoder: tokens, and vectors of all compressed texts."""
        return len(self.tokens) + sum(len(one) for one in self.vectors)


@dataclass(frozen=True)
class DecoderInputs:
    """A batch as a decoder takes it.

    Args:
        inputs_embeds: [batch, length, dim].
        attention_mask: [batch, length], 0 for padding.
        position_ids: [batch, length], from 0 at a row's first input.
        labels: [batch, length], as transformers' models take them (the label at t is predicted at t - 1); -100 for none. A token that
            follows vectors has its label where the first of those vectors stands, for the token before them predicts it.
        is_text: [batch, length], True where an input is a token.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    is_text: Tensor

    def model_inputs(self) -> dict[str, Tensor]:
        """What a model's forward and `generate` take."""
        names = ("inputs_embeds", "attention_mask", "position_ids")
        return {name: getattr(self, name) for name in names}

    def text_logits(self, logits: Tensor) -> list[Tensor]:
        """The logits at each row's tokens, [tokens, vocabulary] each, of [batch, length, vocabulary]."""
        return [row[text] for row, text in zip(logits, self.is_text, strict=True)]


def mixed_inputs(rows: Sequence[MixedRow], embed: nn.Module, side: Literal["left", "right"] = "right") -> DecoderInputs:
    """A batch of rows, padded with zeros.

    Args:
        embed: the decoder's token embedding.
        side: where padding goes; "left" for generation.
    """
    if not rows:
        raise MethodError("there is no row. Give at least one.")
    device, dtype = embed.weight.device, embed.weight.dtype
    longest = max(map(len, rows))
    parts: dict[str, list[Tensor]] = {name: [] for name in ("inputs_embeds", "attention_mask", "labels", "is_text")}
    for row in rows:
        embeds, labels, is_text = _merged(row, embed, device, dtype)
        missing = longest - len(row)
        padding = (missing, 0) if side == "left" else (0, missing)
        parts["inputs_embeds"].append(F.pad(embeds, (0, 0, *padding)))
        parts["attention_mask"].append(F.pad(torch.ones(len(row), dtype=torch.long, device=device), padding))
        parts["labels"].append(F.pad(labels, padding, value=IGNORED))
        parts["is_text"].append(F.pad(is_text, padding))
    batch = {name: torch.stack(each) for name, each in parts.items()}
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return DecoderInputs(position_ids=positions, **batch)


def _merged(row: MixedRow, embed: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [length, dim], labels [length] and whether each is a token [length]."""
    tokens = torch.tensor(list(row.tokens), dtype=torch.long, device=device)
    text = embed(tokens).to(dtype)
    pieces, start, where = [], 0, []
    for place, vectors in zip(row.places, row.vectors, strict=True):
        pieces += [text[start:place], vectors.to(device=device, dtype=dtype)]
        where += [True] * (place - start) + [False] * len(vectors)
        start = place
    embeds = torch.cat([*pieces, text[start:]])
    is_text = torch.tensor(where + [True] * (len(row.tokens) - start), dtype=torch.bool, device=device)
    labels = torch.full((len(row),), IGNORED, dtype=torch.long, device=device)
    marks = [True] * len(row.tokens) if row.learned is None else list(row.learned)
    learned = torch.tensor(marks, dtype=torch.bool, device=device)
    before = is_text.nonzero()[:-1, 0]  # where each token but the last stands
    labels[before + 1] = torch.where(learned[1:], tokens[1:], IGNORED)
    return embeds, labels, is_text


def decoder_loss(decoder: PreTrainedModel, inputs: DecoderInputs) -> Tensor:
    """The mean cross-entropy of a decoder over all labelled tokens, in nats; 0 where there is none.

    Its head is computed at those columns alone that predict a labelled token in some row.
    """
    columns = (inputs.labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    if not len(columns):
        return inputs.inputs_embeds.sum() * 0.0
    model: Any = decoder
    logits = model(
        **inputs.model_inputs(), use_cache=False, logits_to_keep=columns
    ).logits  # [batch, columns, vocabulary]
    targets = inputs.labels[:, columns + 1]
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
