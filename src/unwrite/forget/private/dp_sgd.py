"""Differentially private stochastic gradient descent: each record's gradient is clipped, and noise covers what one can move.

Every step takes each record with probability q = B/N, whoever else is taken: a batch may be empty, and its step still adds noise and
still counts. (Abadi et al., arXiv 1607.00133; as the base of arXiv 2504.13774)

    theta <- theta - lr * (1/B) * ( sum_i g_i * min(1, C / |g_i|)  +  N(0, sigma^2 C^2 I) )

Sums and noise are in float32 whatever the weights are in: noise that bfloat16 rounds away protects nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import MethodError, ModelError, NotFinite, notice, setting, unknown
from ...runs import drop, hash_tensors, new_folder, progress, seal, sound
from ..engine.checks import require
from .accounting import epsilon_of, noise_for
from .chance import Chance
from .gradients import Batch, PerSample, RowLoss, check_trainable, gradients_by, trainable_weights

__all__ = ["DPSGD", "Spent", "clipped_sum", "private_fit"]

MakeBatch = Callable[[list[int]], Batch]
_PROBE = 64  # rows on which it is seen whether anything was learnt


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """How a base is trained under differential privacy, one record as the unit.

    Args:
        epsilon: what may be spent, > 0; infinite trains without noise, and without a guarantee.
        delta: the chance that the guarantee fails, below 1 over the number of records; None takes a tenth of that (ours).
        epochs: passes over the records in expectation, > 0.
        batch: records a step in expectation, > 0.
        rate: learning rate, > 0, constant.
        decay: weight decay, >= 0.
        clip: largest norm of a record's gradient, > 0; infinite only without noise.
        optimiser: "sgd" as the paper has it, or "adamw" (ours), whose steps don't shrink with the gradient.
        together: records whose gradients are in memory at once, > 0.
        per_sample: how gradients a record are taken, see `gradients_by`.
        secure: draw records and noise from the operating system instead of a seed. Whoever knows the seed can take the noise
            off again, so only this gives a guarantee against others; a seed is for experiments.
    """

    epsilon: float = 8.0
    delta: float | None = None
    epochs: float = 10.0
    batch: int = 16
    rate: float = 5e-5
    decay: float = 0.01
    clip: float = 1.0
    optimiser: Literal["sgd", "adamw"] = "sgd"
    together: int = 16
    per_sample: PerSample = "auto"
    secure: bool = False

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise MethodError(
                f"{setting('epsilon')} is {self.epsilon}; it must be above 0. Smaller is more private: 1 to 8 are common."
            )
        if self.delta is not None:
            require("delta", self.delta, above=0, below=1)
        for name in ("epochs", "batch", "rate", "together"):
            require(name, getattr(self, name), above=0)
        require("decay", self.decay, at_least=0)
        if not self.clip > 0 or (math.isinf(self.clip) and self.private):
            raise MethodError(f"{setting('clip')} is {self.clip}; it must be above 0, and finite where there is noise.")
        for name, allowed in (("optimiser", ("sgd", "adamw")), ("per_sample", get_args(PerSample))):
            if getattr(self, name) not in allowed:
                raise MethodError(unknown(name, getattr(self, name), allowed))

    @property
    def private(self) -> bool:
        """Whether there is any noise."""
        return math.isfinite(self.epsilon)

    def delta_of(self, records: int) -> float:
        """The delta for so many records.

        Raises:
            MethodError: it is no smaller than one over their number: then giving one record away whole is allowed.
        """
        delta = 0.1 / records if self.delta is None else self.delta
        if delta >= 1 / records:
            raise MethodError(
                f"{setting('delta')} is {delta:g} for {records} records; it must be below 1/{records} = {1 / records:g}, or a "
                "mechanism that publishes one of them whole would pass."
            )
        return delta

    def plan(self, records: int) -> Spent:
        """Rate, steps and noise for so many records.

        Raises:
            MethodError: a batch of more records than there are; a delta that is too large; an epsilon that no noise reaches.
        """
        if self.batch > records:
            raise MethodError(
                f"{setting('batch')} is {self.batch}, and there are {records} records. Take at most all of them."
            )
        delta, q = self.delta_of(records), self.batch / records
        steps = max(1, round(self.epochs / q))
        sigma = noise_for(self.epsilon, delta, q, steps)
        return Spent(q, sigma, steps, epsilon_of(q, sigma, steps, delta), delta)


@dataclass(frozen=True)
class Spent:
    """The account of one training.

    Args:
        q: chance of a record to be in a step.
        sigma: noise over the clip norm.
        steps: all of them, empty ones too.
        epsilon, delta: of one record, added or removed.
    """

    q: float
    sigma: float
    steps: int
    epsilon: float
    delta: float


def clipped_sum(gradients: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """The sum over records of gradients no longer than `clip`, in float32.

    Args:
        gradients: {name: [rows, *shape]}; a record's length is taken over all of them together.
    """
    flat = {name: value.float().flatten(1) for name, value in gradients.items()}  # [rows, weights]
    lengths = torch.stack([value.norm(dim=1) for value in flat.values()]).norm(dim=0)  # [rows]
    factors = (clip / lengths.clamp(min=1e-30)).clamp(max=1.0)
    return {name: (factors @ value).reshape(gradients[name].shape[1:]) for name, value in flat.items()}


def private_fit(
    model: nn.Module,
    make_batch: MakeBatch,
    records: int,
    loss: RowLoss,
    how: DPSGD,
    seed: int,
    plan: Spent | None = None,
    folder: Path | None = None,
) -> Spent:
    """Trains in place and returns what was spent.

    Args:
        make_batch: rows by their numbers, as tensors of `[rows, ...]`.
        records: how many there are.
        loss: `[rows]`, each of its own row alone.
        seed: of the choice of records, noise and dropout; without meaning to the first two where `how.secure`.
        plan: instead of the one `how` makes.
        folder: for checkpoints; a training that was killed goes on from the last, to the same weights where there is a seed.

    Raises:
        ModelError: batch normalisation; nothing to train; weights that moved otherwise than the optimiser says.
        MethodError: as `DPSGD.plan`.
        NotFinite: a gradient is no number.
    """
    check_trainable(model)
    plan = plan or how.plan(records)
    source, gradients = Chance(seed, how.secure), gradients_by(model, loss, how.per_sample)
    frozen = _frozen_hash(model)
    # Shared with the model where that is in float32.
    masters = {name: weight.detach().float() for name, weight in trainable_weights(model).items()}
    descent = _Descent(model, masters, how, plan)
    probe = make_batch(list(range(min(records, _PROBE))))
    before = _mean_loss(model, loss, probe)
    first = 0 if folder is None else descent.resume(folder)
    often = max(1, round(1 / plan.q))
    model.train()
    with torch.random.fork_rng(), progress(plan.steps, "private training", done=first) as bar:
        for step in range(first, plan.steps):
            source.at(step)
            torch.manual_seed(seed * 1_000_003 + step)  # dropout
            total = {name: torch.zeros_like(master) for name, master in masters.items()}
            for numbers in _parts(source.chosen(records, plan.q), how.together):
                for name, part in clipped_sum(gradients(make_batch(numbers)), how.clip).items():
                    total[name] += part
            descent.step(total, source, check=step == 0)
            if folder is not None and (step + 1) % often == 0 and step + 1 < plan.steps:
                descent.keep(folder, step + 1)
            bar.advance()
    model.eval()
    if frozen != _frozen_hash(model):
        raise ModelError(
            "weights that were not to be trained have moved, so the account of this training is void. Report it."
        )
    if not _mean_loss(model, loss, probe) < before:
        notice(
            "private training did not lower the loss: what is fine-tuned from it starts no better than before. Raise "
            f"{setting('rate')} or {setting('batch')}, or train more epochs."
        )
    return plan


class _Descent:
    """The steps of one training: noise on a clipped sum, over the expected batch, and the optimiser's update."""

    def __init__(self, model: nn.Module, masters: dict[str, Tensor], how: DPSGD, plan: Spent) -> None:
        self.model, self.masters, self.how, self.plan = model, masters, how, plan
        weights = list(masters.values())
        make = torch.optim.SGD if how.optimiser == "sgd" else torch.optim.AdamW
        self.optimiser = make(weights, lr=how.rate, weight_decay=how.decay)

    @torch.no_grad()
    def step(self, total: dict[str, Tensor], source: Chance, *, check: bool) -> None:
        """One step from the clipped sum.

        Args:
            check: compare every weight of the model with where the optimiser's formula puts it.
        """
        std = self.plan.sigma * self.how.clip if self.plan.sigma else 0.0
        for name, master in self.masters.items():
            noise = source.normal(std, master.shape).to(master.device)
            master.grad = (total[name] + noise) / self.how.batch
            if not torch.isfinite(master.grad).all():
                raise NotFinite(
                    f"the gradient of {name} is no number. Lower {setting('rate')}, or load the model in float32."
                )
        before = {name: master.clone() for name, master in self.masters.items()} if check else {}
        self.optimiser.step()
        for name, master in self.masters.items():
            weight = self.model.get_parameter(name)
            if weight.dtype != master.dtype:
                weight.copy_(master)
            if check:
                self._check(name, before[name], weight)

    def keep(self, folder: Path, done: int) -> None:
        """Stores weights and moments after so many steps; those before go once these are whole."""
        tensors = {f"weight.{name}": master.contiguous() for name, master in self.masters.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"moment.{number}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        with new_folder(folder / f"step-{done}") as fresh:
            save_file(tensors, fresh / "state.safetensors")
        seal(folder / f"step-{done}")
        for old in folder.glob("step-*"):
            if old.name != f"step-{done}":
                drop(old)

    @torch.no_grad()
    def resume(self, folder: Path) -> int:
        """Restores the last whole checkpoint and returns how many steps are done."""
        whole = [one for one in folder.glob("step-*") if one.name[5:].isdigit() and one.is_dir() and sound(one)]
        if not whole:
            return 0
        last = max(whole, key=lambda one: int(one.name[5:]))
        tensors = load_file(last / "state.safetensors")
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("moment."):
                _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        for name, master in self.masters.items():
            master.copy_(tensors[f"weight.{name}"])
            self.model.get_parameter(name).copy_(master)
        return int(last.name[5:])

    def _check(self, name: str, before: Tensor, weight: Tensor) -> None:
        """Adapters have been left behind, or moved twice, by what wraps them: then the account is of another model."""
        gradient, how = self.masters[name].grad, self.how
        assert gradient is not None
        if how.optimiser == "sgd":
            expected = before - how.rate * (gradient + how.decay * before)
        else:  # of a first step, both moments are the gradient's own
            expected = before * (1 - how.rate * how.decay) - how.rate * gradient / (gradient.abs() + 1e-8)
        apart = (weight.float() - expected.to(weight.dtype).float()).abs().max()
        if apart > 1e-5 * (before.abs().max() + (expected - before).abs().max()):
            raise ModelError(
                f"{name} did not move as the optimiser says (by {apart:.2g} too far), so the account would be of another model. "
                "Merge or remove what wraps the weights."
            )


def _parts(numbers: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


@torch.no_grad()
def _mean_loss(model: nn.Module, loss: RowLoss, batch: Batch) -> float:
    """Of some rows, in evaluation mode. It is seen by whoever trains alone, and is in no record: it is not private."""
    model.eval()
    return float(loss(model, batch).mean())


def _frozen_hash(model: nn.Module) -> str:
    return hash_tensors({name: weight for name, weight in model.named_parameters() if not weight.requires_grad})
