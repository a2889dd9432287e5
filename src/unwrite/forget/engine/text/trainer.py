"""One trainer for every objective: transformers' Trainer with paired rows, cached references and exact counts.

transformers divides a loss by the number of label tokens only when a batch has one top-level `labels`. Here every
term has its own count, so the counts of all parts are added up over the accumulated batch and all processes
before the first forward pass of a step, and each term is divided by its own.

Where several processes don't divide an epoch's rows, accelerate fills its last step up with rows from the start of the
epoch (`even_batches`); those count as any others.
"""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState

from .... import hub
from ....data.text.encoding import Encoded, numbered
from ....errors import MethodError, NotFinite, notice, setting
from ....models import anatomy as anatomy_of
from ....runs import remove_folder, seeded, training_progress
from .. import checkpoints
from ..batch import PairedBatch, make_parts, run
from ..freezing import only
from ..phase import Phase
from ..reads import layers_of, reads_outputs, reads_retain
from ..stream import Collator, EpochSampler, UnlearnRows
from .alternation import alternate
from .arguments import UnlearnArguments
from .descent import descend
from .fsdp import ShardingTrainer, sharded
from .reference import Reference, Wanted, compute

if TYPE_CHECKING:
    from peft import PeftModel

    from ...base import Objective
    from .work import TextWork

__all__ = ["UnlearnTrainer", "train"]


