"""A split of four classes of 8x8 images, a small net that knows them, and how tests look at trainings."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

from unwrite.data import Images, ImageSplit, split_by_class
from unwrite.forget.engine.images.work import ImageWork
from unwrite.models.image_training import image_recipe
from unwrite.nets import SmallCNN

CLASSES = tuple("abcd")
RECIPE = image_recipe(SmallCNN, epochs=8, lr=5e-3, batch_size=16, num_classes=4, width=4)
SMALL = {"per_device_train_batch_size": 16}


@cache
def split() -> ImageSplit:
    """A class is a brighter quarter; class a is forgotten: 26 rows, and 78 to keep."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(128) % 4
    pixels = 0.3 * torch.rand(128, 1, 8, 8, generator=generator)
    for row, label in enumerate(labels.tolist()):
        top, left = divmod(label, 2)
        pixels[row, 0, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 0.2
    return split_by_class(Images(pixels, labels=labels, classes=CLASSES, name="quarters"), 0, holdout=0.2)


@cache
def _trained() -> nn.Module:
    model = RECIPE.build(0)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        RECIPE.fit(model, split().train, list(range(len(split().train))), 0, Path(folder))
    return model.eval()


def net() -> nn.Module:
    """A fresh copy of the trained net."""
    return copy.deepcopy(_trained())


def targets(rows: Images) -> Images:
    """The same rows with a regression target, the mean of their pixels."""
    return Images(rows.pixels, targets=rows.pixels.mean((1, 2, 3)), index=rows.index)


def unlearn(method: Any, model: nn.Module | None = None, parts: ImageSplit | None = None, **options: Any) -> nn.Module:
    """`method.apply` on the split, on a fresh copy of the net if no model is given; `args` are added to SMALL."""
    parts = parts or split()
    args = {**SMALL, **options.pop("args", {})}
    given = {"holdout": parts.holdout, "recipe": RECIPE, **options}
    model = net() if model is None else model
    return method.apply(model, parts.forget, parts.retain, args=args, **given)


def work_of(method: Any, model: nn.Module | None = None, parts: ImageSplit | None = None, **args: Any) -> ImageWork:
    """What `apply` hands to the method."""
    parts = parts or split()
    model = net() if model is None else model
    given = {"recipe": RECIPE, "args": {**SMALL, **args}}
    return method.work(model, parts.forget, parts.retain, **given)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> bool:
    """Bit-identical weights and running statistics."""
    first, second = (value if isinstance(value, dict) else value.state_dict() for value in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def accuracy(model: nn.Module, rows: Images) -> float:
    return (model(rows.pixels).argmax(1) == rows.labels).float().mean().item()


@torch.no_grad()
def nll(model: nn.Module, rows: Images) -> float:
    return F.cross_entropy(model(rows.pixels), rows.labels).item()


class Log(TrainerCallback):
    """What a training logs, a line an epoch, and the learning rate of every step."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.rates: list[float] = []

    def on_log(self, args, state, control, logs=None, **_):
        self.lines.append(dict(logs))

    def on_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])
