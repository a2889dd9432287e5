"""The ordinary way to train a causal language model: AdamW, warm-up, linear decay, mean loss over the labelled tokens.

    L = -sum_t log p(token_t | tokens before) / (number of labelled tokens in the batch)

No surprises on purpose: what is forgotten later was learnt here, and so was what it is measured against. The order
of rows and the dropout of an epoch depend on (seed, epoch) alone, so a run that is killed goes on from its last
whole epoch to the same weights, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError, ModelError, NotFinite
from ..runs import drop, hash_file, hash_json, new_folder, progress, seal, sound, write_json
from .checkpoints import read_json
from .fitting import TrainRecipe
from .loading import load_model, model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["CausalTraining", "Start", "causal_loss", "causal_recipe", "fit_rows"]

_IGNORED = -100
BatchLoss = Callable[[nn.Module, list[Any], str], Tensor]  # model, rows, device -> mean loss


class TokenRow(Protocol):
    """A row of text that can be trained on: token ids and as many labels, -100 for none."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def labels(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class CausalTraining:
    """How a causal language model is trained.

    Args:
        epochs: passes over the rows, > 0.
        lr: peak learning rate, > 0.
        batch_size: rows a step, > 0.
        warmup: share of the steps over which the rate rises to its peak, 0 to 1; then it falls linearly to 0.
        weight_decay: AdamW's, on every parameter, >= 0.
        clip: largest gradient norm, > 0.
        device: where to train.
        muon: Muon (`torch.optim.Muon`, updates as large as AdamW's) for the matrices between embedding and head, AdamW for the rest.
            Where much of a small model's training is spent on learning to copy and to look up, it needs about half the steps.
        momentum: SGD with this momentum instead of AdamW, 0 to 1; None for AdamW.
    """

    epochs: int
    lr: float
    batch_size: int
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    device: str = "cpu"
    muon: bool = False
    momentum: float | None = None

    def __post_init__(self) -> None:
        conditions = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": 0 < self.lr < math.inf,
            "warmup": 0 <= self.warmup <= 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip": self.clip > 0,
            "momentum": self.momentum is None or (0 <= self.momentum < 1 and not self.muon),
        }
        wrong = next((name for name, holds in conditions.items() if not holds), None)
        if wrong:
            raise ModelError(f"{wrong}={getattr(self, wrong)!r} has no meaning. See CausalTraining for its range.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on: all but where it is trained."""
        fields = {name: value for name, value in asdict(self).items() if name != "device"}
        return {name: value for name, value in fields.items() if name not in ("muon", "momentum") or value}

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`."""
        rising = round(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (steps - step) / max(1, steps - rising)


def causal_recipe(
    start: PreTrainedConfig | str | Path,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    device: str = "cpu",
    muon: bool = False,
) -> TrainRecipe:
    """A recipe for `trained` on rows with `.input_ids` and `.labels`: lists of equal length, -100 for no label.

    Args:
        start: a transformers configuration (random weights from the seed), or anything `load_model` takes: a folder,
            a bundled name, a Hub id. Its content is in the hash.
        others: see `CausalTraining`.

    Raises:
        ModelError: a setting outside its range; a start that isn't there.
    """
    how = CausalTraining(epochs, lr, batch_size, warmup, weight_decay, clip, device, muon)
    begin = Start(start)

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        fit_rows(model, _rows(data, indices), how, seed, folder, causal_loss)

    return TrainRecipe(begin.build, fit, name="causal", settings={"version": 1, "start": begin.origin, **how.settings})


class Start:
    """What a training starts from.

    Args:
        given: a transformers configuration (random weights from the seed), or anything `load_model` takes: a folder, a
            bundled name, a Hub id.

    Attributes:
        origin: its content's hash, for a recipe's settings.

    Raises:
        ModelError: it isn't there, or is no whole model.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        if hasattr(given, "to_diff_dict"):
            config = given.to_dict()
            for unrelated in ("transformers_version", "_name_or_path"):
                config.pop(unrelated, None)
            self.origin = {"config": hash_json(config)}
            return
        folder = model_folder(given)
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} is not a whole model (no config.json). Merge an adapter first, then train it.")
        self.origin = {"weights": _folder_hash(folder)}

    def build(self, seed: int) -> nn.Module:
        """The model to train."""
        if "weights" in self.origin:
            return load_model(self.given)
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(self.given)
        return model


def fit_rows(
    model: nn.Module,
    rows: list[Any],
    how: CausalTraining,
    seed: int,
    folder: Path,
    loss: BatchLoss,
    *,
    begin: int = 0,
    stop_after: int | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    before_epoch: Callable[[int], None] | None = None,
) -> None:
    """Trains in place. What `loss` draws from torch's global generator is the same after a kill: each epoch seeds it.

    Args:
        begin: epochs to pass over, as if they were done: learning rates and orders of rows are those of the later ones.
        stop_after: epochs after which to stop, on the learning rates of the whole training.
        after_step: called after every update of the weights.
        before_epoch: called with the number of each epoch, from 0, before its first batch; after a kill with those that are left.
    """
    model.to(how.device).train()
    optimisers = _optimisers(model, how)
    per_epoch = math.ceil(len(rows) / how.batch_size)
    steps = how.epochs * per_epoch
    first = max(begin, _resume(model, optimisers, folder))
    with progress(steps, "training", done=first * per_epoch) as bar:
        last = how.epochs if stop_after is None else min(stop_after, how.epochs)
        for epoch in range(first, last):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            torch.manual_seed(seed * 1_000_003 + epoch)  # dropout
            if before_epoch is not None:
                before_epoch(epoch)
            order = torch.randperm(len(rows), generator=generator).tolist()
            for number in range(per_epoch):
                batch = [rows[i] for i in order[number * how.batch_size : (number + 1) * how.batch_size]]
                step = epoch * per_epoch + number
                value = _step(model, optimisers, batch, how, how.rate(step, steps), loss)
                if not math.isfinite(value):
                    raise NotFinite(
                        f"the loss is {value} at step {step + 1} of {steps} (lr {how.lr}). Lower the learning rate."
                    )
                if after_step is not None:
                    after_step(model)
                bar.say(f"loss {value:.3f}")
                bar.advance()
            if epoch + 1 < last:
                _checkpoint(model, optimisers, epoch + 1, folder)
    model.eval()


def _step(
    model: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    batch: list[Any],
    how: CausalTraining,
    lr: float,
    loss: BatchLoss,
) -> float:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr
    value = loss(model, batch, how.device)
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), how.clip)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()
    return value.item()


def _optimisers(model: nn.Module, how: CausalTraining) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon and AdamW."""
    if how.momentum is not None:
        return [torch.optim.SGD(model.parameters(), how.lr, how.momentum, weight_decay=how.weight_decay)]
    if not how.muon:
        return [torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)]
    network: PreTrainedModel = model
    ends = {
        id(end.weight) for end in (network.get_input_embeddings(), network.get_output_embeddings()) if end is not None
    }
    matrices = [one for one in model.parameters() if one.ndim == 2 and id(one) not in ends]
    inner = {id(one) for one in matrices}
    rest = [one for one in model.parameters() if id(one) not in inner]
    return [
        torch.optim.Muon(matrices, lr=how.lr, weight_decay=how.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=how.lr, weight_decay=how.weight_decay),
    ]


def causal_loss(model: nn.Module, batch: list[TokenRow], device: str) -> Tensor:
    """The mean cross-entropy of a batch's labelled tokens."""
    ids, mask, labels = _padded(batch, device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]  # [batch, length - 1, vocab]
    count = int((labels[:, 1:] != _IGNORED).sum())
    total = F.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=_IGNORED, reduction="sum"
    )
    return total / max(1, count)


def _padded(batch: list[TokenRow], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask, labels, each `[batch, longest]`, padded on the right with ids the mask hides."""
    longest = max(len(row.input_ids) for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, _IGNORED)
    for at, row in enumerate(batch):
        length = len(row.input_ids)
        ids[at, :length] = torch.as_tensor(row.input_ids)
        mask[at, :length] = 1
        labels[at, :length] = torch.as_tensor(row.labels)
    return ids.to(device), mask.to(device), labels.to(device)


def _rows(data: Sequence[TokenRow], indices: Sequence[int]) -> list[TokenRow]:
    rows = [data[index] for index in indices]
    for index, row in zip(indices, rows, strict=True):
        if len(row.input_ids) != len(row.labels):
            raise DataError(
                f"row {index} has {len(row.input_ids)} tokens and {len(row.labels)} labels. Give each token one."
            )
        if all(label == _IGNORED for label in row.labels[1:]):
            raise DataError(f"row {index} has no labelled token after its first: nothing can be learnt from it.")
    return rows


def _checkpoint(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], epoch: int, folder: Path) -> None:
    """Weights and optimiser moments after `epoch` whole epochs; the one before goes once this one is whole."""
    tensors = {f"model.{i}": tensor.detach().contiguous() for i, tensor in enumerate(_state(model))}
    for optimiser, first in _numbered(optimisers):
        for i, state in optimiser.state_dict()["state"].items():
            moments = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            tensors |= {f"optimiser.{first + i}.{key}": value.contiguous() for key, value in moments.items()}
    with new_folder(folder / f"epoch-{epoch}") as fresh:
        save_file(tensors, fresh / "state.safetensors")
        write_json(fresh / "epoch.json", {"epoch": epoch})
    seal(folder / f"epoch-{epoch}")
    for old in folder.glob("epoch-*"):
        if old.is_dir() and old.name != f"epoch-{epoch}":
            drop(old)


@torch.no_grad()
def _resume(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], folder: Path) -> int:
    """Restores the latest whole epoch and returns how many are done."""
    whole = sorted(folder.glob("epoch-*/epoch.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    epochs = [path for path in whole if sound(path.parent)]
    if not epochs:
        return 0
    tensors = load_file(epochs[-1].parent / "state.safetensors")
    for i, tensor in enumerate(_state(model)):
        tensor.copy_(tensors[f"model.{i}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value
    for optimiser, first in _numbered(optimisers):
        fresh = optimiser.state_dict()
        mine = {i: state[first + i] for group in fresh["param_groups"] for i in group["params"] if first + i in state}
        optimiser.load_state_dict({**fresh, "state": mine})
    return int(read_json(epochs[-1])["epoch"])


def _state(model: nn.Module) -> list[Tensor]:
    """Parameters, and what is kept beside them (running statistics)."""
    return [*model.parameters(), *model.buffers()]


def _numbered(optimisers: Sequence[torch.optim.Optimizer]) -> Iterator[tuple[torch.optim.Optimizer, int]]:
    """Each with the number of its first parameter, counted over all."""
    first = 0
    for optimiser in optimisers:
        yield optimiser, first
        first += sum(len(group["params"]) for group in optimiser.param_groups)


def _folder_hash(folder: Path) -> str:
    """Of everything that decides what is computed: the configuration and the weights."""
    parts = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return hash_json({path.name: hash_file(path) for path in parts if path.exists()})
