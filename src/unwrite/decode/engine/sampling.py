"""How the target's logits become a token: the logits processors of `generate`, then the arg max or one draw.

`generate` draws with noise for every token of the vocabulary. Where no `generate` has to be followed (a GGUF file), one uniform
number does: a tenth of the time for 49,152 tokens.

Processors run only at the nodes the acceptance walk visits, each with that node's own text before it, in the order plain
decoding would call them: so one that keeps a state from call to call sees just what it would see without drafting.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import NotFinite

if TYPE_CHECKING:
    from transformers import LogitsProcessor, LogitsProcessorList

# Keep a state from call to call: calls for drafts, or for another row, would disturb the next of the target's.
STATEFUL = ("SynthIDTextWatermarkLogitsProcessor", "UnbatchedClassifierFreeGuidanceLogitsProcessor")


@dataclass
class Sampling:
    """How the target's logits become tokens in one call.

    Args:
        processors: called as processor(ids [1, length], scores [1, vocab]) -> scores, in order.
        do_sample: draw, or take the arg max.
        generator: of the draws; None for torch's own, which plain `generate` uses.
        inverts: draw with one uniform number. Equal in distribution to `generate`'s draw, another token at the same seed.
    """

    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()
    do_sample: bool = False
    generator: torch.Generator | None = None
    inverts: bool = False

    def scores(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Processed logits in float32. logits: [vocab], raw; ids: [1, length], the text before. Returns [vocab]."""
        scores = logits[None].to(copy=True, dtype=torch.float32)
        for processor in self.processors:
            scores = processor(ids, scores)
        return scores[0]

    def probabilities(self, logits: Tensor, ids: Tensor) -> Tensor:
        """What a token is drawn from, [vocab] float32; all on the arg max where nothing is drawn."""
        scores = self.scores(logits, ids)
        if self.do_sample:
            return scores.softmax(-1)
        return torch.zeros_like(scores).index_fill_(0, scores.argmax(), 1.0)

    def pick(self, scores: Tensor) -> int:
        """The token: one draw, as `generate` makes it unless `inverts`, or the arg max. scores: [vocab], processed."""
        if not self.do_sample:
            return int(scores.argmax())
        if self.inverts:
            return inverted(scores, self.generator)
        return int(torch.multinomial(scores[None].softmax(-1), 1, generator=self.generator))

    def of_row(self, row: int) -> Sampling:
        """For one row of a batch: what a processor of `generate` knows of every row is cut down to that one."""
        return replace(self, processors=tuple(_of_row(processor, row) for processor in self.processors))

    @property
    def plain(self) -> bool:
        """Whether the arg max of the raw logits is the token."""
        return not self.processors and not self.do_sample


def inverted(scores: Tensor, generator: torch.Generator | None = None) -> int:
    """The first token at which the distribution function of softmax(scores) exceeds a uniform number.

    Args:
        scores: [vocab] float32 logits; tokens at -inf are never drawn.

    Raises:
        NotFinite: a score is NaN or infinite, or none is left.
    """
    support = (scores != -torch.inf).nonzero()[:, 0]
    left = scores[support].double()
    if not len(left) or not left.sum().isfinite():
        raise NotFinite(
            "the target's scores hold NaN or infinity, or exclude every token: nothing can be drawn from them."
        )
    summed = (left - left.max()).exp().cumsum(0)
    number = torch.rand(
        (), generator=generator, dtype=torch.float64, device=None if generator is None else generator.device
    )
    place = torch.searchsorted(summed, number.to(summed.device) * summed[-1], right=True)
    return int(support[place.clamp(max=len(support) - 1)])


def from_processors(processors: LogitsProcessorList | None, do_sample: bool, inverts: bool = False) -> Sampling:
    """The sampling that a `LogitsProcessorList` describes."""
    return Sampling(tuple(processors or ()), do_sample, inverts=inverts)


def _of_row(processor: LogitsProcessor, row: int) -> LogitsProcessor:
    from transformers.generation import logits_process as known

    own: Any = copy.copy(processor)
    if isinstance(own, known.RepetitionPenaltyLogitsProcessor):
        if isinstance(own.prompt_ignore_length, Tensor):
            own.prompt_ignore_length = own.prompt_ignore_length[row : row + 1]
    elif isinstance(own, known.EncoderRepetitionPenaltyLogitsProcessor):
        own.encoder_input_ids = own.encoder_input_ids[row : row + 1]
    elif isinstance(own, known.EncoderNoRepeatNGramLogitsProcessor):
        own.batch_size, own.generated_ngrams = 1, own.generated_ngrams[row : row + 1]
    elif isinstance(own, known.PrefixConstrainedLogitsProcessor):
        own._prefix_allowed_tokens_fn = functools.partial(_allowed, own._prefix_allowed_tokens_fn, row)
    else:
        return processor  # one of the user's own may keep a state
    return own


def _allowed(allowed: Callable[[int, Tensor], list[int]], row: int, _: int, ids: Tensor) -> list[int]:
    return allowed(row, ids)
