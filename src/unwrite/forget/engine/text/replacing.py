"""Puts other embeddings in the place of a prompt's own while a model reads it, however the prompt is fed.

Two hooks, for one call: one on the model, which notes at what places the tokens of a forward stand; one on its input
embedding, whose output it changes. What counts is a token's place in its own text, so that a prompt of one token, a prompt
read in parts, drafts beside it, beams, padding on either side and a text that is read anew for every token are all the same:

    replaced:  a row's tokens are those of its prompt from some place on, and all before that place were read

What isn't a prompt's token, such as what was generated, or another text that somebody gives the model meanwhile, stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import ModelError

__all__ = ["Replacement", "replacing"]


@dataclass(frozen=True)
class Replacement:
    """What one prompt's tokens are replaced by.

    Args:
        ids: of all its tokens, [tokens].
        places: of those that are replaced, in order, [replaced].
        values: their embeddings, [replaced, width].
    """

    ids: Tensor
    places: Tensor
    values: Tensor


@contextlib.contextmanager
def replacing(
    model: nn.Module, replacements: Sequence[Replacement | None], mask: Tensor | None = None
) -> Iterator[None]:
    """Within the block the model reads the prompts of a batch with other embeddings.

    Args:
        model: whose forward is called, and which has the input embedding.
        replacements: one a prompt, in the batch's order; None for a prompt that stays as it is.
        mask: which tokens of the batch are no padding, for a forward that isn't told, [rows, tokens].

    Raises:
        ModelError: at the end, where not every prompt was read through this, so that the text written may tell what it must not.
    """
    if not any(replacements):
        yield
        return
    hook = _Replacing(replacements, mask)
    table: Any = model.get_input_embeddings()
    handles = [
        model.register_forward_pre_hook(hook.note, with_kwargs=True),
        table.register_forward_hook(hook.replace),
    ]
    try:
        yield
    finally:
        hook.over = True  # copies of the model made meanwhile have copies of the hooks
        for handle in handles:
            handle.remove()
    if not hook.complete:
        raise ModelError(
            "a flagged prompt was not read in the batch's order, so it can't be told whether it was corrupted. Ask it alone, or "
            "generate in another way."
        )


class _Replacing:
    """The hooks of one call, and how much of each prompt was read."""

    def __init__(self, replacements: Sequence[Replacement | None], mask: Tensor | None) -> None:
        self.replacements, self.mask = list(replacements), mask
        self.read = [0] * len(self.replacements)
        self.over = False
        self.inputs: Mapping[str, Any] = {}

    @property
    def complete(self) -> bool:
        """Whether every prompt was read to its end."""
        pairs = zip(self.replacements, self.read, strict=True)
        return all(one is None or read >= len(one.ids) for one, read in pairs)

    def note(self, _: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Keeps what a forward is given beside the tokens."""
        names = ("position_ids", "attention_mask", "past_key_values")
        self.inputs = {} if self.over else {name: inputs.get(name) for name in names}

    def replace(self, _: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The embeddings with those of flagged prompts replaced; None leaves them. output: [rows, tokens, width]."""
        ids = given[0] if given else None
        prompts = len(self.replacements)
        if self.over or not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) % prompts:
            return None
        copies = len(ids) // prompts  # beams and several answers a prompt are neighbours
        places, starts = self._places(ids)
        changed: Tensor | None = None
        read = list(self.read)
        for row, text in enumerate(ids.cpu()):
            number = row // copies
            one = self.replacements[number]
            part = None if one is None else self._part(one, self.read[number], text, places[row], starts[row])
            if one is None or part is None:
                continue
            column, first, last = part
            inside = (one.places >= first) & (one.places < last)
            if inside.any():
                changed = output.clone() if changed is None else changed
                columns = (one.places[inside] - first + column).to(output.device)
                changed[row, columns] = one.values[inside.to(one.values.device)].to(output)
            read[number] = max(read[number], last)
        self.read = read
        return changed

    def _part(
        self, one: Replacement, read: int, text: Tensor, places: Tensor | None, column: int
    ) -> tuple[int, int, int] | None:
        """(column, first place, place behind the last) of what a row holds of its prompt; None for another text.

        Args:
            read: places of the prompt that were read before.
            text: the row's tokens, [tokens].
            places: where they stand in its text, [tokens]; None to go on from what was read.
            column: of the first that is no padding.
        """
        first = read if places is None or column >= len(places) else int(places[column])
        last = min(len(one.ids), first + len(text) - column)
        if first > read or first < 0 or last <= first:
            return None
        width = last - first
        if not torch.equal(text[column : column + width], one.ids[first:last]):
            return None
        if places is not None and not torch.equal(places[column : column + width], torch.arange(first, last)):
            return None
        return column, first, last

    def _places(self, ids: Tensor) -> tuple[list[Tensor | None], list[int]]:
        """Where the tokens stand in their texts, and the column at which each row's begin."""
        rows, width = ids.shape
        mask, positions, cache = (
            self.inputs.get(name) for name in ("attention_mask", "position_ids", "past_key_values")
        )
        if not isinstance(positions, Tensor) or positions.dim() != 2 or positions.shape[1] != width:
            positions = None
        if mask is None and positions is None and self.mask is not None and self.mask.shape == ids.shape:
            mask = self.mask
        if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == rows and mask.shape[1] >= width:
            shown = mask.cpu().long()
            own = shown[:, -width:]
            return list((shown.cumsum(-1) - 1)[:, -width:]), [int(row.argmax()) if row.any() else width for row in own]
        if positions is not None:
            places = positions.cpu().expand(rows, -1)
            zeros = [
                (row == 0).nonzero()[:, 0] for row in places
            ]  # padding on the left has the place of the first token
            return list(places), [int(zero[-1]) if len(zero) else 0 for zero in zeros]
        length = getattr(cache, "get_seq_length", None)
        if length is not None or not any(self.read):
            start = int(length()) if length is not None else 0
            return [torch.arange(start, start + width)] * rows, [0] * rows
        return [None] * rows, [0] * rows
