"""The bed of shields: real digits to protect, and a small network that trains on what was published and is tested on clean digits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..data.images.images import Images
from ..data.images.sets import digits
from ..nets.small_vision import SmallCNN
from ..shield.attacking import Attacker, signed_class_noise, train_attacker
from ..shield.defences.adversarial import AdversarialTraining
from ..shield.defences.base import Defence

__all__ = ["ProtectedDigits", "against_attacks", "class_noise", "relabelled"]

TEST_SHARE = 1 / 3


@dataclass(frozen=True)
class ProtectedDigits:
    """Digits that are published, clean digits that nobody trains on, and who trains.

    Args:
        train, test: 1198 and 599 pictures of 8 x 8, split by the seed.
        who: how the attacker trains.
        seed: of the split and of the attacker's weights.
    """

    train: Images
    test: Images
    who: Attacker
    seed: int

    @classmethod
    def of(cls, seed: int, epochs: int) -> ProtectedDigits:
        """For one seed."""
        data = digits(test_share=TEST_SHARE, seed=seed)
        who = Attacker(
            net=SmallCNN, width=16, epochs=epochs, batch_size=64, lr=2e-3, momentum=None, clip=1e9, shift=0, flip=False
        )
        return cls(data.train, data.test, who, seed)

    def attacker(self, published: Images, defence: Defence | None = None, epochs: int | None = None) -> nn.Module:
        """Who trained on these pictures with their labels, under a defence and for so many epochs."""
        who = self.who if epochs is None else replace(self.who, epochs=epochs)
        return train_attacker(published, defence, who, self.seed)

    def right(self, published: Images, defence: Defence | None = None, epochs: int | None = None) -> float:
        """Accuracy on clean test digits of who trained on these pictures, in %."""
        return accuracy(self.attacker(published, defence, epochs), self.test, self.test.target)


@torch.no_grad()
def accuracy(model: nn.Module, pictures: Images, labels: Tensor) -> float:
    """How many pictures a network gives these labels, in %. labels: [rows]"""
    return 100 * float((model(pictures.pixels).argmax(1) == labels).float().mean())


def relabelled(pictures: Images, labels: Tensor) -> Images:
    """The same pictures with other labels, `[rows]`."""
    return replace(pictures, labels=labels)


def class_noise(pictures: Images, levels: int, seed: int) -> Images:
    """Pictures with random noise of so many levels of 255 up or down, the same for all of a class: a tie to the labels, and no search."""
    noise = torch.from_numpy(signed_class_noise(len(pictures.classes), pictures.shape, levels, seed))
    pixels = (torch.round(pictures.pixels * 255) + noise[pictures.target]).clamp(0, 255)
    return replace(pictures, pixels=pixels / 255)


def against_attacks(eps: float, steps: int) -> AdversarialTraining:
    """Training on worst cases within eps of each picture as CUDA's authors do it: steps of 1.5 eps / steps from uniform noise."""
    return AdversarialTraining(eps=eps, steps=steps, alpha=1.5 * eps / steps, start="uniform")
