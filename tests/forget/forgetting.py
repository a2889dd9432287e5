"""What the tests of forgetting share: one batch through an objective as the trainer does it, and short trainings."""

from __future__ import annotations

from typing import Any

import peft  # noqa: F401 - before the tests, whose collections pass over what is imported by then
import torch
from torch import Tensor
from transformers import TrainerCallback

from unwrite.data.text.encoding import Encoded, encode_all, pad
from unwrite.forget.base import Objective
from unwrite.forget.engine.batch import PairedBatch, make_parts, run
from unwrite.forget.engine.reads import layers_of, reads_outputs
from unwrite.forget.engine.text.reference import Reference, Wanted, compute
from unwrite.models import anatomy

# SGD moves weights by the gradient itself; AdamW's first steps are signs, which hide a wrong factor.
SGD = {
    "optim": "sgd",
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "warmup_epochs": 0.0,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
}


def references(objective: Objective, model: Any, rows: dict[str, list[Encoded]], disk: bool = False) -> Reference:
    """What the objective needs of the model as it is."""
    needed = objective.needed()
    nll = tuple(p for p, n in (("forget", "reference nll"), ("alternate", "reference alternate nll")) if n in needed)
    logits = tuple(p for p, n in (("forget", "reference logits"), ("retain", "reference retain logits")) if n in needed)
    layers = layers_of(needed, reference=True)
    blocks = [block.module for block in anatomy(model).blocks]
    wanted = Wanted(nll, logits, layers, objective.retain_positions())
    return compute(model, wanted, rows, blocks=blocks, pad_id=0, batch_size=4, disk=disk)


def forward(
    objective: Objective,
    model: Any,
    rows: dict[str, list[Encoded]],
    reference: Reference | None = None,
    *,
    side: str = "right",
    extra: int = 0,
) -> PairedBatch:
    """The rows as one batch after the forward pass, with `extra` more padding tokens on the chosen side."""
    tensors = {}
    for name, part in rows.items():
        stacked = pad(part, 0, side)
        for key, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100), ("marked", False)):
            if key not in stacked:
                continue
            at = (0, extra) if side == "right" else (extra, 0)
            stacked[key] = torch.nn.functional.pad(stacked[key], at, value=fill)
        tensors[name] = stacked
    batch = make_parts(tensors, objective.retain_positions())
    layers = layers_of(objective.needed())
    blocks = [block.module for block in anatomy(model).blocks]
    (reference or Reference()).attach(batch)
    return run(model, batch, layers=layers, blocks=blocks, logits=not layers or reads_outputs(objective.needed()))


def counts(batch: PairedBatch) -> dict[str, Tensor]:
    """Rows, label tokens and logit positions of every part, as the trainer counts them."""
    units = ("rows", "tokens", "positions", "marks", "unmarked")
    found = {f"{part}.{unit}": 0 for part in ("forget", "alternate", "retain") for unit in units}
    for name, part in batch.present():
        found[f"{name}.rows"] = len(part.labels)
        found[f"{name}.tokens"] = int((part.labels[:, 1:] != -100).sum())
        found[f"{name}.positions"] = int(part.where.sum())
        found[f"{name}.marks"] = 0 if part.marks is None else int(part.marked.sum())
        found[f"{name}.unmarked"] = found[f"{name}.tokens"] - found[f"{name}.marks"]
    return {name: torch.tensor(float(value)) for name, value in found.items()}


def value(objective: Objective, batch: PairedBatch, loss: Any = None) -> Tensor:
    """The loss of one batch, a scalar: all terms, each over its own count."""
    terms = (loss or getattr(objective, "total_loss", objective.loss))(batch).terms
    return torch.stack([term.total(counts(batch)) for term in terms.values()]).sum()


def encoded(forget: Any, retain: Any, tokenizer: Any, objective: Objective | None = None) -> dict[str, list[Encoded]]:
    """The parts an objective trains on, encoded."""
    rows = {"forget": encode_all(forget, tokenizer), "retain": encode_all(retain, tokenizer)}
    alternates = objective.alternates(forget, 0) if objective is not None else None
    if alternates is not None:
        rows["alternate"] = encode_all(alternates, tokenizer)
    return rows


def train(objective: Any, model: Any, forget: Any, retain: Any, tokenizer: Any, **options: Any) -> Any:
    """`apply` with SGD and the given differences in the training arguments."""
    outer = {name: options.pop(name) for name in ("peft_config", "callbacks", "copy", "holdout") if name in options}
    return objective.apply(model, forget, retain, processing_class=tokenizer, args={**SGD, **options}, **outer)


class KillAt(TrainerCallback):
    """Kills a training before its next step after `step`, when that step's checkpoint is written."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class StepCounter(TrainerCallback):
    """Counts optimiser steps."""

    taken = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.taken += 1


def weights(model: Any) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def gradients(loss: Tensor, model: Any) -> Tensor:
    """The gradient of a scalar with respect to all parameters, flat; zeros where it doesn't reach."""
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )
