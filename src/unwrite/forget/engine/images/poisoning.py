"""Poisoned pictures of a class: patches of donor pictures pasted where concepts are, and what chooses them.

Every draw (which donor, which place) is a function of (seed, row). Pixels are kept as they are pasted; the authors' code stores them
as JPEG, whose traces an attack can see. (Concept inference and poisoning, arXiv 2405.15662, official code poison_gen)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ....data.images.images import Images
from ....errors import DataError, MethodError, setting
from ..checks import require
from ..stream import permutation
from .concepts import (
    ConceptBank,
    ConceptBottleneck,
    ConceptCase,
    Encoder,
    ModelFeatures,
    choose_case,
    donor_of,
    embedded,
)
from .locating import (
    Place,
    cropped,
    gradcam,
    margin_grid,
    pasted,
    patch_embeddings,
    peaks,
    peaks_of_map,
    resized,
    similarity_grid,
)
from .work import ImageWork

__all__ = ["Locator", "Mode", "PasteSizes", "Poisoner", "poisoned", "some_of_each"]

Mode = Literal["localized", "center", "random", "full", "none"]
Locator = Literal["similarity", "margin", "gradcam"]
_DONOR, _PLACE, _SHARE, _PATCHES = 17, 18, 19, 20  # keep these draws apart from others of the same seed
SIDE = 224  # of the pictures that the paper's sizes are of
CLUSTERED = 400  # pictures whose patches are clustered, at most
AT_ONCE = 64  # pictures whose patches are looked at together


@dataclass(frozen=True)
class PasteSizes:
    """Sides in pixels.

    Args:
        patch: of the sliding window, and of what is pasted by it.
        center: of what is taken from the middle of a donor.
        full: of a whole donor made smaller.
        stride: of the sliding window.
    """

    patch: int
    center: int
    full: int
    stride: int

    @classmethod
    def of(
        cls,
        shape: tuple[int, int, int],
        patch: int | None = None,
        center: int | None = None,
        full: int | None = None,
        stride: int | None = None,
    ) -> PasteSizes:
        """Those given, or the paper's at the scale of such pictures `(channels, height, width)`.

        >>> PasteSizes.of((3, 224, 224)), PasteSizes.of((1, 32, 32))
        (PasteSizes(patch=64, center=96, full=160, stride=16), PasteSizes(patch=9, center=14, full=23, stride=2))
        """
        scaled = [max(1, round(size * min(shape[1:]) / SIDE)) for size in (64, 96, 160, 16)]
        given = (patch, center, full, stride)
        return cls(*(own if own is not None else size for own, size in zip(given, scaled, strict=True)))

    def check(self, mode: Mode, height: int, width: int) -> None:
        """Refuses what doesn't fit into a picture.

        Raises:
            MethodError: which size, and how large it may be.
        """
        used = {"localized": "patch", "center": "center", "random": "center", "full": "full"}.get(mode)
        for name in {"patch", used} - {None}:
            size = getattr(self, str(name))
            if size > min(height, width):
                raise MethodError(
                    f"{setting(f'{name}_size')} is {size}, and the pictures have {height}x{width} pixels. Give at most "
                    f"{min(height, width)}."
                )


def some_of_each(rows: Images, share: float, seed: int) -> Images:
    """This share of the rows of every class, rounded down but one at least, in the set's order."""
    assert rows.labels is not None
    if share == 1:
        return rows
    mask = torch.zeros(len(rows), dtype=torch.bool)
    for label in rows.labels.unique().tolist():
        at = (rows.labels == label).nonzero()[:, 0]
        drawn = permutation(len(at), seed, _SHARE, label)[: max(1, int(share * len(at)))]
        mask[at[torch.from_numpy(drawn)]] = True
    return rows.where(mask)


