"""The training arguments of text methods: transformers' own, with other defaults."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ....errors import MethodError, unknown

__all__ = ["UnlearnArguments", "training_arguments"]


@dataclass
class UnlearnArguments(TrainingArguments):
    """transformers' TrainingArguments with defaults for unlearning, and three fields of ours.

    Learning rate, weight decay, epochs and warm-up are those of open-unlearning's TOFU experiments (its base configuration has no
    weight decay). The batch is not: theirs is 32 rows a step, 8 of 4 accumulated; here it is 8, unless more are accumulated.

    Args:
        output_dir: for checkpoints; None for a temporary folder that goes when training ends.
        resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one in `output_dir`.
        max_length: tokens a row may have; longer answers are cut, longer texts read in windows. None takes 512, or all of
            the model's positions where there are fewer.
        cache_references: keep what the loss needs from the model before unlearning on disk.
        warmup_epochs: epochs of linear warm-up, unless `warmup_steps` is given; all steps but one at most.
    """

    output_dir: str | None = field(default=None)
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    num_train_epochs: float = 10.0
    per_device_train_batch_size: int = 8
    lr_scheduler_type: str = "linear"
    logging_steps: float = 1
    logging_nan_inf_filter: bool = False
    save_strategy: str = "no"
    report_to: str | list[str] | None = "none"
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    disable_tqdm: bool | None = None
    max_length: int | None = None
    cache_references: bool = True
    warmup_epochs: float = 1.0

    def __post_init__(self) -> None:
        self.temporary = self.output_dir is None
        if self.output_dir is None:
            self.output_dir = str(Path(tempfile.gettempdir(), f"unwrite-{secrets.token_hex(8)}"))
        if self.disable_tqdm is None:
            self.disable_tqdm = True  # `training_progress` shows the steps, without a terminal too
        super().__post_init__()


def training_arguments(
    args: TrainingArguments | dict[str, Any] | None, defaults: Mapping[str, Any] | None = None
) -> UnlearnArguments:
    """Arguments from a dict of differences, which go before a method's own defaults."""
    if isinstance(args, UnlearnArguments):
        return args
    if isinstance(args, TrainingArguments):
        raise MethodError("args is a plain TrainingArguments; pass UnlearnArguments, or a dict of settings.")
    if args is not None and not isinstance(args, dict):
        raise MethodError(
            f"the training arguments are {type(args).__name__}; pass UnlearnArguments, or a dict of settings."
        )
    known = set(UnlearnArguments.__dataclass_fields__)
    for name in args or {}:
        if name not in known:
            raise MethodError(unknown("training argument", name, known))
    return UnlearnArguments(**{**(defaults or {}), **(args or {})})
