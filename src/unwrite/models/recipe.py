"""The ordinary way to train a causal language model: AdamW, warm-up, linear decay, mean loss over the labelled tokens.

    L = -sum_t log p(token_t | tokens before) / (number of labelled tokens in the batch)

No surprises on purpose: what is forgotten later was learnt here, and so was what it is measured against. The order
of rows and the dropout of an epoch depend on (seed, epoch) alone, so a run that is killed goes on from its last
whole epoch to the same weights, bit for bit.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import DataError, ModelError, NotFinite
from ..runs import hash_file, hash_json, new_folder, write_json
from .checkpoints import read_json
from .fitting import TrainRecipe
from .loading import load_model, model_folder

__all__ = ["CausalTraining", "causal_recipe"]

_IGNORED = -100


@dataclass(frozen=True)
class CausalTraining:
    """Args:
    epochs: passes over the rows, > 0.
    lr: peak learning rate, > 0.
    batch_size: rows a step, > 0.
    warmup: share of the steps over which the rate rises to its peak, 0 to 1; then it falls linearly to 0.
    weight_decay: AdamW's, on every parameter, >= 0.
    clip: largest gradient norm, > 0.
    device: where to train.
    """

    epochs: int
    lr: float
    batch_size: int
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        wanted = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": 0 < self.lr < math.inf,
            "warmup": 0 <= self.warmup <= 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip": self.clip > 0,
        }
        wrong = next((name for name, holds in wanted.items() if not holds), None)
        if wrong:
            raise ModelError(f"{wrong}={getattr(self, wrong)!r} has no meaning. See CausalTraining for its range.")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`."""
        rising = round(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (steps - step) / max(1, steps - rising)


def causal_recipe(
    start: Any,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    device: str = "cpu",
) -> TrainRecipe:
    """A recipe for `trained` on rows with `.input_ids` and `.labels`: lists of equal length, -100 for no label.

    Args:
        start: a transformers configuration (random weights from the seed), or anything `load_model` takes: a folder,
            a bundled name, a Hub id. Its content is in the hash.
        others: see `CausalTraining`.

    Raises:
        ModelError: a setting outside its range; a start that isn't there.
    """
    how = CausalTraining(epochs, lr, batch_size, warmup, weight_decay, clip, device)
    if hasattr(start, "to_diff_dict"):
        config = start.to_dict()
        for unrelated in ("transformers_version", "_name_or_path"):
            config.pop(unrelated, None)
        origin = {"config": hash_json(config)}
    else:
        folder = model_folder(start)
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} is not a whole model (no config.json). Merge an adapter first, then train it.")
        origin = {"weights": _folder_hash(folder)}

    def build(seed: int) -> nn.Module:
        if "weights" in origin:
            return load_model(start)
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(start)
        return model

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        _fit(model, _rows(data, indices), how, seed, folder)

    settings = {"version": 1, "start": origin, **asdict(how)}
    del settings["device"]  # where it is trained is not what it is
    return TrainRecipe(build, fit, name="causal", settings=settings)


def _fit(model: nn.Module, rows: list[Any], how: CausalTraining, seed: int, folder: Path) -> None:
    model.to(how.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    per_epoch = math.ceil(len(rows) / how.batch_size)
    steps = how.epochs * per_epoch
    first = _resume(model, optimiser, folder)
    with tqdm(total=steps, initial=first * per_epoch, desc="training", delay=2, disable=None) as bar:
        for epoch in range(first, how.epochs):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            torch.manual_seed(seed * 1_000_003 + epoch)  # dropout
            order = torch.randperm(len(rows), generator=generator).tolist()
            for number in range(per_epoch):
                batch = [rows[i] for i in order[number * how.batch_size : (number + 1) * how.batch_size]]
                step = epoch * per_epoch + number
                loss = _step(model, optimiser, batch, how, how.rate(step, steps))
                if not math.isfinite(loss):
                    raise NotFinite(
                        f"the loss is {loss} at step {step + 1} of {steps} (lr {how.lr}). Lower the learning rate."
                    )
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if epoch + 1 < how.epochs:
                _checkpoint(model, optimiser, epoch + 1, folder)
    model.eval()


def _step(
    model: nn.Module, optimiser: torch.optim.Optimizer, batch: list[Any], how: CausalTraining, lr: float
) -> float:
    for group in optimiser.param_groups:
        group["lr"] = lr
    ids, mask, labels = _padded(batch, how.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[
        :, :-1
    ]  # [batch, length - 1, vocabulary]
    count = int((labels[:, 1:] != _IGNORED).sum())
    total = F.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=_IGNORED, reduction="sum"
    )
    loss = total / max(1, count)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), how.clip)
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()


def _padded(batch: list[Any], device: str) -> tuple[Tensor, Tensor, Tensor]:
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


def _rows(data: Any, indices: Sequence[int]) -> list[Any]:
    rows = [data[index] for index in indices]
    for index, row in zip(indices, rows, strict=True):
        if len(row.input_ids) != len(row.labels):
            raise DataError(
                f"row {index} has {len(row.input_ids)} tokens and {len(row.labels)} labels. Give each token one."
            )
        if all(label == _IGNORED for label in row.labels[1:]):
            raise DataError(f"row {index} has no labelled token after its first: nothing can be learnt from it.")
    return rows


def _checkpoint(model: nn.Module, optimiser: torch.optim.Optimizer, epoch: int, folder: Path) -> None:
    """Weights and optimiser moments after `epoch` whole epochs; the one before goes once this one is whole."""
    tensors = {f"model.{i}": p.detach().contiguous() for i, p in enumerate(model.parameters())}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{key}": value.contiguous() for key, value in state.items()}
    with new_folder(folder / f"epoch-{epoch}") as fresh:
        save_file(tensors, fresh / "state.safetensors")
        write_json(fresh / "epoch.json", {"epoch": epoch})
    for old in folder.glob("epoch-*"):
        if old.name != f"epoch-{epoch}":
            shutil.rmtree(old)


@torch.no_grad()
def _resume(model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> int:
    """Restores the latest whole epoch and returns how many are done."""
    found = sorted(folder.glob("epoch-*/epoch.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    if not found:
        return 0
    tensors = load_file(found[-1].parent / "state.safetensors")
    for i, parameter in enumerate(model.parameters()):
        parameter.copy_(tensors[f"model.{i}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return int(read_json(found[-1])["epoch"])


def _folder_hash(folder: Path) -> str:
    """Of everything that decides what is computed: the configuration and the weights."""
    parts = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return hash_json({path.name: hash_file(path) for path in parts if path.exists()})
