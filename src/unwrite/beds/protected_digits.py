"""The bed of shields: real digits to protect, and a small network that trains on what was published and is tested on clean digits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.images.images import Images
from ..data.images.sets import digits
from ..models.fitting import TrainRecipe
from ..models.image_training import fitted, image_recipe
from ..models.recipe import CausalTraining, fit_rows
from ..nets.small_vision import SmallCNN
from ..shield.engine.surrogates import frozen, signed_steps

__all__ = ["ProtectedDigits", "adversarial_recipe", "class_noise", "relabelled"]

TEST_SHARE = 1 / 3
NET: dict[str, Any] = {"num_classes": 10, "channels": 1, "image_size": 8, "width": 16}


@dataclass(frozen=True)
class ProtectedDigits:
    """Digits that are published, clean digits that nobody trains on, and who trains.

    Args:
        train, test: 1198 and 599 pictures of 8 x 8, split by the seed.
        recipe: how the attacker trains.
        seed: of the split and of the attacker's weights.
    """

    train: Images
    test: Images
    recipe: TrainRecipe
    seed: int

    @classmethod
    def of(cls, seed: int, epochs: int) -> ProtectedDigits:
        """For one seed."""
        data = digits(test_share=TEST_SHARE, seed=seed)
        return cls(data.train, data.test, image_recipe(SmallCNN, epochs=epochs, **NET), seed)

    def attacker(self, published: Images, recipe: TrainRecipe | None = None) -> nn.Module:
        """Who trained on these pictures with their labels."""
        return fitted(recipe or self.recipe, published, range(len(published)), self.seed)

    def right(self, published: Images, recipe: TrainRecipe | None = None) -> float:
        """Accuracy on clean test digits of who trained on these pictures, in %."""
        return accuracy(self.attacker(published, recipe), self.test, self.test.target)


@torch.no_grad()
def accuracy(model: nn.Module, pictures: Images, labels: Tensor) -> float:
    """How many pictures a network gives these labels, in %. labels: [rows]"""
    return 100 * float((model(pictures.pixels).argmax(1) == labels).float().mean())


def relabelled(pictures: Images, labels: Tensor) -> Images:
    """The same pictures with other labels, `[rows]`."""
    return replace(pictures, labels=labels)


def class_noise(pictures: Images, levels: int, seed: int) -> Images:
    """Pictures with random noise of so many levels of 255 up or down, the same for all of a class: a tie to the labels, and no search."""
    shape = (len(pictures.classes), *pictures.shape)
    noise = torch.from_numpy(np.random.default_rng(seed).choice([-levels, levels], size=shape).astype(np.float32))
    pixels = (torch.round(pictures.pixels * 255) + noise[pictures.target]).clamp(0, 255)
    return replace(pictures, pixels=pixels / 255)


def adversarial_recipe(epochs: int, eps: float, steps: int) -> TrainRecipe:
    """The attacker who trains on worst cases within eps of each picture (PGD), steps of 1.5 eps / steps from random noise."""
    plain = image_recipe(SmallCNN, epochs=epochs, **NET)
    how = CausalTraining(epochs, 2e-3, 64, weight_decay=5e-4, clip=1e9)

    def fit(model: nn.Module, data: Any, indices: list[int], seed: int, folder: Path) -> None:
        def loss(model: nn.Module, rows: list[Any], device: str) -> Tensor:
            batch = data[rows]
            pixels, labels = batch.pixels.to(device), batch.target.to(device)
            start = eps * (2 * torch.rand_like(pixels) - 1)
            with frozen(model):
                noise = signed_steps(
                    model, pixels, labels, start, eps=eps, alpha=1.5 * eps / steps, steps=steps, ascend=True
                )
            return F.cross_entropy(model((pixels + noise).clamp(0, 1)), labels)

        fit_rows(model, indices, how, seed, folder, loss)

    settings = {**plain.settings, "eps": eps, "steps": steps}
    return TrainRecipe(plain.build, fit, name="adversarial image", settings=settings)
