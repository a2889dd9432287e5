"""Noise that leaves nothing to learn: within a small budget it makes the training loss tiny before a model has looked at the picture.

A surrogate network and the noise are trained in turn against the same loss, and both lower it. So what the network comes to rely
on is the noise. The baseline that every other shield is compared with. (Unlearnable examples, Huang et al., arXiv 2101.04898)

    min_theta min_{|d|_inf <= eps}  E CE(f_theta(x + d_x), y),   d_x of each picture, or of each class

The official release drops all negative noise (`mul(255).clamp(0, 255)`); here noise keeps its sign and is rounded to the nearest
level, and `legacy_positive_only` releases as published figures were. Trainings are the same for the same key on one machine; other
threads and processors add in another order. What reproduces noise exactly anywhere is the saved `Protection`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, MethodError, notice, setting
from ..runs import progress, seeded
from .base import Additive, Fitted, Protection, need_choice, need_number
from .engine.keys import generator, seed_of
from .engine.patches import corners_of, cut_out, pasted
from .engine.pictures import PictureBatch, Pictures, Shape
from .engine.surrogates import Surrogate, built, check_surrogate, error_rate, frozen, signed_steps, training_step

__all__ = ["EMNoise", "class_means"]


@dataclass(frozen=True, kw_only=True)
class EMNoise(Additive):
    """Adds error-minimising noise within eps, of each picture or of each class (arXiv 2101.04898, ICLR 2021).

    Fitted state: `noise_`, float32, `[pictures, channels, height, width]` or `[classes, ...]`, or as high and wide as a patch; of
    pictures, `rows_` knows which is whose, and `transform` takes the pictures it was fitted to, in any batches but in their order.
    Facts: `converged_`, `rounds_`, `error_`, the surrogate's last, and `shape_`. Pictures must have one size.

    Args:
        eps: the budget, the largest change of a pixel in 0..1, from 0 (none) to 1; 8/255 in the paper.
        mode: noise of each "sample", or of each "class".
        alpha: the size of a step of the noise, at least 0.
        steps: of the noise for each batch and round; none for the official 20 of a sample and 1 of a class. 0 leaves the noise.
        stop: the surrogate's error at which to stop, 0 to 1; none for the official 0.01 of samples and 0.1 of classes (1 minus that
            where the noise maximises).
        train_steps: of the surrogate in each round, at least 1.
        rounds: at most; the official code has no end. What has not converged by then is given all the same, with a notice.
        share: of the pictures of each class that class-wise noise is looked for on, above 0 to 1; none for the official 0.2.
        batch_size: pictures a step, at least 1.
        lr: the surrogate's learning rate, above 0.
        momentum: of its SGD, 0 to 1.
        weight_decay: of its SGD, at least 0.
        clip: its largest gradient norm, above 0.
        random_start: begin with uniform noise in place of none.
        direction: "maximise" is the error-maximising baseline: the surrogate is trained on the pictures first, and the noise raises its loss;
            "random" is uniform noise without a surrogate, the baseline of both.
        patch: pixels of the noise's side where it is smaller than the picture; none for noise all over.
        place: of a patch: the "centre", or a "random" one on each picture.
        legacy_positive_only: release as the official code does, without the negative half and cut off to whole levels.
        surrogate: a net of the catalogue, or a function of num_classes, channels and image_size; the paper has a ResNet-18.
        device: where the surrogate runs.
    """

    mode: Literal["sample", "class"] = "sample"
    alpha: float = 0.8 / 255
    steps: int | None = None
    stop: float | None = None
    train_steps: int = 10
    rounds: int = 50
    share: float | None = None
    batch_size: int = 512
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0
    random_start: bool = False
    direction: Literal["minimise", "maximise", "random"] = "minimise"
    patch: int | None = None
    place: Literal["centre", "random"] = "centre"
    legacy_positive_only: bool = False
    surrogate: str | Surrogate = "small-resnet"
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        need_choice("mode", self.mode, ("sample", "class"))
        need_choice("direction", self.direction, ("minimise", "maximise", "random"))
        need_choice("place", self.place, ("centre", "random"))
        need_number("patch", 1 if self.patch is None else self.patch, at_least=1, whole=True)
        need_number("alpha", self.alpha, at_least=0)
        need_number("steps", self.step_count, at_least=0, whole=True)
        need_number("stop", self.stop_error, at_least=0, at_most=1)
        for name in ("train_steps", "rounds", "batch_size"):
            need_number(name, getattr(self, name), at_least=1, whole=True)
        need_number("share", 1.0 if self.share is None else self.share, above=0, at_most=1)
        for name in ("lr", "clip"):
            need_number(name, getattr(self, name), above=0)
        need_number("momentum", self.momentum, at_least=0, at_most=1)
        need_number("weight_decay", self.weight_decay, at_least=0)
        check_surrogate(self.surrogate)
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise MethodError(
                f"{setting('device')} is {self.device!r}; it must be a device of torch, such as 'cpu' or 'cuda'."
            ) from None

    @property
    def step_count(self) -> int:
        """Steps of the noise for each batch and round."""
        return (20 if self.mode == "sample" else 1) if self.steps is None else self.steps

    @property
    def stop_error(self) -> float:
        """The surrogate's error at which to stop."""
        if self.stop is not None:
            return self.stop
        error = 0.01 if self.mode == "sample" else 0.1
        return 1 - error if self.direction == "maximise" else error

    @property
    def searched_share(self) -> float:
        """The share of each class that noise is looked for on; all, where every picture has noise of its own."""
        if self.mode == "sample":
            return 1.0
        return 0.2 if self.share is None else self.share

    def layout(self) -> Mapping[str, tuple[str, int]]:
        noise = {"noise": ("float32", 4)}
        return noise | ({"rows": ("uint8", 2)} if self.mode == "sample" else {})

    def _fit(self, pictures: Pictures) -> Fitted:
        shape = pictures.one_shape("this noise is made for one size")
        if self.patch is not None:
            corners_of(self.key, np.arange(1), self.patch, shape, self.place)  # refuses one that is too large
        facts: dict[str, bool | int | float | None] = {"converged": True, "rounds": 0, "error": None}
        if self.direction == "random":
            state = {"noise": self.beginning(pictures, shape)}
        else:
            with seeded(seed_of(self.key, "training")):
                search = NoiseSearch(self, pictures)
                facts |= search.run()
            state = {"noise": search.noise.numpy()}
        if self.mode == "sample":
            state["rows"] = np.concatenate([_names(batch.pixels) for batch in pictures.batches()])
        return Fitted(state, {**facts, "shape": list(shape)})

    def beginning(self, pictures: Pictures, shape: Shape) -> np.ndarray:
        """The noise before any step, float32: none, or uniform within eps."""
        count = len(pictures) if self.mode == "sample" else len(pictures.classes)
        whole = (count, *shape) if self.patch is None else (count, shape[0], self.patch, self.patch)
        if not (self.random_start or self.direction == "random"):
            return np.zeros(whole, dtype=np.float32)
        return generator(self.key, "start").uniform(-self.eps, self.eps, whole).astype(np.float32)

    def placed(self, noise: Tensor, at: np.ndarray, shape: Shape) -> Tensor:
        """Noise of the pictures at these places as large as they are."""
        if self.patch is None:
            return noise
        return pasted(noise, corners_of(self.key, at, self.patch, shape, self.place), shape)

    def _noise(self, protection: Protection, batch: PictureBatch) -> np.ndarray:
        noise = protection.state["noise"]
        channels, height, width = protection.facts.get("shape", noise.shape[1:])
        if batch.pixels.shape[1:] != (channels, height, width):
            raise DataError(
                f"image {batch.at[0]} has shape {list(batch.pixels.shape[1:])} and the noise {[channels, height, width]}. Bring all pictures to one size."
            )
        drawn = torch.from_numpy(noise[self._owners(protection, batch)])
        return self.placed(drawn, batch.at, (channels, height, width)).numpy()

    def _owners(self, protection: Protection, batch: PictureBatch) -> np.ndarray:
        """`[rows]`: whose noise each picture has, its class's or its own."""
        noise = protection.state["noise"]
        if self.mode == "class":
            assert isinstance(batch.targets, np.ndarray)
            return batch.targets
        if (beyond := batch.at >= len(noise)).any():
            raise DataError(
                f"image {batch.at[beyond][0]} has no noise: this protection is of {len(noise)} pictures, each with its own. Fit one to all pictures."
            )
        other = (_names(batch.pixels) != protection.state["rows"][batch.at]).any(axis=1)
        if other.any():
            raise DataError(
                f"image {batch.at[other][0]} is not the one that its noise was made for. Give the pictures this protection was fitted to, in their order."
            )
        return batch.at

    def _levels(self, noise: np.ndarray) -> np.ndarray:
        if not self.legacy_positive_only:
            return super()._levels(noise)
        return np.clip(noise.astype(np.float64) * 255 + 1e-6, 0, self.budget).astype(
            np.int16
        )  # as their float32 would be cut off