def poisoned(rows: Images, pixels: Tensor, labels: Tensor) -> Images:
    """The rows with other pixels and labels.

    Args:
        pixels: `[rows, channels, height, width]`
        labels: `[rows]`

    Raises:
        DataError: as many pictures or labels as there are rows are not given.
    """
    for name, given in (("pictures", pixels), ("labels", labels)):
        if len(given) != len(rows):
            raise DataError(
                f"there are {len(given)} poisoned {name} for the {len(rows)} rows of {rows.name}. Poison every row once."
            )
    return replace(rows, pixels=pixels, labels=labels, name="poisoned")


@dataclass(frozen=True, eq=False)
class Poisoner:
    """What finds concepts in the rows of one application, and pastes.

    Args:
        work: the model, the class to forget and the rows to keep.
        sizes: of what is pasted.
        given_encoder, given_bank: None for the model's own features, and for clusters of patches.
        clusters: how many of those.
        share: of the rows of every class, see `some_of_each`.
    """

    work: ImageWork
    sizes: PasteSizes
    given_encoder: Encoder | None = None
    given_bank: ConceptBank | None = None
    clusters: int = 20
    share: float = 1.0

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder given, or the model as it is; the model's forwards are counted."""
        if self.given_encoder is not None:
            return self.given_encoder
        features = ModelFeatures(self.work.layout, self.work.forget.shape[1:])

        def counted(pixels: Tensor) -> Tensor:
            self.work.cost.add(len(pixels))
            return features(pixels)

        return counted

    @cached_property
    def train(self) -> Images:
        """All rows that there are to train with, by index."""
        work, share, seed = self.work, self.share, self.work.args.seed
        return some_of_each(work.retained, share, seed).joined(some_of_each(work.forget, share, seed))

    @property
    def target(self) -> int:
        """The class to forget."""
        return int(self.work.forget.target[0])

    @cached_property
    def bank(self) -> ConceptBank:
        """The bank given, or clusters of the patches of some training rows."""
        if self.given_bank is not None:
            return self.given_bank
        seed = self.work.args.seed
        drawn = permutation(len(self.train), seed, _PATCHES)[:CLUSTERED]
        some = self.train.pixels[torch.from_numpy(np.sort(drawn))]
        found = patch_embeddings(self.encoder, some, self.sizes.patch, 2 * self.sizes.stride).flatten(0, 2)
        return ConceptBank.of_patches(found, self.clusters, abs(seed))

    @cached_property
    def bottleneck(self) -> ConceptBottleneck:
        """The classifier of concepts, fitted to the training rows.

        Raises:
            DataError: a class without training rows.
        """
        embeddings = embedded(self.encoder, self.train.pixels)
        return ConceptBottleneck.fit(self.bank, embeddings, self.train.target, self.train.classes)

    def case(
        self, target_concept: str | None = None, donor_concept: str | None = None, donor_class: int | None = None
    ) -> ConceptCase:
        """The bottleneck's choice, unless something is given: a donor of one's own lends its strongest concept.

        Raises:
            MethodError: a concept that the bank has not.
        """
        weights = self.bottleneck.weights
        case = choose_case(weights, self.target)
        if target_concept is not None:
            case = replace(case, target_concept=self.bank.at(target_concept), rule="given")
        if donor_concept is not None:
            concept = self.bank.at(donor_concept)
            donor = donor_of(weights, self.target, concept) if donor_class is None else donor_class
            return replace(case, donor_class=donor, donor_concept=concept, rule="given")
        if donor_class is not None:
            [concept] = self.bottleneck.strongest(donor_class)
            return replace(case, donor_class=donor_class, donor_concept=concept, rule="given")
        return case

    def pastes(self, case: ConceptCase, top: int) -> list[ConceptCase]:
        """What is pasted over what, one after the other: the case, or for several concepts each with its own donor.

        Raises:
            MethodError: more concepts than the bank has.
        """
        require("top", top, at_least=1, at_most=len(self.bank.names))
        if top == 1:
            return [case]
        weights = self.bottleneck.weights
        return [
            case
            if concept == case.target_concept
            else ConceptCase(concept, donor_of(weights, self.target, concept), concept, "shared")
            for concept in self.bottleneck.strongest(self.target, top)
        ]

    def pixels(
        self, rows: Images, case: ConceptCase, mode: Mode, locator: Locator = "similarity", top: int = 1
    ) -> Tensor:
        """The rows' pictures with what is pasted into them, `[rows, channels, height, width]`."""
        pictures = rows.pixels
        if mode == "none":
            return pictures
        for number, one in enumerate(self.pastes(case, top)):
            donors = self._donors(rows, one.donor_class, number)
            parts = [
                self._localized(some, others, one, locator)
                if mode == "localized"
                else self._placed(some, others, mode, names)
                for some, others, names in zip(
                    pictures.split(AT_ONCE), donors.split(AT_ONCE), rows.index.split(AT_ONCE), strict=True
                )
            ]
            pictures = torch.cat(parts)
        return pictures

    def _donors(self, rows: Images, label: int, number: int) -> Tensor:
        """A picture of the donor class for every row, drawn."""
        pool = self.train.pixels[self.train.target == label]
        if len(pool) == 0:
            raise DataError(
                f"the class {rows.classes[label]!r} has no rows, so it can lend nothing. Give another donor."
            )
        drawn = [
            int(_draws(self.work.args.seed, _DONOR, name, number).integers(len(pool))) for name in rows.index.tolist()
        ]
        return pool[drawn]

    def _localized(self, pictures: Tensor, donors: Tensor, case: ConceptCase, locator: Locator) -> Tensor:
        size = self.sizes.patch
        there = self.places(donors, case.donor_concept)
        here = self.places(pictures, case.target_concept, locator)
        return torch.stack(
            [
                pasted(picture, cropped(donor, origin, size), place)
                for picture, donor, origin, place in zip(pictures, donors, there, here, strict=True)
            ]
        )

    def places(self, pictures: Tensor, concept: int, locator: Locator = "similarity") -> list[Place]:
        """Where a concept is in each picture, or by another locator where the class to forget is."""
        size, stride = self.sizes.patch, self.sizes.stride
        if locator == "gradcam":
            maps = gradcam(self.work.layout, pictures.to(self.work.device), self.target)
            self.work.cost.add(len(pictures), 1, 1)
            return peaks_of_map(maps.cpu(), *pictures.shape[2:])
        if locator == "margin":
            return peaks(margin_grid(self.encoder, pictures, self.bottleneck, self.target, size, stride), size, stride)
        vector = self.bank.vectors[concept][None]
        return peaks(similarity_grid(self.encoder, pictures, vector, size, stride)[..., 0], size, stride)

    def _placed(self, pictures: Tensor, donors: Tensor, mode: Mode, names: Tensor) -> Tensor:
        """Without a look at what is in them."""
        height, width = pictures.shape[2:]
        middle = (height // 2, width // 2)
        out = []
        for picture, donor, name in zip(pictures, donors, names.tolist(), strict=True):
            if mode == "full":
                out.append(pasted(picture, resized(donor, self.sizes.full), middle))
                continue
            place = middle if mode == "center" else self._anywhere(name, height, width)
            out.append(pasted(picture, cropped(donor, middle, self.sizes.center), place))
        return torch.stack(out)

    def _anywhere(self, name: int, height: int, width: int) -> Place:
        """A centre whose box lies inside."""
        draws, margin = _draws(self.work.args.seed, _PLACE, name, 0), self.sizes.center // 2
        return tuple(int(draws.integers(margin, side - margin + 1)) for side in (height, width))  # type: ignore[return-value]


def _draws(seed: int, kind: int, name: int, number: int) -> np.random.Generator:
    return np.random.default_rng([abs(seed), kind, number, name % 2**64])  # names may be negative, keys not
