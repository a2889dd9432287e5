"""The plain loop that runs an objective's phases on an image model.

One step: rows of the stream, a forward for the rows of each loader, the phase's terms each over its own count, a
backward, the optimiser. Which rows a step brings is a function of (seed, epoch), epochs counted over all phases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState

from ....data.images.images import ImageBatch, Images
from ....errors import DataError, MethodError, NotFinite
from ....models.vision_layout import logits_of
from ....runs import progress
from ..freezing import only
from ..phase import Phase
from ..reads import reads_retain
from ..stream import epoch_order, partner
from .batch import ImagePart, PairedImages, Table
from .resuming import LoopState, LoopStore

if TYPE_CHECKING:
    from ...base import Objective
    from .work import ImageWork

__all__ = ["train"]

UNITS = ("rows", "tokens", "positions")  # of an image, all one


def train(objective: Objective, work: ImageWork) -> nn.Module:
    """Runs the phases one after the other, in place; the model comes back in evaluation mode.

    Raises:
        ModelError: a model whose outputs don't fit the data.
        MethodError: nothing to train; a row alone where the model takes batch statistics.
        NotFinite: the loss is no number any more.
    """
    work.place()  # refuses what doesn't fit before anything is trained
    objective = objective.fitted(work.model)
    chosen = objective.trainable(work)
    with only(work.model, chosen, type(objective).__name__) as parameters, _seeded(work.args.seed):
        _Loop(objective, work, parameters, work.next_store()).run(work.phases(objective))
    return work.model.eval()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Dropout and whatever a loss draws; the caller's random state comes back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@dataclass
class _Loop:
    """What lasts over phases: optimisers, counters, callbacks, what the model before said."""

    objective: Objective
    work: ImageWork
    parameters: list[Tensor]
    store: LoopStore | None = None
    epoch: int = 0
    optimisers: dict[Any, torch.optim.Optimizer] = field(default_factory=dict)
    references: dict[str, Table] = field(default_factory=dict)
    state: TrainerState = field(default_factory=TrainerState)
    control: TrainerControl = field(default_factory=TrainerControl)
    optimiser: torch.optim.Optimizer | None = None
    sums: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needed = self.objective.needed()
        self.observes = bool({"features", "blocks"} & needed)

    def run(self, phases: Sequence[Phase]) -> None:
        total = sum(self._steps(phase) for phase in phases)
        if self.work.args.max_steps >= 0:
            total = min(total, self.work.args.max_steps)
        self.state.max_steps = total
        # What the model before said is taken before the first phase moves a weight.
        self.references = self._references(phases)
        ended = self._take_up(phases)
        self._event("on_init_end")
        self._event("on_train_begin")
        passes = [(phase, epoch) for phase in phases for epoch in range(math.ceil(self._epochs(phase)))]
        with progress(total, type(self.objective).__name__, done=self.state.global_step) as bar:
            for number, (phase, epoch) in enumerate(passes):
                if number < self.epoch or ended or self._stops():
                    continue
                self._run_epoch(phase, self._epochs(phase) - epoch, bar)
                self._keep(phases, ended=number + 1 == len(passes) or self._stops())
        self._event("on_train_end")

    def _take_up(self, phases: Sequence[Phase]) -> bool:
        """Goes on from the newest checkpoint, if asked; says whether training had ended there."""
        kept = None if self.store is None else self.store.newest(self.work.callbacks)
        if kept is None:
            return False
        self.work.model.load_state_dict(kept.model)
        for number, phase in enumerate(_each(phases)):
            if number in kept.optimisers:
                self._optimiser(phase).load_state_dict(kept.optimisers[number])
        torch.set_rng_state(kept.random)
        self.epoch, self.state.global_step = kept.epoch, kept.step
        self.state.epoch, self.state.log_history = kept.epoch, kept.history
        return kept.ended

    def _keep(self, phases: Sequence[Phase], ended: bool) -> None:
        """A checkpoint of all that the epochs to come depend on."""
        if self.store is None:
            return
        optimisers: dict[int, dict[str, Any]] = {}
        for number, phase in enumerate(_each(phases)):
            key = phase.optimiser or "arguments"
            if key in self.optimisers and key not in [one.optimiser or "arguments" for one in _each(phases)[:number]]:
                optimisers[number] = self.optimisers[key].state_dict()
        kept = LoopState(
            model=dict(self.work.model.state_dict()),
            optimisers=optimisers,
            random=torch.get_rng_state(),
            epoch=self.epoch,
            step=self.state.global_step,
            history=self.state.log_history,
            ended=ended,
        )
        self.store.keep(kept, self.work.callbacks)

    def _run_epoch(self, phase: Phase, share: float, bar: Any) -> None:
        """One pass over the stream, or the first `share` of it."""
        self._event("on_epoch_begin")
        self.work.model.train(self.work.args.mode == "train")
        steps = self._rows(phase, self.epoch)
        for rows in steps[: math.ceil(min(1, share) * len(steps))]:
            if self._stops():
                break
            self._event("on_step_begin")
            one: Phase | None = phase
            while one is not None:
                self._update(one, rows)
                one = one.then
            self.state.global_step += 1
            self._event("on_step_end")
            bar.advance()
        self.epoch += 1
        self.state.epoch = self.epoch
        self._event("on_epoch_end")
        self._log()

    def _update(self, phase: Phase, rows: dict[str, tuple[Images, Tensor]]) -> None:
        batch = self._forward(rows, together=phase.stream in ("mixed", "union"))
        loss = phase.loss(batch)
        totals = {name: term.total(self._counts(batch)) for name, term in loss.terms.items()}
        total = torch.stack(list(totals.values())).sum()
        if not torch.isfinite(total):
            parts = ", ".join(f"{name} {value.item():.3g}" for name, value in totals.items())
            raise NotFinite(
                f"the loss stopped being finite at step {self.state.global_step + 1} ({parts}). "
                "Lower the learning rate, or stop earlier."
            )
        for name, value in [*((f"{name}_loss", value) for name, value in totals.items()), *loss.logs.items()]:
            self.sums.setdefault(name, []).append(float(value.detach() if isinstance(value, Tensor) else value))
        self.optimiser = optimiser = self._optimiser(phase)
        total.backward()
        self._event("on_pre_optimizer_step")
        optimiser.step()
        self._event("on_optimizer_step")
        for parameter in self.parameters:  # an optimiser of some of them would leave the others' to the next
            parameter.grad = None

    def _forward(self, rows: dict[str, tuple[Images, Tensor]], together: bool) -> PairedImages:
        """The parts of a step with what the model says of them: a forward a part, or one for all."""
        parts = {name: self._part(data[at]) for name, (data, at) in rows.items()}
        groups = [list(parts.values())] if together else [[part] for part in parts.values()]
        for group in groups:
            pixels = torch.cat([part.pixels for part in group])
            if self.observes:
                seen = self.work.layout.observe(pixels)
                logits, features, blocks = seen.logits, seen.features, seen.blocks
            else:
                logits, features, blocks = logits_of(self.work.model, pixels), None, ()
            self.work.cost.add(len(pixels), 1, 1)
            start = 0
            for part in group:
                mine = slice(start, start + len(part.index))
                part.logits = logits[mine]
                part.features = None if features is None else features[mine]
                part.blocks = tuple(block[mine] for block in blocks)
                start = mine.stop
        return PairedImages(**parts)

    def _part(self, rows: ImageBatch) -> ImagePart:
        pixels, target, index = (tensor.to(self.work.device) for tensor in rows)
        part = ImagePart(index, pixels, target, self.epoch)
        for name, table in self.references.items():
            setattr(part, name, table.at(index))
        return part

    @staticmethod
    def _counts(batch: PairedImages) -> dict[str, Tensor]:
        sizes = {name: torch.tensor(float(len(part.index))) for name, part in batch.present()}
        sizes["all"] = torch.stack(list(sizes.values())).sum()
        return {f"{name}.{unit}": size for name, size in sizes.items() for unit in UNITS}

    def _optimiser(self, phase: Phase) -> torch.optim.Optimizer:
        """One a function that builds it, so that phases share it with its moments."""
        build: Callable[[list[Tensor]], torch.optim.Optimizer] = phase.optimiser or self.work.args.optimiser
        key = phase.optimiser or "arguments"
        if key not in self.optimisers:
            self.optimisers[key] = build(self.parameters)
            for group in self.optimisers[key].param_groups:
                group["initial_lr"] = group["lr"]
        for group in self.optimisers[key].param_groups:
            group["lr"] = phase.lr * group["initial_lr"]
        return self.optimisers[key]

    def _data(self, phase: Phase) -> tuple[Images | None, Images | None]:
        forget, retain = phase.forget or self.work.forget, phase.retain or self.work.retain
        return cast("Images | None", forget), cast("Images | None", retain)  # as `check_phase` made sure

    def _epochs(self, phase: Phase) -> float:
        return self.work.args.num_train_epochs if phase.epochs is None else phase.epochs

    def _steps(self, phase: Phase) -> int:
        return math.ceil(self._epochs(phase) * len(self._rows(phase, 0)))

    def _rows(self, phase: Phase, epoch: int) -> list[dict[str, tuple[Images, Tensor]]]:
        """For every step, the rows of each part by their positions in its set."""
        forget, retain = self._data(phase)
        f, r = len(forget or ()), len(retain or ())
        seed = self.work.args.seed
        order = epoch_order(phase.stream, f, r, seed, epoch)
        pairs = retain is not None and reads_retain(self.objective.needed())
        sets = {name: rows for name, rows in (("forget", forget), ("retain", retain)) if rows is not None}
        steps = []
        for rows in _cut(order, phase.batch_size or self.work.args.per_device_train_batch_size, self._lone_row()):
            at: dict[str, list[int]] = {"forget": [], "retain": []}
            for row in rows:
                if phase.stream in ("mixed", "union"):
                    at["forget" if row < f else "retain"].append(row if row < f else row - f)
                    continue
                if phase.stream != "retain":
                    at["forget"].append(row if phase.stream != "covering" else partner(seed, epoch, row, r, f))
                if phase.stream in ("retain", "covering"):
                    at["retain"].append(row)
                elif phase.stream == "paired" and pairs:
                    at["retain"].append(partner(seed, epoch, row, f, r))
            steps.append({name: (sets[name], torch.tensor(rows)) for name, rows in at.items() if rows})
        return steps

    def _lone_row(self) -> bool:
        """Whether a step may have a single row."""
        return self.work.args.mode == "eval" or not self.work.layout.with_statistics

    @torch.no_grad()
    def _references(self, phases: Sequence[Phase]) -> dict[str, Table]:
        """What the loss needs from the model before, of all rows of all phases, found by the rows' names."""
        needed = self.objective.needed()
        references = {"reference nll", "reference logits", "reference retain logits", "reference features"} & needed
        if not references:
            return {}
        sets: dict[int, Images] = {}
        for phase in phases:
            for rows in self._data(phase):
                if rows is not None:
                    sets.setdefault(id(rows), rows)
        chosen = _once(list(sets.values()))
        model, tables = self.work.model, {}
        if references - {"reference features"}:
            logits = torch.cat([self.work.outputs(model, rows) for rows in chosen])
            tables["reference_logits"] = _table(chosen, logits)
        if "reference nll" in references:
            if chosen[0].labels is None:
                raise DataError(
                    f"{type(self.objective).__name__} compares likelihoods of labels, and {chosen[0].name} has regression "
                    "targets. Use a method for regressors, such as Blindspot."
                )
            target = torch.cat([rows.target for rows in chosen]).to(self.work.device)
            tables["reference"] = _table(chosen, nn.functional.cross_entropy(logits.float(), target, reduction="none"))
        if "reference features" in references:
            features = torch.cat([self.work.features(model, rows) for rows in chosen])
            tables["reference_features"] = _table(chosen, features)
        return tables

    def _stops(self) -> bool:
        return self.control.should_training_stop or 0 <= self.work.args.max_steps <= self.state.global_step

    def _event(self, name: str, **more: Any) -> None:
        for callback in self.work.callbacks:
            tell = getattr(callback, name)
            tell(self.work.args, self.state, self.control, model=self.work.model, optimizer=self.optimiser, **more)

    def _log(self) -> None:
        """One line an epoch, into `state.log_history` and to whoever listens."""
        logs = {name: sum(values) / len(values) for name, values in self.sums.items()}
        self.sums = {}
        self.state.log_history.append({**logs, "epoch": self.epoch, "step": self.state.global_step})
        self._event("on_log", logs=logs)