class NoiseSearch:
    """One search: a surrogate and the noise, trained in turn.

    Args:
        shield: its settings.
        pictures: of one size.
    """

    def __init__(self, shield: EMNoise, pictures: Pictures) -> None:
        self.shield, self.pictures, self.labels = shield, pictures, pictures.labels
        self.shape = shape = pictures.one_shape("this noise is made for one size")
        self.model = built(shield.surrogate, len(pictures.classes), shape, seed_of(shield.key, "surrogate")).to(
            shield.device
        )
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), shield.lr, momentum=shield.momentum, weight_decay=shield.weight_decay
        )
        self.random = generator(shield.key, "order")
        self.noise = torch.from_numpy(shield.beginning(pictures, shape))
        self.searched = self._subset()
        self.training = self._endless()

    def run(self) -> dict[str, bool | int | float]:
        """Rounds until the error is where it should be or there are no more; says which, after how many, and at what error."""
        shield, error, rounds = self.shield, 1.0, 0
        lowers = shield.direction == "minimise"
        if not lowers:
            self._train_first()
        converged = False
        with progress(shield.rounds, "looking for noise") as bar:
            while not converged and rounds < shield.rounds:
                if lowers:
                    self.train(shield.train_steps)
                self.search()
                error = self.error(self.searched)
                rounds += 1
                converged = error <= shield.stop_error if lowers else error >= shield.stop_error
                bar.say(f"error {error:.3f}")
                bar.advance()
        if not converged:
            notice(
                f"the noise has not converged after {rounds} rounds: the surrogate's error is {error:.3g}, and {shield.stop_error:.3g} was to be "
                f"reached. It may protect less; more {setting('rounds')} may help."
            )
        return {"converged": bool(converged), "rounds": rounds, "error": error}

    def train(self, steps: int) -> None:
        """So many steps of the surrogate on perturbed batches, going on through the pictures."""
        for at in itertools.islice(self.training, steps):
            pixels, labels = self._given(at)
            training_step(self.model, self.optimiser, pixels + self._of(at), labels, self.shield.clip)

    def search(self) -> None:
        """One pass over the pictures searched on, weights and statistics frozen, in which the noise moves."""
        shield = self.shield
        shuffled = shield.mode == "class"
        with frozen(self.model):
            for at in self._batches(
                self.random.permutation(self.searched) if shuffled else self.searched, whole=shuffled
            ):
                pixels, labels = self._given(at)
                moved = signed_steps(
                    self.model,
                    pixels,
                    labels,
                    self._of(at),
                    eps=shield.eps,
                    alpha=shield.alpha,
                    steps=shield.step_count,
                    ascend=shield.direction == "maximise",
                    where=self._where(at),
                ).cpu()
                if shield.patch is not None:
                    corners = corners_of(shield.key, at, shield.patch, self.shape, shield.place)
                    moved = cut_out(moved, corners, shield.patch)
                if shield.mode == "sample":
                    self.noise[at] = moved
                else:
                    class_means(self.noise, moved, labels.cpu(), shield.eps)

    def error(self, rows: np.ndarray, *, perturbed: bool = True) -> float:
        """The share of these pictures, with their noise, that the surrogate gets wrong."""

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for at in self._batches(rows):
                pixels, labels = self._given(at)
                yield (pixels + self._of(at) if perturbed else pixels), labels

        return error_rate(self.model, batches())

    def _train_first(self) -> None:
        """Trains on the pictures as they are until hardly one is wrong, in at most as many rounds."""
        before, self.noise = self.noise, torch.zeros_like(self.noise)
        for _ in range(self.shield.rounds):
            self.train(self.shield.train_steps)
            if self.error(self.searched, perturbed=False) <= 1 - self.shield.stop_error:
                break
        self.noise = before

    def _given(self, at: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pixels in 0..1 and labels of the pictures at these places."""
        pixels = torch.from_numpy(self.pictures.pixels(at)).to(self.shield.device)
        return pixels.float() / 255, torch.from_numpy(self.labels[at]).to(self.shield.device)

    def _of(self, at: np.ndarray) -> Tensor:
        """The noise of these pictures, as pixels."""
        noise = self.noise[at if self.shield.mode == "sample" else self.labels[at]]
        return self.shield.placed(noise, at, self.shape).to(self.shield.device)

    def _where(self, at: np.ndarray) -> Tensor | None:
        """1 within the patches of these pictures and 0 outside; None where noise is all over."""
        side = self.shield.patch
        if side is None:
            return None
        return self.shield.placed(torch.ones(len(at), self.shape[0], side, side), at, self.shape).to(self.shield.device)

    def _subset(self) -> np.ndarray:
        """The pictures that noise is looked for on: all, or a share of each class, at least one."""
        share = self.shield.searched_share
        if share == 1:
            return np.arange(len(self.pictures))
        random, drawn = generator(self.shield.key, "subset"), []
        for label in np.unique(self.labels):
            rows = (self.labels == label).nonzero()[0]
            drawn.append(random.permutation(rows)[: max(1, round(share * len(rows)))])
        return np.sort(np.concatenate(drawn))

    def _batches(self, rows: np.ndarray, *, whole: bool = False) -> Iterator[np.ndarray]:
        """Rows a batch at a time; `whole` leaves out a last one that is short, unless it is the only one."""
        size = self.shield.batch_size
        for start in range(0, len(rows), size):
            at = rows[start : start + size]
            if not (whole and start and len(at) < size):
                yield at

    def _endless(self) -> Iterator[np.ndarray]:
        """Batches of all pictures again and again; shuffled each time where noise is of a class, else in their order."""
        rows = np.arange(len(self.pictures))
        while True:
            if self.shield.mode == "class":
                yield from self._batches(self.random.permutation(rows), whole=True)
            else:
                yield from self._batches(rows)


def class_means(noise: Tensor, moved: Tensor, labels: Tensor, eps: float) -> None:
    """Replaces each class's noise by the mean over the batch's members of theirs, within the budget; in place.

    Args:
        noise: `[classes, channels, height, width]`
        moved: `[rows, channels, height, width]`, each member's own.
        labels: `[rows]`
        eps: the budget.
    """
    for label in labels.unique().tolist():
        noise[label] = moved[labels == label].mean(0).clamp(-eps, eps)


def _names(pixels: np.ndarray) -> np.ndarray:
    """`[rows, 16]`, uint8: a hash of each picture, by which noise knows its own."""
    digests = [hashlib.blake2b(np.ascontiguousarray(one).tobytes(), digest_size=16).digest() for one in pixels]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(pixels), 16).copy()
