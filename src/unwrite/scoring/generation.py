"""Greedy answers for many prompts: left-padded, batched by length, in the order asked, ending where the model ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ..data.text.rendering import Spelling
from ..errors import DataError
from ..runs import progress
from .batches import by_length
from .lengths import positions_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token at which an answer ends: the model's own, the tokenizer's, and the one its chat template writes."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {own} if isinstance(own, int) else set(own or ())
    ends |= {Spelling(tokenizer).end(), tokenizer.eos_token_id}
    return sorted(int(end) for end in ends if end is not None)


@contextlib.contextmanager
def plain_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model has no generation defaults of its own: `generate` fills what a call leaves open with them."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    holders = [part for part in {id(m): m for m in (model, inner)}.values() if hasattr(part, "generation_config")]
    before = [part.generation_config for part in holders]
    try:
        for part in holders:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, own in zip(holders, before, strict=True):
            part.generation_config = own


def new_tokens_within(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """New tokens that fit behind the longest prompt within the model's positions."""
    positions, longest = positions_of(model), max(len(prompt) for prompt in prompts)
    if positions is None or longest + max_new_tokens <= positions:
        return max_new_tokens
    if longest >= positions:
        raise DataError(
            f"a prompt has {longest} tokens, and the model has positions for {positions}, so nothing can be written "
            "behind it. Shorten the question or its history."
        )
    return positions - longest


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    label: str = "generating",
    sample: bool = False,
) -> list[str]:
    """Greedy continuations as text, up to where the model ends its answer; one per prompt of token ids.

    Args:
        sample: draw each token from the model's distribution instead, by torch's global generator.

    Raises:
        DataError: a prompt that fills all of the model's positions.
    """
    answers = [""] * len(prompts)
    if not prompts:
        return answers
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    settings = {
        "max_new_tokens": new_tokens_within(model, prompts, max_new_tokens),
        "do_sample": sample,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end_ids(model, tokenizer),
    }
    for batch in progress(by_length([len(p) for p in prompts], batch_size), label):
        longest = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, longest - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[row, longest - len(prompts[i]) :] = 1
        with plain_defaults(model):
            output = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), **settings)
        for row, i in enumerate(batch):
            answers[i] = tokenizer.decode(output[row, longest:], skip_special_tokens=True)
    model.train(was_training)
    return answers
