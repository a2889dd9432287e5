"""The bed of sharded training: a small ViT that was pretrained on some classes of real digits, and the rows of the others."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.images.images import Images
from ..data.images.sets import digits
from ..models.image_training import fitted, image_recipe
from ..nets.small_vision import SmallViT

__all__ = ["ShardedDigits"]


@dataclass(frozen=True)
class ShardedDigits:
    """A base that knows some classes, and the rows of others.

    Args:
        base: pretrained, with a new head.
        train, test: rows of the classes to learn, labelled from 0.
    """

    base: nn.Module
    train: Images
    test: Images

    @classmethod
    def of(cls, seed: int, classes: Sequence[int], epochs: int) -> ShardedDigits:
        """The base is trained on all other classes.

        Args:
            seed: of the split, the base and its new head.
            classes: to learn.
            epochs: of the pretraining.
        """
        data = digits(seed=seed)
        known = [one for one in range(10) if one not in classes]
        recipe = image_recipe(SmallViT, epochs=epochs, num_classes=len(known), channels=1, image_size=8)
        rows = _of_classes(data.train, known)
        base = copy.deepcopy(fitted(recipe, rows, range(len(rows)), seed))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            base.head = nn.Linear(base.get_submodule("head").in_features, len(classes))  # type: ignore[arg-type]
        return cls(base, _of_classes(data.train, classes), _of_classes(data.test, classes))

    @property
    def chance(self) -> float:
        """Accuracy of one class for all, in %."""
        return 100 / len(self.test.classes)

    def right(self, probabilities: Tensor) -> float:
        """Accuracy on the test rows, in %. probabilities: [rows, classes]"""
        return 100 * int((probabilities.argmax(-1) == self.test.target).sum()) / len(self.test)


def _of_classes(rows: Images, classes: Sequence[int]) -> Images:
    """The rows of some classes, labelled from 0 in their order."""
    chosen = rows.where(torch.isin(rows.target, torch.tensor(list(classes))))
    labels = torch.tensor([list(classes).index(one) for one in chosen.target.tolist()])
    return Images(chosen.pixels, labels, index=chosen.index, classes=tuple(map(str, classes)), name=rows.name)
