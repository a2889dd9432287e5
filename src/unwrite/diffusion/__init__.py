"""Masked-diffusion language models: one denoising loop, made of parts that compose.

    Sampler(commit=Threshold(0.9), cache="dual")(model, tokenizer, prompts)

Nothing here imports torch until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .adapter import MaskPredictor
    from .base import Blocks, Commit, CommitRule, Constraint, Edit, Logits, Part, Proposal, Quota, Score, Step, Stop
    from .block_cache import BlockCache
    from .likelihood import log_likelihood
    from .proposing import Confidence, EndLast, Gumbel, LeftToRight, Margin, NegativeEntropy, Nucleus, RandomOrder
    from .rules import RCR, EarlyStop, Factor, Fading, FixedBlocks, NoEnd, Origin, ReMDM, Threshold, TopK, Uniform
    from .sampler import DiffusionOutput, Sampler
    from .training import (
        MaskedCollator,
        MaskedDiffusionTrainer,
        MaskedRow,
        mask_predictor_recipe,
        masked_diffusion_loss,
    )

_HOMES = {
    "adapter": ("MaskPredictor",),
    "base": (
        "Blocks", "Commit", "CommitRule", "Constraint", "Edit", "Logits", "Part", "Proposal", "Quota", "Score", "Step", "Stop",
    ),
    "block_cache": ("BlockCache",),
    "likelihood": ("log_likelihood",),
    "proposing": (
        "Confidence", "EndLast", "Gumbel", "LeftToRight", "Margin", "NegativeEntropy", "Nucleus", "RandomOrder",
    ),
    "rules": (
        "RCR", "EarlyStop", "Factor", "Fading", "FixedBlocks", "NoEnd", "Origin", "ReMDM", "Threshold", "TopK", "Uniform",
    ),
    "sampler": ("DiffusionOutput", "Sampler"),
    "training": (
        "MaskedCollator", "MaskedDiffusionTrainer", "MaskedRow", "mask_predictor_recipe", "masked_diffusion_loss",
    ),
}  # fmt: skip

__all__ = [
    "RCR",
    "BlockCache",
    "Blocks",
    "Commit",
    "CommitRule",
    "Confidence",
    "Constraint",
    "DiffusionOutput",
    "EarlyStop",
    "Edit",
    "EndLast",
    "Factor",
    "Fading",
    "FixedBlocks",
    "Gumbel",
    "LeftToRight",
    "Logits",
    "Margin",
    "MaskPredictor",
    "MaskedCollator",
    "MaskedDiffusionTrainer",
    "MaskedRow",
    "NegativeEntropy",
    "NoEnd",
    "Nucleus",
    "Origin",
    "Part",
    "Proposal",
    "Quota",
    "RandomOrder",
    "ReMDM",
    "Sampler",
    "Score",
    "Step",
    "Stop",
    "Threshold",
    "TopK",
    "Uniform",
    "log_likelihood",
    "mask_predictor_recipe",
    "masked_diffusion_loss",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
