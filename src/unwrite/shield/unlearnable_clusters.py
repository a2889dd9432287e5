"""Noise that hides pictures whatever labels they are given later: it is tied to clusters of what pictures show, not to classes.

K-means groups the pictures by the features of a trained network. Each cluster gets one noise, drawn by a small generator that is trained
to carry the cluster's features to the centre of another. (Unlearnable clusters, Zhang et al., arXiv 2301.01217)

    min_G  KL( softmax(mu_t) || softmax(f(x + d)) ) over x in cluster i,   d = clamp(G(z), -eps, eps),   t = i + offset mod p

z is drawn once and fixed. G ends in a tanh and is cut off at eps, not scaled to it, so nearly every pixel of the noise is at +-eps. Noise
comes out of a training: what reproduces it exactly anywhere is the saved `Protection`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, MethodError, ModelError, NotFinite, notice, setting
from ..nets.noise_generator import NoiseGenerator
from ..runs import Progress, progress, seeded
from .base import Additive, Fitted, Protection, need_choice, need_number
from .engine.features import (
    FeatureReader,
    FeatureSurrogate,
    check_named,
    crop_of,
    middle,
    scaled,
    side_of,
    surrogate_of,
)
from .engine.keys import seed_of
from .engine.pictures import PictureBatch, Pictures, rows_at_once
from .engine.surrogates import frozen

__all__ = ["UnlearnableClusters", "bounded", "centre_loss", "nearest"]

Norm = Literal["linf", "l2"]
_readers: WeakKeyDictionary[Protection, FeatureReader] = WeakKeyDictionary()  # a surrogate is loaded once a protection


@dataclass(frozen=True, kw_only=True)
class UnlearnableClusters(Additive):
    """Adds noise within eps, the same for all pictures of a cluster of features (arXiv 2301.01217, CVPR 2023).

    It reads no labels. Pictures it was not fitted to get the noise of the nearest centre; pictures keep their size, and the noise is brought to it.
    Fitted state: `centres_`, float32, `[n_clusters, dim]`; `noise_`, float32, `[n_clusters, channels, side, side]`; `assignment_`,
    int64, `[pictures]`. Facts: `targets_`, whose centre each cluster is carried to; `kl_`, for each cluster how far from it its pictures
    are without noise and with it; `crop_`; and `surrogate_`, a hash of its weights. All features are in memory at once, pictures are not.

    Args:
        eps: the budget, the largest change of a pixel in 0..1, from 0 (none) to 1; 16/255 in the paper. With norm "l2", the root mean
            square of the noise (ours; the official one is its whole length).
        norm: "linf" cuts the generator's output off at eps; "l2" scales it to the length eps * sqrt(values).
        surrogate: a trained image model whose features are read: a folder or a name of the Hub (a classifier of transformers, or CLIP), a
            module that takes pixels in 0..1, a `PictureFeatures`, or a function of num_classes, channels and image_size that makes one.
        n_clusters: at least 2; also no more than there are pictures.
        n_init: runs of K-means, of which the best counts; 10 was scikit-learn's default.
        offset: cluster i is carried to the centre of i + offset; no multiple of n_clusters.
        train_on: a generator is trained on the pictures of its "cluster", or as the official code does on "all".
        epochs: passes over a generator's pictures.
        steps: of each generator, in place of epochs (ours).
        batch_size: pictures a step, at least 1.
        lr: Adam's learning rate at first, above 0.
        min_lr: at the end of its cosine, at least 0.
        weight_decay: of Adam, at least 0.
        width: of the generator's first convolution.
        blocks: the generator's residual blocks.
        downsamplings: how often the generator halves the size.
        image_size: the side of the noise and of what the surrogate sees; none for the surrogate's own, else that of pictures that are
            all of one size (the shorter side), else 224 (ours; the official code has 224).
        crop: the part of a picture's shorter side that the surrogate sees, above 0 to 1; none for 224 of 256, or all of it where pictures
            are all of image_size (ours). Training cuts at random places, and flips.
        resize: "noise" is brought to a picture of another size, to the nearest pixel; "refuse" refuses such pictures (ours).
        device: where surrogate and generators run.
    """

    reads = "nothing"

    eps: float = 16 / 255
    norm: Norm = "linf"
    surrogate: FeatureSurrogate = "microsoft/resnet-50"
    n_clusters: int = 10
    n_init: int = 10
    offset: int = 1
    train_on: Literal["cluster", "all"] = "cluster"
    epochs: int = 50
    steps: int | None = None
    batch_size: int = 256
    lr: float = 1e-4
    min_lr: float = 1e-6
    weight_decay: float = 5e-4
    width: int = 64
    blocks: int = 6
    downsamplings: int = 2
    image_size: int | None = None
    crop: float | None = None
    resize: Literal["noise", "refuse"] = "noise"
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        need_choice("norm", self.norm, ("linf", "l2"))
        need_choice("train_on", self.train_on, ("cluster", "all"))
        need_choice("resize", self.resize, ("noise", "refuse"))
        need_number("n_clusters", self.n_clusters, at_least=2, whole=True)
        for name in ("n_init", "offset", "epochs", "batch_size", "width"):
            need_number(name, getattr(self, name), at_least=1, whole=True)
        for name in ("blocks", "downsamplings"):
            need_number(name, getattr(self, name), at_least=0, whole=True)
        need_number("steps", 1 if self.steps is None else self.steps, at_least=1, whole=True)
        need_number("image_size", 4 if self.image_size is None else self.image_size, at_least=4, whole=True)
        need_number("crop", 1.0 if self.crop is None else self.crop, above=0, at_most=1)
        need_number("lr", self.lr, above=0)
        for name in ("min_lr", "weight_decay"):
            need_number(name, getattr(self, name), at_least=0)
        if self.offset % self.n_clusters == 0:
            raise MethodError(
                f"{setting('offset')} is {self.offset} and {setting('n_clusters')} {self.n_clusters}, so each cluster would be carried to its own "
                "centre. Give an offset that is no multiple of it."
            )
        check_named(self.surrogate)
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise MethodError(
                f"{setting('device')} is {self.device!r}; it must be a device of torch, such as 'cpu' or 'cuda'."
            ) from None

    @property
    def budget(self) -> int:
        """The most by which an 8-bit value changes, in levels of 255: with norm "l2", which bounds no single value, all of them."""
        if self.norm == "l2":
            return 255 if self.eps else 0
        return super().budget

    @property
    def targets(self) -> tuple[int, ...]:
        """Whose centre each cluster is carried to."""
        return tuple((cluster + self.offset) % self.n_clusters for cluster in range(self.n_clusters))

    def layout(self) -> Mapping[str, tuple[str, int]]:
        return {"centres": ("float32", 2), "noise": ("float32", 4), "assignment": ("int64", 1)}

    def _fit(self, pictures: Pictures) -> Fitted:
        if len(pictures) < self.n_clusters:
            raise DataError(
                f"{pictures.name} has {len(pictures)} pictures, of which {self.n_clusters} clusters can't be made. Give more pictures, or fewer "
                f"{setting('n_clusters')}."
            )
        with seeded(seed_of(self.key, "surrogate")):
            reader = self._reader(pictures)
        if self.resize == "refuse" and pictures.one_shape("this noise is made for one size")[1:] != (
            reader.image_size,
            reader.image_size,
        ):
            raise DataError(
                f"{pictures.place(0)} is not of the noise's size, {reader.image_size}x{reader.image_size}. Bring the pictures to it, or set "
                f"{setting('resize')} to 'noise'."
            )
        centres, assignment = self.clustered(reader.read_all(pictures))
        noise, moved = [], []
        with progress(sum(map(self._steps, self._trained_on(assignment))), "training generators") as bar:
            for cluster in range(self.n_clusters):
                with seeded(seed_of(self.key, f"generator {cluster}")):
                    training = ClusterTraining(self, reader, pictures, assignment, centres, cluster)
                    noise.append(training.run(bar))
                    moved.append([training.distance(torch.zeros_like(noise[-1])), training.distance(noise[-1])])
        if self.eps and (still := [cluster for cluster, (before, after) in enumerate(moved) if after >= before]):
            notice(
                f"the noise of {len(still)} of {self.n_clusters} clusters carries their pictures no nearer to another centre (first: cluster "
                f"{still[0]}). It may protect less; another {setting('lr')} or more {setting('epochs')} may help."
            )
        state = {"centres": centres, "noise": torch.cat(noise).cpu().numpy(), "assignment": assignment}
        facts = {"targets": list(self.targets), "kl": moved, "crop": reader.crop, "surrogate": reader.key}
        return Fitted(state, facts)

    def clustered(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres `[n_clusters, dim]` and whose picture is whose `[rows]`, of features `[rows, dim]`.

        Raises:
            DataError: there are fewer different features than clusters.
        """
        from sklearn.cluster import KMeans

        seed = seed_of(self.key, "clusters") % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too few different features there is one line, ours
            found = KMeans(self.n_clusters, n_init=self.n_init, random_state=seed).fit(features)
        assignment = found.labels_.astype(np.int64)
        if (empty := np.bincount(assignment, minlength=self.n_clusters) == 0).any():
            raise DataError(
                f"{empty.sum()} of {self.n_clusters} clusters are empty: the surrogate sees {self.n_clusters - empty.sum()} different pictures "
                f"among {len(features)}. Give fewer {setting('n_clusters')}, or another surrogate."
            )
        return found.cluster_centers_.astype(np.float32), assignment

    def _noise(self, protection: Protection, batch: PictureBatch) -> np.ndarray:
        noise = protection.state["noise"]
        if batch.pixels.shape[1] != noise.shape[1] or (
            self.resize == "refuse" and batch.pixels.shape[1:] != noise.shape[1:]
        ):
            raise DataError(
                f"image {batch.at[0]} has shape {list(batch.pixels.shape[1:])} and the noise {list(noise.shape[1:])}. Bring all pictures to one size."
            )
        reader = _reader_of(protection)
        features = reader.read(batch.pixels, [f"image {row}" for row in batch.at.tolist()])
        own = torch.from_numpy(noise)[nearest(features, protection.state["centres"])]
        return F.interpolate(own, batch.pixels.shape[2:]).numpy()  # nearest; of the same size, as it is

    def _reader(self, pictures: Pictures) -> FeatureReader:
        channels, height, width = pictures.shape(0)
        source = surrogate_of(
            self.surrogate, channels, self.image_size or min(height, width), seed_of(self.key, "surrogate")
        )
        side = side_of(source, self.image_size, pictures)
        return FeatureReader(source, channels, side, crop_of(self.crop, side, pictures), self.device)

    def _trained_on(self, assignment: np.ndarray) -> list[int]:
        """How many pictures each generator is trained on."""
        members = np.bincount(assignment, minlength=self.n_clusters)
        return members.tolist() if self.train_on == "cluster" else [len(assignment)] * self.n_clusters

    def _steps(self, rows: int) -> int:
        return self.steps or self.epochs * -(-rows // self.batch_size)


class ClusterTraining:
    """The training of one cluster's generator; everything random comes from torch's global generator.

    Args:
        shield: its settings.
        reader: of features.
        pictures: all.
        assignment: `[pictures]`, whose each is.
        centres: `[clusters, dim]`
        cluster: whose generator.
    """

    def __init__(
        self,
        shield: UnlearnableClusters,
        reader: FeatureReader,
        pictures: Pictures,
        assignment: np.ndarray,
        centres: np.ndarray,
        cluster: int,
    ) -> None:
        self.shield, self.reader, self.pictures = shield, reader, pictures
        self.members = (assignment == cluster).nonzero()[0]
        self.target = torch.from_numpy(centres[shield.targets[cluster]]).to(shield.device)
        channels, side = pictures.shape(0)[0], reader.image_size
        self.input = torch.rand(1, channels, side, side).to(shield.device)
        self.generator = NoiseGenerator(channels, shield.width, shield.blocks, shield.downsamplings).to(shield.device)

    def run(self, bar: Progress[Any]) -> Tensor:
        """The noise after the training, `[1, channels, side, side]`."""
        shield = self.shield
        rows = self.members if shield.train_on == "cluster" else np.arange(len(self.pictures))
        batches = [rows[start : start + shield.batch_size] for start in range(0, len(rows), shield.batch_size)]
        steps = shield._steps(len(rows))
        optimiser = torch.optim.Adam(self.generator.parameters(), shield.lr, weight_decay=shield.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, shield.min_lr)
        with frozen(self.reader.model):
            for step in range(steps):
                loss = self.loss(self.views(batches[step % len(batches)]), self.noise())
                if not torch.isfinite(loss):
                    raise NotFinite(f"the generator's loss is {loss.item()}. Lower {setting('lr')}.")
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.advance()
        with torch.no_grad():
            return self.noise()

    def noise(self) -> Tensor:
        """What the generator draws, within the budget; `[1, channels, side, side]`."""
        drawn: Tensor = self.generator(self.input)
        return bounded(drawn, self.shield.eps, self.shield.norm)

    def loss(self, views: Tensor, noise: Tensor) -> Tensor:
        """How far pictures with this noise are from the target. views: `[rows, channels, side, side]` in 0..1."""
        return centre_loss(self.reader.of((views + noise).clamp(0, 1)), self.target)

    def views(self, rows: np.ndarray, *, centred: bool = False) -> Tensor:
        """These pictures as the surrogate sees them: cut out at random and flipped, or from the middle.

        Returns:
            `[rows, channels, side, side]` in 0..1.
        """
        side, pictures, device = self.reader.image_size, self.pictures, self.reader.device
        shapes = [pictures.shape(row) for row in rows.tolist()]
        views = torch.empty(len(rows), shapes[0][0], side, side, device=device)
        for shape in dict.fromkeys(shapes):
            alike, most = [place for place, one in enumerate(shapes) if one == shape], rows_at_once(shape)
            for start in range(0, len(alike), most):
                places = alike[start : start + most]
                shown = scaled(torch.from_numpy(pictures.pixels(rows[places])).to(device), side, self.reader.crop)
                views[places] = middle(shown, side) if centred else _random_views(shown, side)
        return views

    @torch.no_grad()
    def distance(self, noise: Tensor) -> float:
        """The mean loss of the cluster's own pictures, cut from the middle, with a noise."""
        total = 0.0
        with frozen(self.reader.model):
            for start in range(0, len(self.members), self.shield.batch_size):
                rows = self.members[start : start + self.shield.batch_size]
                total += len(rows) * self.loss(self.views(rows, centred=True), noise).item()
        return total / len(self.members)


def centre_loss(features: Tensor, centre: Tensor) -> Tensor:
    """How far features are from a centre, both as softmax: KL(centre || features), the mean over rows.

    Args:
        features: `[rows, values]`
        centre: `[values]`
    """
    target = centre.softmax(0).expand_as(features)
    return F.kl_div(features.log_softmax(1), target, reduction="batchmean")


def bounded(drawn: Tensor, eps: float, norm: Norm) -> Tensor:
    """A generator's output in -1..1 as noise: cut off at eps, or scaled to a root mean square of eps. drawn: `[1, ...]`"""
    if norm == "l2":
        return drawn * (eps / drawn.square().mean().sqrt())
    return drawn.clamp(-eps, eps)


def nearest(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """`[rows]`: the centre that each row is nearest to. features: `[rows, dim]`, centres: `[clusters, dim]`."""
    rows, targets = features.astype(np.float64), centres.astype(np.float64)
    return np.stack([((rows - centre) ** 2).sum(1) for centre in targets], axis=1).argmin(1)


def _random_views(shown: Tensor, side: int) -> Tensor:
    """A square of each picture from a random place, half of them flipped; `[rows, channels, side, side]`."""
    rows, _, height, width = shown.shape
    flips = torch.rand(rows).to(shown.device) < 0.5
    if (height, width) != (side, side):
        tops, lefts = (torch.randint(0, size - side + 1, (rows,)).tolist() for size in (height, width))
        places = enumerate(zip(tops, lefts, strict=True))
        shown = torch.stack([shown[row, :, top : top + side, left : left + side] for row, (top, left) in places])
    return torch.where(flips[:, None, None, None], shown.flip(-1), shown)


def _reader_of(protection: Protection) -> FeatureReader:
    """The surrogate that a protection was fitted with, loaded or built again once.

    Raises:
        ModelError: it has other weights now.
    """
    if (reader := _readers.get(protection)) is not None:
        return reader
    shield, noise, facts = protection.shield, protection.state["noise"], protection.facts
    assert isinstance(shield, UnlearnableClusters)
    _, channels, side, _ = noise.shape
    with seeded(seed_of(shield.key, "surrogate")):
        source = surrogate_of(shield.surrogate, channels, side, seed_of(shield.key, "surrogate"))
        reader = FeatureReader(source, channels, side, facts["crop"], shield.device)
    if reader.key != facts["surrogate"]:
        raise ModelError(
            f"the surrogate {reader.name} has other weights than the one that this protection was fitted with. Give that one."
        )
    _readers[protection] = reader
    return reader
