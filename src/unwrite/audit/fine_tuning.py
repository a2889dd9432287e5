"""Ordinary training by transformers' Trainer, as attacks and preparations of an audit need it: on encoded rows, nothing written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from ..data.text.encoding import Encoded, pad
from ..runs import scratch_folder, seeded, training_progress

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["adapted", "fine_tune"]


def adapted(model: Any, rank: int, alpha: int, seed: int) -> Any:
    """The model with LoRA adapters on all its linear layers, drawn by the seed; they change nothing as yet."""
    from peft import LoraConfig, get_peft_model

    with seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers has renamed
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, config)


def fine_tune(
    model: Any,
    rows: Sequence[Encoded],
    pad_id: int,
    *,
    seed: int,
    after_step: Callable[[int], None] | None = None,
    label: str = "",
    **arguments: Any,
) -> None:
    """Trains the model in place, with AdamW and without weight decay; the caller's random state is left as it was.

    Args:
        after_step: called with the number of each step that is done.
        label: what the progress line says; empty for none.
        arguments: of `TrainingArguments`: steps or epochs, rate, schedule, rows a batch.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Steps(TrainerCallback):
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            if after_step is not None:
                after_step(state.global_step)

    def collate(batch: list[dict[str, Encoded]]) -> dict[str, torch.Tensor]:
        tensors = pad([item["row"] for item in batch], pad_id)
        del tensors["index"]
        return tensors

    with seeded(seed), scratch_folder() as folder:
        settings = TrainingArguments(
            output_dir=str(folder),
            weight_decay=0.0,
            optim="adamw_torch",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
            dataloader_pin_memory=False,
            **arguments,
        )
        data = [{"row": row} for row in rows]
        trainer = Trainer(model, settings, train_dataset=data, data_collator=collate, callbacks=[Steps()])
        trainer.remove_callback(PrinterCallback)
        with training_progress(trainer, label) if label else nullcontext():
            trainer.train()
    model.zero_grad(set_to_none=True)
