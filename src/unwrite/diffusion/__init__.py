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
    from .parts.adablock import AdaBlock, DrawnBlocks, delimiters_of
    from .parts.credit import CreditDecoding, CreditThreshold
    from .parts.eoser import Ascending, AscendingBlocks, EOSReject
    from .parts.learn2pd import EoTP, LearnedSelect
    from .parts.localleap import LocalLeap, RandomNeighbours
    from .parts.prophet import Prophet, anchors
    from .parts.proposing import Confidence, EndLast, Gumbel, LeftToRight, Margin, NegativeEntropy, Nucleus, RandomOrder
    from .parts.rules import RCR, EarlyStop, Factor, Fading, FixedBlocks, NoEnd, Origin, ReMDM, Threshold, TopK, Uniform
    from .sampler import DiffusionOutput, Sampler
    from .training import (
        MaskedCollator,
        MaskedDiffusionTrainer,
        MaskedRow,
        mask_predictor_recipe,
        masked_diffusion_loss,
    )

_HOMES = {
    "parts.adablock": ("AdaBlock", "DrawnBlocks", "delimiters_of"),
    "adapter": ("MaskPredictor",),
    "base": (
        "Blocks", "Commit", "CommitRule", "Constraint", "Edit", "Logits", "Part", "Proposal", "Quota", "Score", "Step", "Stop",
    ),
    "block_cache": ("BlockCache",),
    "parts.credit": ("CreditDecoding", "CreditThreshold"),
    "parts.eoser": ("Ascending", "AscendingBlocks", "EOSReject"),
    "parts.learn2pd": ("EoTP", "LearnedSelect"),
    "likelihood": ("log_likelihood",),
    "parts.localleap": ("LocalLeap", "RandomNeighbours"),
    "parts.prophet": ("Prophet", "anchors"),
    "parts.proposing": (
        "Confidence", "EndLast", "Gumbel", "LeftToRight", "Margin", "NegativeEntropy", "Nucleus", "RandomOrder",
    ),
    "parts.rules": (
        "RCR", "EarlyStop", "Factor", "Fading", "FixedBlocks", "NoEnd", "Origin", "ReMDM", "Threshold", "TopK", "Uniform",
    ),
    "sampler": ("DiffusionOutput", "Sampler"),
    "training": (
        "MaskedCollator", "MaskedDiffusionTrainer", "MaskedRow", "mask_predictor_recipe", "masked_diffusion_loss",
    ),
}  # fmt: skip

__all__ = [
    "RCR",
    "AdaBlock",
    "Ascending",
    "AscendingBlocks",
    "BlockCache",
    "Blocks",
    "Commit",
    "CommitRule",
    "Confidence",
    "Constraint",
    "CreditDecoding",
    "CreditThreshold",
    "DiffusionOutput",
    "DrawnBlocks",
    "EOSReject",
    "EarlyStop",
    "Edit",
    "EndLast",
    "EoTP",
    "Factor",
    "Fading",
    "FixedBlocks",
    "Gumbel",
    "LearnedSelect",
    "LeftToRight",
    "LocalLeap",
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
    "Prophet",
    "Proposal",
    "Quota",
    "RandomNeighbours",
    "RandomOrder",
    "ReMDM",
    "Sampler",
    "Score",
    "Step",
    "Stop",
    "Threshold",
    "TopK",
    "Uniform",
    "anchors",
    "delimiters_of",
    "log_likelihood",
    "mask_predictor_recipe",
    "masked_diffusion_loss",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