class UnlearnTrainer(ShardingTrainer):
    """Minimises the terms of one phase of an objective."""

    loss_is_scaled_for_ga = True
    control: TrainerControl

    def __init__(
        self, objective: Objective, phase: Phase, rows: UnlearnRows, reference: Reference, **options: Any
    ) -> None:
        self.objective, self.phase, self.rows, self.reference = objective, phase, rows, reference
        self.sampler = EpochSampler(rows)
        self.counts: dict[str, Tensor] = {}
        self._sums: dict[str, list[float]] = {}
        self._held: list[Any] = []
        super().__init__(train_dataset=rows, **options)
        self.add_callback(_TellEpoch(self.sampler))
        self.remove_callback(PrinterCallback)
        needed = objective.needed()
        self.layers = layers_of(needed)
        self.blocks = (
            [block.module for block in anatomy_of(self.accelerator.unwrap_model(self.model)).blocks]
            if self.layers
            else []
        )
        self.logits = not self.layers or reads_outputs(needed)
        self.retain_mask = objective.retain_positions()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The phase's own optimiser, or the arguments' (fused AdamW)."""
        if self.phase.optimiser is None:
            return super().create_optimizer(model)
        self.optimizer = self.phase.optimiser([p for p in self.model.parameters() if p.requires_grad])
        for group in self.optimizer.param_groups:
            group["lr"] *= self.phase.lr  # the arguments' rate has the factor already
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Collects one optimiser step's batches and counts rows, tokens, marked tokens and positions of every part."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        totals = {
            f"{part}.{unit}": 0
            for part in ("forget", "alternate", "retain")
            for unit in ("rows", "tokens", "positions", "marks", "unmarked")
        }
        for batch in batches:
            for name, part in make_parts(batch, self.retain_mask).present():
                totals[f"{name}.rows"] += part.labels.shape[0]
                tokens = part.labels[:, 1:] != -100
                marks = 0 if part.marks is None else int((tokens & part.marks[:, 1:]).sum())
                totals[f"{name}.tokens"] += int(tokens.sum())
                totals[f"{name}.positions"] += int(part.where.sum())
                totals[f"{name}.marks"] += marks
                totals[f"{name}.unmarked"] += int(tokens.sum()) - marks
        # Across processes: one all-reduce of fifteen numbers a step.
        counts = torch.tensor([float(v) for v in totals.values()], device=device)
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self.counts = dict(zip(totals, counts, strict=True))
        return batches, None

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers writes a checkpoint: aside, until it is whole."""
        return str(Path(super()._get_output_dir(trial), checkpoints.ASIDE))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers does, but whole or absent; see `checkpoints`."""
        aside = Path(self._get_output_dir(trial))
        first = self.is_world_process_zero()
        if first:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with checkpoints.writing(aside.parent):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if first:
                checkpoints.finish(
                    aside,
                    aside.parent,
                    self.state.global_step,
                    ended=self.control.should_training_stop,
                    callbacks=self.callback_handler.callbacks,
                    keep=self.args.save_total_limit,
                )
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As transformers does; peft, which would ask the Hub what the base's vocabulary was, takes it as unchanged."""
        with hub.closed(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not find a config file")
            super()._save(output_dir, state_dict)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The sum of all terms, each over its own count.

        Raises:
            NotFinite: the loss is no number any more.
        """
        total, totals, logs = self.total_of(model, make_parts(inputs, self.retain_mask))
        self.keep_logs(totals, logs)
        # Data parallelism averages gradients over processes; the counts are already global.
        return total * self.accelerator.num_processes

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As transformers does; where a phase has a descent of its own or updates apart, a step's last batch does it all."""
        if self.phase.descent is None and not self.phase.apart:
            return super().training_step(model, inputs, num_items_in_batch)
        self._held.append(self._prepare_inputs(inputs))
        if len(self._held) < self.current_gradient_accumulation_steps:
            return torch.zeros((), device=self.args.device)
        held, self._held = self._held, []
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        follow = descend if self.phase.descent is not None else alternate
        return follow(self, self.accelerator.unwrap_model(model), held)

    def update(self, model: nn.Module) -> None:
        """An update of the weights within a step, as transformers makes the one at its end."""
        if self.args.max_grad_norm > 0:
            self._clip_grad_norm(model)
        self.control = self.callback_handler.on_pre_optimizer_step(self.args, self.state, self.control)
        self.optimizer.step()
        self.control = self.callback_handler.on_optimizer_step(self.args, self.state, self.control)
        model.zero_grad()

    def total_of(
        self, model: nn.Module, batch: PairedBatch
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor | float]]:
        """The loss of a batch on this process, its terms over their counts, and what the objective logs."""
        self.reference.attach(batch)
        run(model, batch, layers=self.layers, blocks=self.blocks, logits=self.logits, to_end=self.is_fsdp_enabled)
        loss = self.phase.loss(batch)
        totals = {name: term.total(self.counts) for name, term in loss.terms.items()}
        total = torch.stack(list(totals.values())).sum()
        if not torch.isfinite(total):
            parts = ", ".join(f"{name} {value.item():.3g}" for name, value in totals.items())
            raise NotFinite(
                f"the loss stopped being finite at step {self.state.global_step + 1} ({parts}). "
                "Lower the learning rate, or stop earlier."
            )
        return total, totals, loss.logs

    def keep_logs(self, totals: dict[str, Tensor], logs: dict[str, Tensor | float]) -> None:
        for name, value in totals.items():
            self._sums.setdefault(f"{name}_loss", []).append(
                float(value.detach()) * self.current_gradient_accumulation_steps
            )
        for name, number in logs.items():
            self._sums.setdefault(name, []).append(float(number.detach() if isinstance(number, Tensor) else number))
        weight = self._sums.get("weight")
        if weight and self.state.global_step < 3 and weight[-1] < 1e-3:
            notice(
                f"the mean gradient weight is {weight[-1]:.1e} at step {self.state.global_step + 1}: the loss is "
                f"saturated, as happens with a large beta on long answers. Lower {setting('beta')}.",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the terms and of what the objective logs since the last line."""
        if self._sums and "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._sums.items()}
            self._sums = {}
        super().log(logs, start_time)


class _TellEpoch(TrainerCallback):
    """Sets the sampler's epoch before each epoch, also in the middle of a resumed one."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: object, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


def train(objective: Objective, work: TextWork) -> nn.Module:
    """Encodes the rows, computes references from the model as it is, and runs the phases one after the other."""
    objective = objective.fitted(work.model)
    args = work.args
    with seeded(args.seed), _own_use_cache(work.model):
        try:
            return _train(objective, work)
        finally:
            if args.temporary and args.output_dir is not None:
                remove_folder(args.output_dir)


@contextlib.contextmanager
def _own_use_cache(model: nn.Module) -> Iterator[None]:
    """Puts back what the model's configuration says of a cache, which transformers' trainer switches off for good."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before


def _train(objective: Objective, work: TextWork) -> nn.Module:
    work.check_reads(objective)
    rows = _rows(objective, work)
    if work.peft_config is not None:
        from peft import get_peft_model

        work = replace(work, model=get_peft_model(work.model, work.peft_config))
    adapted = hasattr(work.model, "peft_config")
    chosen = _adapters(work.model) if adapted else objective.trainable(work)
    with only(work.model, chosen, type(objective).__name__, thaw=adapted):
        # All references are taken before the first phase moves a weight.
        plans = [_plan(objective, phase, work, rows) for phase in work.phases(objective)]
        for number, plan in enumerate(plans, 1):
            if len(plans) > 1:
                folder = Path(work.args.output_dir or "")
                plan.args.output_dir = str(folder / f"phase-{number}")
                plan.args.resume_from_checkpoint = checkpoints.of_phase(
                    work.args.resume_from_checkpoint, number, folder
                )
            _train_phase(objective, plan, work, first=number == 1)
    return work.model.eval()


def _adapters(model: PeftModel) -> list[Tensor]:
    """What is trained of a model with adapters: those in use, which peft loads frozen, and what it trains beside."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    if hasattr(model.base_model, "set_adapter"):
        model.base_model.set_adapter(model.active_adapters)
    chosen = [parameter for parameter, _ in flags if parameter.requires_grad]
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    return chosen


def _rows(objective: Objective, work: TextWork, phase: Phase | None = None) -> dict[str, list[Encoded]]:
    """Every part's rows, or those that a phase brings in place of the work's; each window of a long text is a row."""
    source = phase or work
    sets: dict[str, Any] = {"forget": source.forget, "alternate": None, "retain": source.retain}
    if source.forget is not None:
        sets["alternate"] = objective.alternates(source.forget, work.args.seed)
        if sets["alternate"] is None and (missing := [name for name in objective.needed() if "alternate" in name]):
            raise MethodError(
                f"{type(objective).__name__} reads {missing[0]!r}, but its `alternates` gives no other answers."
            )
    return {name: numbered(work.encoded(part)) for name, part in sets.items() if part is not None}


@dataclass(frozen=True)
class _Plan:
    """A phase with its rows, what it needs from the model before, and its own copy of the arguments."""

    phase: Phase
    rows: UnlearnRows
    reference: Reference
    args: UnlearnArguments


def _plan(objective: Objective, phase: Phase, work: TextWork, rows: dict[str, list[Encoded]]) -> _Plan:
    if phase.forget is not None or phase.retain is not None:
        rows = rows | _rows(objective, work, phase)
    uses_retain = phase.stream != "forget" and (phase.stream != "paired" or reads_retain(objective.needed()))
    data = UnlearnRows(
        phase.stream,
        rows["forget"],
        rows.get("retain", ()) if uses_retain else (),
        rows.get("alternate", ()),
        work.args.seed,
    )
    args = copy.copy(work.args)
    args.learning_rate *= phase.lr
    if phase.batch_size is not None:
        args.per_device_train_batch_size = phase.batch_size
    if phase.epochs is not None:
        args.num_train_epochs = phase.epochs
    if not args.warmup_steps and args.warmup_epochs:
        # One step at least is at the full rate: a training of one step would else be none.
        args.warmup_steps = min(int(args.warmup_epochs * _steps_per_epoch(args, data)), _steps(args, data) - 1)
    return _Plan(phase, data, _reference(objective, work, rows, data, args), args)


def _steps_per_epoch(args: UnlearnArguments, data: UnlearnRows) -> int:
    return math.ceil(len(data) / (args.train_batch_size * args.gradient_accumulation_steps * args.world_size))


def _steps(args: UnlearnArguments, data: UnlearnRows) -> int:
    """Optimiser steps of the whole training."""
    if args.max_steps > 0:
        return args.max_steps
    return max(1, math.ceil(args.num_train_epochs * _steps_per_epoch(args, data)))


def _epochs(args: UnlearnArguments, data: UnlearnRows) -> int:
    """Passes over the rows that training begins; `max_steps` goes before `num_train_epochs`."""
    if args.max_steps > 0:
        return math.ceil(args.max_steps / _steps_per_epoch(args, data))
    return math.ceil(args.num_train_epochs)


def _train_phase(objective: Objective, plan: _Plan, work: TextWork, *, first: bool) -> None:
    output = Path(plan.args.output_dir or "")
    checkpoint = checkpoints.resumed_from(output, plan.args.resume_from_checkpoint, first=first)
    with sharded(work.model, plan.args) as model:
        trainer = UnlearnTrainer(
            objective,
            plan.phase,
            plan.rows,
            plan.reference,
            model=model,
            args=plan.args,
            data_collator=Collator(work.tokenizer.pad_token_id),
            callbacks=list(work.callbacks),
        )
        if checkpoint is not None and checkpoints.had_ended(checkpoint, work.callbacks):
            trainer._load_from_checkpoint(str(checkpoint))
            return
        with training_progress(trainer, type(objective).__name__):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _reference(
    objective: Objective,
    work: TextWork,
    rows: dict[str, list[Encoded]],
    data: UnlearnRows,
    args: UnlearnArguments,
) -> Reference:
    needed = objective.needed()
    nll = tuple(p for p, n in (("forget", "reference nll"), ("alternate", "reference alternate nll")) if n in needed)
    logits = tuple(p for p, n in (("forget", "reference logits"), ("retain", "reference retain logits")) if n in needed)
    layers = layers_of(needed, reference=True) if "retain" in rows else ()
    wanted = Wanted(nll, logits, layers, objective.retain_positions())
    if not (nll or logits or layers):
        return Reference()
    touched = dict(rows)
    if "retain" in rows and data.stream == "paired" and data.retain:
        touched["retain"] = [rows["retain"][i] for i in data.retain_rows(_epochs(args, data))]
    with _adapter_off(work.model):
        return compute(
            work.model,
            wanted,
            touched,
            blocks=[block.module for block in work.anatomy.blocks] if layers else [],
            pad_id=work.tokenizer.pad_token_id,
            batch_size=args.per_device_train_batch_size,
            disk=args.cache_references,
        )


def _adapter_off(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()