def _each(phases: Sequence[Phase]) -> list[Phase]:
    """Every phase with those that follow in its steps, in order."""
    return [step for phase in phases for step in phase.steps()]


def _once(sets: Sequence[Images]) -> list[Images]:
    """The rows of all sets, those of a name once."""
    parts: list[Images] = []
    for rows in sets:
        new = torch.ones(len(rows), dtype=torch.bool)
        for other in parts:
            new &= ~torch.isin(rows.index, other.index)
        if new.any():
            parts.append(rows.where(new))
    return parts


def _table(sets: Sequence[Images], values: Tensor) -> Table:
    index = torch.cat([rows.index for rows in sets])
    order = torch.argsort(index)
    return Table(index[order].to(values.device), values[order.to(values.device)])


def _cut(order: list[int], size: int, lone: bool) -> list[list[int]]:
    """The rows a step; where a single row has no statistics, it goes with the step before.

    Raises:
        MethodError: there is but one row.
    """
    steps = [order[first : first + size] for first in range(0, len(order), size)]
    if lone or not steps or len(steps[-1]) > 1:
        return steps
    if len(steps) == 1 or size == 1:
        raise MethodError(
            "a step of one row has no batch statistics, which this model takes. Train with larger batches, or with "
            "args={'mode': 'eval'}."
        )
    return [*steps[:-2], steps[-2] + steps[-1]]
