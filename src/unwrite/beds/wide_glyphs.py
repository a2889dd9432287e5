"""The bed of nets made smaller: rendered 32x32 characters, a VGG and a ResNet of twice the width they need, and of that width.

Copies of channels can be planted in a trained net: the channels that pruning takes first become multiples of others after
normalisation, behind filters a tenth as long, so that what is taken out is known to be there once more.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..compress.nets.graph import net_graph
from ..compress.nets.shrinking import kept_channels
from ..data.images.images import Images
from ..data.images.sets import TrainTest, glyphs
from ..models.image_training import fitted, image_recipe
from ..nets.glyph_nets import SmallResNet14, SmallVGG

__all__ = ["NETS", "SHAPE", "TIMES", "GlyphNets", "share_right", "with_copies"]

NETS = {"VGG": SmallVGG, "ResNet": SmallResNet14}
SHAPE = (3, 32, 32)
TIMES, SHORTER = (
    0.8,
    0.1,
)  # a planted copy to its original: after normalisation, and its filter to the shortest that stays


@cache
def _glyphs(seed: int, draws: int, test_draws: int) -> TrainTest:
    return glyphs(draws=draws, test_draws=test_draws, seed=seed)


@dataclass(frozen=True)
class GlyphNets:
    """Rows and trained nets of one seed.

    Args:
        width: of the nets that have what they need; the wide ones have twice as many channels everywhere.
        epochs: of their training.
        draws, test_draws: pictures of each character in each font, to train on and to test on.
        seed: of rows and weights.
    """

    width: int
    epochs: int
    draws: int
    test_draws: int
    seed: int

    @property
    def data(self) -> TrainTest:
        """Training and test rows."""
        return _glyphs(self.seed, self.draws, self.test_draws)

    def net(self, kind: str, wide: bool = True) -> nn.Module:
        """One of `NETS`, trained."""
        size: dict[str, Any] = {"num_classes": 10, "channels": 3, "image_size": 32, "width": self.width * (1 + wide)}
        recipe = image_recipe(NETS[kind], epochs=self.epochs, **size)
        return fitted(recipe, self.data.train, range(len(self.data.train)), self.seed)

    def some(self, rows: int) -> Tensor:
        """Pixels of training rows, evenly drawn."""
        pixels: Tensor = self.data.train.pixels
        return pixels[:: max(1, len(pixels) // rows)][:rows]


@torch.no_grad()
def share_right(model: nn.Module, rows: Images, batch: int = 128) -> float:
    """How many pictures a net names right, in %."""
    right = [
        (model(pixels).argmax(1) == target).sum()
        for pixels, target in zip(rows.pixels.split(batch), rows.target.split(batch), strict=True)
    ]
    return 100 * float(sum(right)) / len(rows)


@torch.no_grad()
def with_copies(model: nn.Module) -> nn.Module:
    """A net in which the shorter half of every prunable layer's channels says `TIMES` what one of the longer half says.

    It answers otherwise than the net it was made of: what it is for is to be compared with itself.
    """
    model = copy.deepcopy(model)
    for layer in net_graph(model, SHAPE).chains:
        conv: Any = model.get_submodule(layer.name)
        norm: Any = model.get_submodule(layer.norm)
        kept = kept_channels(model, layer, layer.channels - layer.channels // 2, "l2")
        lengths = conv.weight.flatten(1).norm(dim=1)
        others = [number for number in range(layer.channels) if number not in set(kept.tolist())]
        for other, original in zip(others, kept.tolist(), strict=False):
            shorter = SHORTER * lengths[kept].min() / lengths[original]
            conv.weight[other] = shorter * conv.weight[original]
            norm.running_mean[other] = shorter * norm.running_mean[original]
            norm.running_var[other] = norm.running_var[original]
            norm.weight[other] = TIMES / shorter * norm.weight[original]
            norm.bias[other] = TIMES * norm.bias[original]
            if conv.bias is not None:
                conv.bias[other] = shorter * conv.bias[original]
    return model
