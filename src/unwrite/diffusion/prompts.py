"""What a sampler takes as prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import MethodError
from .adapter import MaskPredictor

if TYPE_CHECKING:
    pass

__all__ = ["checked_prompts"]


def checked_prompts(prompts: Any, predictor: MaskPredictor, size: int, tokenizer: Any) -> list[list[int]]:
    """Ids of every prompt.

    Raises:
        MethodError: no prompt, the mask token in one, a canvas longer than the model's context, an empty prompt of a
            shifted model.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, Tensor):
        prompts = prompts.tolist() if prompts.dim() == 2 else [prompts.tolist()]
    if prompts and isinstance(prompts[0], int):
        prompts = [prompts]
    if not prompts:
        raise MethodError("there is no prompt. Give at least one.")
    if any(isinstance(prompt, str) for prompt in prompts) and tokenizer is None:
        raise MethodError("prompts are text, and there is no tokenizer. Pass one, or pass ids.")
    rows = [list(tokenizer(p)["input_ids"]) if isinstance(p, str) else [int(i) for i in p] for p in prompts]
    for number, row in enumerate(rows):
        if predictor.mask_id in row:
            raise MethodError(f"prompt {number} holds the mask token {predictor.mask_id}. Only the answer is masked.")
        if predictor.shift and not row:
            raise MethodError(
                f"prompt {number} is empty, and this model predicts a token from the one before. Give one."
            )
        if predictor.longest is not None and len(row) + size > predictor.longest:
            raise MethodError(
                f"prompt {number} has {len(row)} tokens; with {size} generated ones that is more than the model's "
                f"{predictor.longest} positions. Lower gen_length or cut the prompt."
            )
    return rows
