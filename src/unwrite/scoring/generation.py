"""Greedy answers for many prompts: left-padded, batched by length, in the order asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .batches import by_length, progress


@torch.inference_mode()
def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    label: str = "generating",
) -> list[str]:
    """Greedy continuations as text, special tokens removed; one per prompt of token ids."""
    answers = [""] * len(prompts)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for batch in progress(by_length([len(p) for p in prompts], batch_size), label):
        longest = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, longest - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[row, longest - len(prompts[i]) :] = 1
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for row, i in enumerate(batch):
            answers[i] = tokenizer.decode(output[row, longest:], skip_special_tokens=True)
    model.train(was_training)
    return answers
