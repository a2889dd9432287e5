"""The filter: from the confidences of a block, whether each prediction is final already; its training and its figures."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....errors import DataError, MethodError
from ....runs import progress, read_tensors
from ...adapter import MaskPredictor
from .records import Records, source_of

__all__ = ["Filter", "FilterQuality", "FilterReport", "judge", "safe_bar", "train"]

_FORMAT = "unwrite learn2pd filter"


class Filter(nn.Module):
    """`depth` linear layers of the block's size with ReLU between them: 2112 weights for a block of 32.

    Args:
        size: positions of a block, at least 1.
        depth: layers, at least 1; 2 in the paper, which also tried 1 and 4.
        source: what its records were made with: model, mask_id, precision.

    Attributes:
        report: how its training went; None for a filter that was read from a file.

    Raises:
        MethodError: size or depth below 1.
    """

    def __init__(self, size: int = 32, depth: int = 2, source: Mapping[str, str] | None = None) -> None:
        if size < 1 or depth < 1:
            raise MethodError(f"Filter: size is {size} and depth {depth}; use at least 1.")
        super().__init__()
        self.size, self.source = size, dict(source or {})
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(depth))
        self.report: FilterReport | None = None
        with torch.no_grad():
            # Every unit is awake for inputs from 0 to 1: one that sleeps there would never learn.
            for layer in self.layers[:-1]:
                layer.bias += (-layer.weight).relu().sum(1)

    def forward(self, confidence: Tensor) -> Tensor:
        """[..., size] logits. confidence: [..., size] float32, of the likeliest token at every position, revealed or not."""
        hidden: Tensor = self.layers[0](confidence)
        for layer in self.layers[1:]:
            hidden = layer(hidden.relu())
        return hidden

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file."""
        from safetensors.torch import save_file

        weights = {name: weight.contiguous() for name, weight in self.state_dict().items()}
        shape = {"size": str(self.size), "depth": str(len(self.layers))}
        save_file(weights, str(path), {"format": _FORMAT, **self.source, **shape})

    @staticmethod
    def load(path: str | Path, model: nn.Module | MaskPredictor | None = None) -> Filter:
        """Reads what `save` wrote.

        Args:
            path: the file.
            model: what it is to be used with, see `check`; None to look later.

        Raises:
            DataError: the file is no filter.
        """
        weights, source = read_tensors(path, "filter", DataError)
        if source.pop("format", None) != _FORMAT:
            raise DataError(f"{path} is no filter. Train one with learn2pd.train and save it.")
        # The tensors say how large it is, the metadata only again: a filter is never larger than its file.
        depth = len(weights) // 2
        first = weights.get("layers.0.bias")
        size = 0 if first is None else first.numel()
        kinds = {
            f"layers.{i}.{kind}": shape
            for i in range(depth)
            for kind, shape in (("weight", (size, size)), ("bias", (size,)))
        }
        says = (source.pop("size", ""), source.pop("depth", ""))
        if (
            {name: tuple(one.shape) for name, one in weights.items()} != kinds
            or says != (str(size), str(depth))
            or not depth
        ):
            raise DataError(
                f"{path} is damaged: it says size {says[0]!r:.20} and depth {says[1]!r:.20}, and its {len(weights)} tensors are not "
                "of such a filter. Train one anew."
            )
        if odd := next((name for name, one in weights.items() if one.dtype != torch.float32), None):
            raise DataError(f"{path} is damaged: {odd} is {str(weights[odd].dtype)[6:]}, not float32. Train one anew.")
        net = Filter(size, depth, source)
        net.load_state_dict(weights)
        if model is not None:
            net.check(model)
        return net.eval()

    def check(self, model: nn.Module | MaskPredictor) -> None:
        """Warns of a model that is not the one the filter's records came from."""
        here = source_of(MaskPredictor.of(model, probe=False))
        odd = [name for name, value in self.source.items() if here.get(name, value) != value]
        if odd:
            there = ", ".join(f"{name} {self.source[name]} (here {here[name]})" for name in odd)
            warnings.warn(
                f"the filter was trained on {there}: its bar may mean nothing. Collect and train anew.", stacklevel=2
            )


@dataclass(frozen=True)
class FilterQuality:
    """A filter on records, over the positions that were still to be written: only they are acted on.

    Args:
        accuracy: share where logit > 0 and label agree.
        base_rate: share of labels that are 1.
        kept: share that the bar lets through.
        false_positives: share of those with label 0; NaN where nothing is let through.
        calibration: for each tenth of probability (mean probability, share right, positions), without empty ones.
    """

    accuracy: float
    base_rate: float
    kept: float
    false_positives: float
    calibration: tuple[tuple[float, float, int], ...]

    @property
    def calibration_error(self) -> float:
        """Mean distance of probability and share right, weighted by positions."""
        total = sum(count for _, _, count in self.calibration)
        return sum(abs(p - right) * count for p, right, count in self.calibration) / max(1, total)


@dataclass(frozen=True)
class FilterReport:
    """A training.

    Args:
        epochs: run.
        best: epoch with the least validation loss, from 1; the one that was kept unless the last one was asked for.
        losses: of the training and validation records after each epoch.
        validation, test: at the bar of 0.9 that the official training watches.
        bar: the least `accept` that lets through at most 1 % wrong positions of the validation records; see `safe_bar`.
    """

    epochs: int
    best: int
    losses: tuple[tuple[float, float], ...]
    validation: FilterQuality
    test: FilterQuality
    bar: float


