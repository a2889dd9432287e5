"""Beds of drawn hands, once `unwrite data add emoji` has fetched their font: the gesture is the label, the skin tone the identity.

emoji/class        one gesture is forgotten
emoji/identity     one skin tone, in all gestures
"""

from __future__ import annotations

from functools import cache, partial

from ..data.images.emoji import EMOJI_FONT, GESTURES, TONES, emoji
from ..data.images.fetched import data_folder
from ..data.images.sets import TrainTest
from ..data.images.splits import ImageSplit, split_by_identity
from .images import Bed, _by_class

__all__ = ["BEDS"]

EPOCHS = 12
NET = {"num_classes": len(GESTURES), "channels": 3, "image_size": 32}


@cache
def _emoji(seed: int) -> TrainTest:
    return emoji(data_folder("emoji") / EMOJI_FONT, seed=seed)


def _by_tone(data: TrainTest, seed: int) -> ImageSplit:
    tones = list(TONES)
    return split_by_identity(data.train, tones[seed % len(tones)], test=data.test, seed=seed)


BEDS: dict[str, Bed] = {
    "emoji/class": Bed("emoji/class", _emoji, partial(_by_class, "waving hand sign"), NET, EPOCHS),
    "emoji/identity": Bed("emoji/identity", _emoji, _by_tone, NET, EPOCHS),
}
