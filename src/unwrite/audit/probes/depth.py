"""Unlearning depth: how deep in the network the knowledge still answers when its states are patched into the model before.

The states of a source model behind block l, where they predict the telling tokens of the answer, replace those of the target:

    delta_l(source) = mean_t log p_target(y_t) - mean_t log p_{target, patched from the source behind l}(y_t)
    UDS = sum_l delta_l(reference) * clip(delta_l(unlearned) / delta_l(reference), 0, 1) / sum_l delta_l(reference)

over the blocks whose delta of the reference exceeds tau: those that hold what it never learnt. UDS is 1 where the unlearned model
lacks as much as the reference, 0 where it lacks nothing; the probe's value is 1 - UDS. (Lee, Kim & Jo, arXiv 2605.24614,
equations of section 3; checked against the official code's numbers.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data.text.encoding import Encoded
from ...data.text.examples import Example, ForgetSplit
from ...errors import MethodError
from ...models import anatomy
from ...runs import progress
from ...scoring import token_nll
from ...scoring.batches import by_length
from ..text.context import TextContext
from .base import Probe, Values
from .layers import begun_at, evenly, identity, replaced, run, states_at, states_of, telling, watched, with_states
from .prompts import asked, placed

__all__ = ["Depth", "depth_score"]


def depth_score(reference: Sequence[float], unlearned: Sequence[float], tau: float = 0.05) -> float | None:
    """UDS of one row from its deltas by block; None where no block's delta of the reference exceeds tau."""
    held = [(one, two) for one, two in zip(reference, unlearned, strict=True) if one > tau]
    total = sum(one for one, _ in held)
    return sum(one * min(max(two / one, 0.0), 1.0) for one, two in held) / total if held else None


@dataclass(frozen=True)
class Depth(Probe):
    """Unlearning depth: how much of the answer the model's states bring back inside the model before.

    Args:
        tau: the least delta, in nats a token, by which a block holds what the reference lacks.
        layers: blocks that are patched, evenly spaced and the last among them; None takes all, as the paper does.
    """

    tau: float = 0.05
    layers: int | None = None

    name: ClassVar[str] = "depth"
    way: ClassVar[str] = "putting its states into the model before"
    about: ClassVar[str] = "The model's inner states are put into the model before: how much of the answer they carry."
    weights: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = ("before", "oracle")

    def __post_init__(self) -> None:
        if not self.tau >= 0 or (self.layers is not None and self.layers < 1):
            raise MethodError(f"depth needs tau of at least 0 and one layer or more, not {self.tau} and {self.layers}.")

    def tested(self, split: ForgetSplit) -> list[Example]:
        return asked(split)

    def look(self, context: TextContext, references: Mapping[str, TextContext]) -> Values:
        before, oracle = references["before"], references["oracle"]
        lacking = self.deltas(oracle, before)
        own = self.deltas(context, before)
        scores = [depth_score(one, two, self.tau) for one, two in zip(lacking, own, strict=True)]
        return placed(context.split, asked(context.split), [None if uds is None else 1 - uds for uds in scores])

    def deltas(self, source: TextContext, target: TextContext) -> list[list[float]]:
        """Per row and block, what the target loses by the source's states, in nats a token; kept on disk."""
        rows = [target.once(("telling", row), partial(telling, row, target)) for row in asked(target.split)]
        ids = [[row.input_ids, [span.start, span.stop]] for row, span in rows]
        blocks = evenly(len(anatomy(target.model).blocks), self.layers)
        key = [ids, blocks, identity(target), target.batch_size]
        return source.remember("depth", key, lambda: patched_losses(source, target, rows, blocks))


@torch.inference_mode()
def patched_losses(
    source: TextContext, target: TextContext, rows: Sequence[tuple[Encoded, range]], blocks: Sequence[int]
) -> list[list[float]]:
    """Delta of every row and block. rows: a row with the places of its telling tokens."""
    encoded = [row for row, _ in rows]
    places = [range(span.start - 1, span.stop - 1) for _, span in rows]  # a state predicts the token behind it
    states = states_at(source, encoded, places, blocks)
    model, device = target.model, next(target.model.parameters()).device
    was_training = model.training
    model.eval()
    result: list[list[float]] = [[] for _ in rows]
    skips: bool | None = None
    for batch in progress(by_length([len(row.input_ids) for row in encoded], target.batch_size), "patching"):
        lines = [encoded[i] for i in batch]
        where = [places[i] for i in batch]
        read = sorted({place for span in where for place in span})
        with watched(model, blocks) as own:
            whole = _losses(run(target, lines, read), lines, where, read)
        if skips is None:  # of the family, so the first batch tells
            skips = _can_begin(target, lines, where, read, own, whole)
        for at, number in enumerate(blocks):
            patched = _patched(states_of(own[number]), where, [states[i][:, at].to(device) for i in batch])
            begun = begun_at(model, number, with_states(own[number], patched))
            with begun if skips else replaced(model, {number: lambda _, new=patched: new}):
                lost = _losses(run(target, lines, read), lines, where, read)
            for j, i in enumerate(batch):
                result[i].append(lost[j] - whole[j])
    model.train(was_training)
    return result


def _can_begin(
    target: TextContext,
    lines: Sequence[Encoded],
    where: Sequence[range],
    read: Sequence[int],
    own: Mapping[int, Any],
    whole: Sequence[float],
) -> bool:
    """Whether the blocks above one, given its states alone, say what the whole network says: in some families they look at others too."""
    first = min(own)
    try:
        with begun_at(target.model, first, own[first]):
            return _losses(run(target, lines, read), lines, where, read) == whole
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError):
        return False


def _patched(states: Tensor, places: Sequence[range], patches: Sequence[Tensor]) -> Tensor:
    states = states.clone()
    for j, (where, patch) in enumerate(zip(places, patches, strict=True)):
        states[j, list(where)] = patch.to(states.dtype)
    return states


def _losses(logits: Tensor, rows: Sequence[Encoded], places: Sequence[range], read: Sequence[int]) -> list[float]:
    """Mean loss of each row's telling tokens, in nats. logits: at the places that were read."""
    at = {place: i for i, place in enumerate(read)}
    losses = []
    for j, (row, where) in enumerate(zip(rows, places, strict=True)):
        targets = torch.tensor([row.input_ids[i + 1] for i in where], device=logits.device)
        losses.append(float(token_nll(logits[j, [at[i] for i in where]], targets).mean()))
    return losses