def train(
    records: Records,
    *,
    depth: int = 2,
    lr: float = 3e-3,
    epochs: int = 40_000,
    patience: int | None = 500,
    keep: Literal["best", "last"] = "best",
    mask_revealed: bool = False,
    seed: int = 0,
) -> Filter:
    """A filter, with its `report`. Split by prompt, so that the figures are of prompts it never saw.

    Args:
        records: of at least three prompts.
        depth: layers.
        lr: of AdamW, on all training records at once.
        epochs: at most.
        patience: stop when the validation loss has not improved for so many epochs; None to run all.
        keep: the epoch with the least validation loss, or the last.
        mask_revealed: leave positions that were revealed already out of the loss. Their label is mostly 1.
        seed: of the split and of the first weights.

    Raises:
        DataError: no records, too few prompts, labels all alike.
        MethodError: a setting without meaning.
    """
    if epochs < 1 or (patience is not None and patience < 1) or not lr > 0 or keep not in ("best", "last"):
        raise MethodError(
            f"epochs is {epochs}, patience {patience}, lr {lr}, keep {keep!r}; use epochs and patience of at least 1, lr above 0 "
            "and 'best' or 'last'."
        )
    if not len(records):
        raise DataError("there are no records to learn from. Collect some.")
    parts = records.split(seed=seed)
    counted = [part.masked if mask_revealed else torch.ones_like(part.masked) for part in parts]
    labels = parts[0].right[counted[0]]
    if labels.all() or not labels.any():
        raise DataError(
            f"all {labels.numel()} labels are {int(labels.any())}: there is nothing to tell apart. Collect longer answers or other "
            "prompts."
        )
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = Filter(records.size, depth, records.source)
        losses, best = _fit(model, parts, counted, lr, epochs, patience, keep)
    model.eval().requires_grad_(False)
    bar = safe_bar(model, parts[1])
    model.report = FilterReport(len(losses), best, tuple(losses), judge(model, parts[1]), judge(model, parts[2]), bar)
    return model


def _fit(
    model: Filter,
    parts: tuple[Records, ...],
    counted: list[Tensor],
    lr: float,
    epochs: int,
    patience: int | None,
    keep: str,
) -> tuple[list[tuple[float, float]], int]:
    """Losses of each epoch, and the best one's number; leaves the weights that are to be kept."""
    inputs, labels = [part.confidence for part in parts], [part.right.float() for part in parts]
    weights = [one / one.sum() for one in counted]

    def loss_of(which: int) -> Tensor:
        loss: Tensor = F.binary_cross_entropy_with_logits(
            model(inputs[which]), labels[which], weights[which], reduction="sum"
        )
        return loss

    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    losses: list[tuple[float, float]] = []
    best, least, state = 0, float("inf"), copy.deepcopy(model.state_dict())
    for epoch in progress(range(1, epochs + 1), "training the filter"):
        optimiser.zero_grad()
        loss = loss_of(0)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            validation = float(loss_of(1))
        losses.append((float(loss.detach()), validation))
        if validation < least:
            best, least, state = epoch, validation, copy.deepcopy(model.state_dict())
        elif patience is not None and epoch - best >= patience:
            break
    if keep == "best":
        model.load_state_dict(state)
    return losses, best


@torch.no_grad()
def judge(model: Filter, records: Records, accept: float = 0.9) -> FilterQuality:
    """How well a filter does on records; see `Judged`. accept: the bar for what is let through.

    Raises:
        DataError: records without a masked position.
    """
    p, right = _masked(model, records)
    passing = p > accept
    tenth = (p * 10).long().clamp(max=9)
    bins = [
        (float(p[tenth == n].mean()), float(right[tenth == n].float().mean()), int((tenth == n).sum()))
        for n in tenth.unique()
    ]
    wrong = float((passing & ~right).sum() / passing.sum()) if passing.any() else float("nan")
    accuracy = float(((p > 0.5) == right).float().mean())
    return FilterQuality(accuracy, float(right.float().mean()), float(passing.float().mean()), wrong, tuple(bins))


@torch.no_grad()
def safe_bar(model: Filter, records: Records, wrong: float = 0.01) -> float:
    """The least bar that lets through at most this share of wrong positions among all it lets through; 1 where none does.

    Raises:
        MethodError: wrong outside [0, 1].
        DataError: records without a masked position.
    """
    if not 0 <= wrong <= 1:
        raise MethodError(f"wrong is {wrong}; use a share from 0 to 1.")
    p, right = _masked(model, records)
    p, order = p.sort(descending=True, stable=True)
    share = (~right[order]).double().cumsum(0) / torch.arange(1, len(p) + 1)
    following = torch.cat([p[1:], p.new_zeros(1)])  # the bar that lets through exactly what is above it
    good = (share <= wrong) & (following < p)
    return float(following[good][-1]) if good.any() else 1.0


def _masked(model: Filter, records: Records) -> tuple[Tensor, Tensor]:
    """Probability and label of every position that was still to be written, [positions] each."""
    if not records.masked.any():
        raise DataError("the records hold no position that was still to be written. Collect some.")
    return model(records.confidence)[records.masked].sigmoid(), records.right[records.masked]
