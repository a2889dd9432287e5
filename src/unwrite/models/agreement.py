"""Whether two models are one: their outputs on the same short batch, and their weights.

What was merged, or written and read back, must answer as the model it came from. A batch of two short rows is enough
to see a head that lost its tie, an adapter that was added twice, or a weight that stayed random; it costs one forward
pass of each. The measure is relative, so that it means the same for every model:

    disagreement = |a - b| / |b|     over logits centred at each position's mean
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["allowed", "differing_weight", "disagreement", "free_memory", "outputs", "short_batch"]

_ALLOWED = {torch.float16: 0.02, torch.bfloat16: 0.1}  # rounding of weights and sums, over some thirty layers
_EXACT = 1e-4  # float32 and finer: the order of sums
_ELSEWHERE = 5e-3  # of a model on another device than the one read back: its convolutions may round to 10 bits (TF32)


def allowed(model: nn.Module) -> float:
    """The largest disagreement that rounding explains, in the coarsest number format of the model's weights."""
    weights = list(model.parameters())
    exact = _EXACT if all(weight.device.type == "cpu" for weight in weights) else _ELSEWHERE
    return max((_ALLOWED.get(weight.dtype, exact) for weight in weights), default=exact)


def short_batch(model: nn.Module) -> dict[str, Tensor] | None:
    """Two rows of eight tokens, or two pictures of noise; None for a model that takes neither.

    The rows are always the same and on the CPU.
    """
    config, takes = getattr(model, "config", None), getattr(model, "main_input_name", None)
    random = torch.Generator().manual_seed(0)
    if config is None:
        return None
    if takes == "input_ids":
        text = config.get_text_config()
        vocabulary = getattr(text, "vocab_size", None)
        if not vocabulary:
            return None
        length = min(8, getattr(text, "max_position_embeddings", None) or 8)
        ids = torch.randint(0, vocabulary, (2, length), generator=random)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {**batch, "decoder_input_ids": ids} if config.is_encoder_decoder else batch
    if takes == "pixel_values":
        size = getattr(config, "image_size", None) or 32
        height, width = size if isinstance(size, tuple | list) else (size, size)
        shape = 2, getattr(config, "num_channels", None) or 3, height, width
        return {"pixel_values": torch.randn(shape, generator=random)}
    return None


@torch.no_grad()
def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's logits, or its first output where it has none, in float32 on the CPU and in evaluation mode."""
    weight = next(model.parameters())
    inputs = {
        name: values.to(weight.device, weight.dtype if values.is_floating_point() else None)
        for name, values in batch.items()
    }
    with _evaluating(model):
        answer = model(**inputs)
    logits = getattr(answer, "logits", None)
    values: Tensor = answer[0] if logits is None else logits
    return values.float().cpu()


def disagreement(ours: Tensor, theirs: Tensor) -> float:
    """How far the first is from the second, relative to the second: 0 for equal, 1 and more for unrelated.

    Both are centred over their last axis first: what is added to all logits of a position changes no probability.
    Numbers that are not finite must be so in both.
    """
    if ours.shape != theirs.shape or not torch.equal(ours.isfinite(), theirs.isfinite()):
        return math.inf
    ours, theirs = (values.nan_to_num(0.0, 0.0, 0.0).double() for values in (ours, theirs))
    if ours.shape[-1] > 1:
        ours, theirs = (values - values.mean(-1, keepdim=True) for values in (ours, theirs))
    distance, size = float((ours - theirs).norm()), float(theirs.norm())
    return distance / size if size else distance


def free_memory() -> float:
    """Bytes that a second model may take."""
    import psutil

    return float(psutil.virtual_memory().available)


def differing_weight(ours: nn.Module, theirs: nn.Module) -> str | None:
    """The name of the first weight or persistent buffer that is not the same in both, or None.

    A weight that one of them has in a coarser number format is compared in that.
    """
    here, there = ours.state_dict(), theirs.state_dict()
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there or here[name].shape != there[name].shape:
            return name
        first, second = here[name].cpu(), there[name].cpu()
        common = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
        if not torch.equal(first.to(common).nan_to_num(), second.to(common).nan_to_num()):
            return name
    return None


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
