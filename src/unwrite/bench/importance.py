"""Importances of every parameter, ours against the loops a user would write, on the same weights and rows.

Batch-mean importances against SSD's official loop (one backward a batch, a copy and a square a parameter); every row's
own against a loop over single rows, and against `torch.func.vmap`. A pair is one pass over all rows by each side, taken
in turns; both give the same numbers, which is checked first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.curvature import cross_entropy, importances

__all__ = ["CASES", "compare", "peers", "run_bench"]

Pass = Callable[[], dict[str, Tensor]]
Batches = Sequence[tuple[Tensor, Tensor]]
CLASSES = 10


def cnn(size: int) -> nn.Module:
    """Three convolutions with batch norms and a linear layer, 0.1M weights, for images `[rows, 3, size, size]`."""

    def block(into: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]

    last = [nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, CLASSES)]
    return nn.Sequential(*block(3, 32, 1), *block(32, 64, 2), *block(64, 64, 2), *last)


def mlp(size: int) -> nn.Module:
    """Three linear layers for images `[rows, 3, size, size]`."""
    wide = nn.Linear(3 * size * size, 256)
    return nn.Sequential(nn.Flatten(), wide, nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES))


CASES: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "CNN, 8x8": (cnn, 8),
    "CNN, 32x32": (cnn, 32),
    "MLP, 8x8": (mlp, 8),
}


def peers(model: nn.Module, batches: Batches) -> dict[str, tuple[Pass, Pass]]:
    """Ours and theirs, by name of theirs; all on a model in evaluation mode."""

    def per_batch() -> dict[str, Tensor]:
        return dict(importances(model, batches, cross_entropy).tensors)

    def per_row() -> dict[str, Tensor]:
        return dict(importances(model, batches, cross_entropy, each="row").tensors)

    return {
        "official loop": (per_batch, lambda: batch_loop(model, batches)),
        "batch-1 loop": (per_row, lambda: row_loop(model, batches)),
        "torch.func.vmap": (per_row, lambda: vmapped(model, batches)),
    }


def batch_loop(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """The squared gradient of each batch's mean loss, as SSD's authors accumulate it."""
    totals = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for images, labels in batches:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                totals[name].data += parameter.grad.data.clone().pow(2)
    model.zero_grad()
    return {name: total / len(batches) for name, total in totals.items()}


def row_loop(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """The same with batches of one row."""
    return batch_loop(
        model, [(images[i : i + 1], labels[i : i + 1]) for images, labels in batches for i in range(len(images))]
    )


def vmapped(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Every row's own squared gradient by `torch.func`."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (image[None],)), label[None])

    own = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for images, labels in batches:
        for name, gradients in own(parameters, images, labels).items():
            totals[name] += gradients.square().sum(0)
    return {name: total / sum(len(images) for images, _ in batches) for name, total in totals.items()}


def compare(ours: Pass, theirs: Pass, pairs: int) -> dict[str, Any]:
    """Medians of paired passes, and their ratio with its middle half.

    Returns:
        `difference` is the largest between the two, relative to each tensor's maximum, of the untimed first passes.
    """
    mine, other = ours(), theirs()
    difference = max(float((mine[name] - t).abs().max() / t.abs().max().clamp(min=1e-30)) for name, t in other.items())
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        seconds = {}
        for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):  # neither always goes first
            start = time.perf_counter()
            side()
            seconds[side] = time.perf_counter() - start
        times.append((seconds[ours], seconds[theirs]))
    ratios = sorted(a / b for a, b in times)
    return {
        "ours_s": median(a for a, _ in times),
        "peer_s": median(b for _, b in times),
        "ratio": median(ratios),
        "middle_half": (ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]),
        "difference": difference,
    }


def run_bench(
    rows: int = 256,
    batch: int = 32,
    pairs: int = 15,
    done: Sequence[dict[str, Any]] = (),
    after: Callable[[list[dict[str, Any]]], None] = lambda results: None,
) -> list[dict[str, Any]]:
    """All cases against all peers; one dict each.

    Args:
        rows, batch: how many, and how many at a time.
        done: cases an earlier, stopped run measured already.
        after: gets all cases so far after each.
    """
    results = list(done)
    number = 0
    for case, (build, size) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(rows, 3, size, size, generator=generator)
        labels = torch.randint(0, CLASSES, (rows,), generator=generator)
        batches = list(zip(images.split(batch), labels.split(batch), strict=True))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(size).eval()
        for peer, (ours, theirs) in peers(model, batches).items():
            number += 1
            if number > len(done):
                settings = {"case": case, "peer": peer, "rows": rows, "batch": batch, "pairs": pairs}
                results.append({**settings, **compare(ours, theirs, pairs)})
                after(results)
    return results
