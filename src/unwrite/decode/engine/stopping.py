"""When a row ends: at an end token, at the maximal length, or where a stopping criterion of `generate` says so.

Asked after every committed token, in order, as plain decoding asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import StoppingCriteria, StoppingCriteriaList

    from .rows import Text


@dataclass
class Stopping:
    """When the texts of one call end.

    Args:
        max_length: tokens of prompt, its padding and answer together.
        ends: token ids that end a row; they are kept.
        criteria: transformers StoppingCriteria beside those two; each returns a tensor of booleans, or one plain.
    """

    max_length: int
    ends: frozenset[int] = frozenset()
    criteria: Sequence[StoppingCriteria] = ()

    def __call__(self, text: Text, scores: Tensor) -> bool:
        """Whether the row ends after its last token. text: `Text`; scores: [vocab] of that token."""
        if text.padded_length >= self.max_length or int(text.ids[-1]) in self.ends:
            return True
        return any(bool(torch.as_tensor(criterion(text.tensor, (scores[None],))).any()) for criterion in self.criteria)


def from_criteria(criteria: StoppingCriteriaList | None, max_length: int, ends: frozenset[int]) -> Stopping:
    """From a `StoppingCriteriaList`; what `Stopping` does itself is left out of it."""
    from transformers import EosTokenCriteria, MaxLengthCriteria

    own = [c for c in criteria or () if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)]
    lengths = [int(c.max_length) for c in criteria or () if isinstance(c, MaxLengthCriteria)]
    for criterion in criteria or ():
        if isinstance(criterion, EosTokenCriteria):
            ends = ends | frozenset(criterion.eos_token_id.flatten().tolist())
    return Stopping(min([max_length, *lengths]), ends, own)
