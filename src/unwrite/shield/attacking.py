"""What a model learns of published pictures: trained on them under a defence, tested on clean ones.

    evaluate_protection({"protected": folder}, clean, {"none": Undefended(), "jpeg10": JPEG()})

A protection is worth what the best of the defences leaves of it. So a table has every defence, and beside the protected pictures
the ones they were made from, and the control that belongs there: random noise of the same size, the same for all of a class.
Any mark that goes with the label is a shortcut; only what is worse than that control hides anything by what it is.

Each training is made through `models.trained`: once for what it depends on, resumable, and the same for the same seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import catalog
from ..errors import DataError, MethodError, setting
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted
from ..models.recipe import CausalTraining, fit_rows
from ..models.vision_layout import logits_of
from ..runs import hash_json
from .base import need_number
from .defences.base import Defence, TrainingMoment
from .defences.undefended import Undefended
from .engine.pictures import Pictures, Shape
from .engine.published import PublishedPictures, as_published
from .engine.surrogates import Surrogate, built, check_surrogate

__all__ = [
    "Attacker",
    "DefenceCell",
    "evaluate_protection",
    "hits_of",
    "mean_change",
    "signed_class_noise",
    "train_attacker",
]

AnyPictures = PublishedPictures | Pictures | Any  # an Images or a folder's path too


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """Who trains on what was published: a network from random weights, SGD or AdamW, random crops and flips.

    Args:
        net: of the catalogue, or a function of num_classes, channels and image_size; the papers have a ResNet-18.
        width: of the net, where it takes one; none for its own.
        epochs: at least 1; 60 in the papers.
        batch_size: pictures a step, at least 1.
        lr: the peak learning rate, above 0; it rises over the first tenth of the steps and falls to 0 in a straight line (ours; the
            papers' falls by a cosine).
        momentum: of SGD, 0 to 1; none for AdamW.
        weight_decay: at least 0.
        clip: the largest gradient norm, above 0.
        shift: pixels by which pictures are moved at random, zeros coming in, at least 0; none for an eighth of the shorter side,
            4 of 32.
        flip: mirror half of the pictures.
        device: where to train.
    """

    net: str | Surrogate = "small-resnet"
    width: int | None = None
    epochs: int = 60
    batch_size: int = 128
    lr: float = 0.1
    momentum: float | None = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0
    shift: int | None = None
    flip: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_surrogate(self.net)
        for name in ("epochs", "batch_size"):
            need_number(name, getattr(self, name), at_least=1, whole=True)
        for name in ("lr", "clip"):
            need_number(name, getattr(self, name), above=0)
        need_number("weight_decay", self.weight_decay, at_least=0)
        need_number("momentum", 0.0 if self.momentum is None else self.momentum, at_least=0, at_most=1)
        need_number("shift", 0 if self.shift is None else self.shift, at_least=0, whole=True)
        need_number("width", 1 if self.width is None else self.width, at_least=1, whole=True)
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise MethodError(
                f"{setting('device')} is {self.device!r}; it must be a device of torch, such as 'cpu' or 'cuda'."
            ) from None

    @property
    def training(self) -> CausalTraining:
        """Optimiser and schedule."""
        return CausalTraining(
            self.epochs,
            self.lr,
            self.batch_size,
            weight_decay=self.weight_decay,
            clip=self.clip,
            device=self.device,
            momentum=self.momentum,
        )

    def reach(self, shape: Shape) -> int:
        """By how many pixels pictures of this shape are moved at most."""
        return min(shape[1:]) // 8 if self.shift is None else self.shift

    def recipe(self, defence: Defence, shape: Shape, classes: int) -> TrainRecipe:
        """How a model is trained under a defence on pictures of this shape, for `models.trained`."""
        how, reach = self.training, self.reach(shape)
        settings = {
            "version": 1,
            "net": _name_of(self.net),
            "width": self.width,
            "shape": list(shape),
            "classes": classes,
            "shift": reach,
            "flip": self.flip,
            **how.settings,
            **defence.settings,
        }

        def build(seed: int) -> nn.Module:
            net = self.net if self.width is None else functools.partial(_loaded(self.net), width=self.width)
            return built(net, classes, shape, seed)

        def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
            draws = _Draws(seed, self.epochs)

            def loss(model: nn.Module, rows: list[Any], device: str) -> Tensor:
                batch = data[rows]
                pixels = defence.transform(batch.pixels.to(device), batch.index, draws.defence)
                pixels = cropped_and_flipped(pixels, reach, self.flip, draws.crops)
                return defence.loss(model, pixels, batch.target.to(device), draws.moment)

            fit_rows(model, indices, how, seed, folder, loss, before_epoch=draws.begin)

        return TrainRecipe(build, fit, name="attacker", settings=settings)


class _Draws:
    """The random numbers of one epoch: crops by themselves, so that they are the same under every defence."""

    def __init__(self, seed: int, epochs: int) -> None:
        self.seed, self.epochs = seed, epochs
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Starts an epoch's draws, which follow from the seed and its number alone."""

        def generator(purpose: int) -> torch.Generator:
            seed = np.random.SeedSequence([abs(self.seed), epoch, purpose]).generate_state(1, np.uint64)[0]
            return torch.Generator().manual_seed(int(seed) >> 1)

        self.crops, self.defence = generator(0), generator(1)
        self.moment = TrainingMoment(epoch, self.epochs, generator(2))


@dataclass(frozen=True)
class DefenceCell:
    """One training: what was published, under which defence, and how many clean pictures are then right.

    Args:
        published, defence: their names in the table.
        hits, rows: right of all clean pictures.
        key: a hash of all that the figure depends on.
    """

    published: str
    defence: str
    hits: int
    rows: int
    key: str

    @property
    def accuracy(self) -> float:
        """Right of the clean pictures, in %."""
        return 100 * self.hits / self.rows


def train_attacker(
    pictures: AnyPictures, defence: Defence | None = None, attacker: Attacker | None = None, seed: int = 0
) -> nn.Module:
    """Who trained on these pictures under a defence, in evaluation mode; trained if it isn't in the cache.

    Args:
        pictures: with labels: a folder of classes, an `Images`, or `PublishedPictures`.
        defence: by default none.
        attacker: how it trains.
        seed: of weights, order, crops and all that the defence draws.

    Raises:
        DataError: pictures of several sizes, or of one class.
    """
    data = as_published(pictures)
    defence, attacker = defence or Undefended(), attacker or Attacker()
    if len(np.unique(data.labels)) < 2:
        raise DataError(f"all pictures of {data.name} are of one class. There is nothing to learn: give at least 2.")
    defence.check(data.shape)
    return fitted(attacker.recipe(defence, data.shape, len(data.classes)), data, range(len(data)), seed)


@torch.no_grad()
def hits_of(model: nn.Module, test: AnyPictures, defence: Defence | None = None) -> int:
    """How many clean pictures a model gets right.

    Args:
        defence: which may show the model other pictures at test, too.
    """
    data, defence = as_published(test), defence or Undefended()
    device = next(model.parameters()).device
    hits = 0
    for at in data.batches():
        batch = data[at]
        logits = logits_of(model, defence.seen_at_test(batch.pixels.to(device)))
        hits += int((logits.argmax(1).cpu() == batch.target).sum())
    return hits


def evaluate_protection(
    published: Mapping[str, AnyPictures],
    test: AnyPictures,
    defences: Mapping[str, Defence],
    *,
    attacker: Attacker | None = None,
    seed: int = 0,
    known: Mapping[str, DefenceCell] | None = None,
    tell: Callable[[DefenceCell], None] = lambda cell: None,
) -> list[DefenceCell]:
    """The table of protections and defences, a cell for each pair, defence by defence.

    Args:
        published: what is trained on, by name.
        test: clean pictures of the same classes.
        defences: by name.
        known: cells that were measured before, by their keys; they are not measured again.
        tell: is called with every new cell as soon as it is there.

    Raises:
        DataError: pictures of another shape or other classes than the test's.
    """
    attacker = attacker or Attacker()
    clean = as_published(test)
    sets = {name: as_published(pictures) for name, pictures in published.items()}
    for name, one in sets.items():
        if one.shape != clean.shape or one.classes != clean.classes:
            raise DataError(
                f"{name} has pictures of shape {list(one.shape)} and {len(one.classes)} classes, and the clean ones {list(clean.shape)} and "
                f"{len(clean.classes)}. Give pictures of one size and the same classes."
            )
    cells = []
    for label, defence in defences.items():
        for name, one in sets.items():
            recipe = attacker.recipe(defence, one.shape, len(one.classes))
            key = hash_json([recipe.settings, one.hash, clean.hash, seed])
            measured = (known or {}).get(key)
            if measured is not None:
                cell = replace(measured, published=name, defence=label)  # it may have had another name
            else:
                hits = hits_of(train_attacker(one, defence, attacker, seed).to(attacker.device), clean, defence)
                cell = DefenceCell(name, label, hits, len(clean), key)
                tell(cell)
            cells.append(cell)
    return cells


def cropped_and_flipped(pixels: Tensor, reach: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to `reach` pixels up, down and across, and half of them mirrored.

    Args:
        pixels: `[rows, channels, height, width]`
        reach: 0 moves none.
    """
    rows, _, height, width = pixels.shape
    if reach:
        padded = nn.functional.pad(pixels, (reach,) * 4)
        down, across = torch.randint(2 * reach + 1, (2, rows, 1), generator=generator)
        down, across = down + torch.arange(height), across + torch.arange(width)
        at = torch.arange(rows)[:, None, None]
        # Indexing puts the channels last: [rows, height, width, channels].
        pixels = padded[at, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = (torch.rand(rows, generator=generator) < 0.5).to(pixels.device)
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    return pixels


def signed_class_noise(classes: int, shape: Shape, levels: int, seed: int) -> np.ndarray:
    """`[classes, channels, height, width]`, int16: so many levels of 255 up or down at random, the same for all of a class."""
    return np.random.default_rng(seed).choice([-levels, levels], size=(classes, *shape)).astype(np.int16)


def mean_change(protected: PublishedPictures, original: PublishedPictures) -> float:
    """The mean change of an 8-bit value from the pictures they were made of, in levels of 255; both in one order."""
    changed = 0
    for at in original.batches():
        changed += int(np.abs(protected.pixels(at).astype(np.int16) - original.pixels(at)).sum())
    return changed / original.bytes


def _loaded(net: str | Surrogate) -> Surrogate:
    loaded: Surrogate = catalog.net(net).load() if isinstance(net, str) else net
    return loaded


def _name_of(net: str | Surrogate) -> str:
    """What stands for the net in a hash: one name, whether it was given by the catalogue's or as the class."""
    cls = _loaded(net)
    module, name = getattr(cls, "__module__", None), getattr(cls, "__qualname__", None)
    if module is None or name is None or "<" in name:
        raise MethodError(f"{setting('net')} is {cls!r:.60}. Give a class or function with a name of its own.")
    return f"{module}.{name}"
