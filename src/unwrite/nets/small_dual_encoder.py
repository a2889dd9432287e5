"""A small CLIP: a convolutional encoder of pictures and a bag-of-words encoder of captions, into one space.

    logits = exp(logit_scale) cos(image features, text features)

It has the two feature functions and the scale that shields of captions ask for. Weights are drawn from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import DataError, ModelError
from .small_vision import SmallCNN

__all__ = ["SmallDualEncoder"]

FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # as CLIP has them


class SmallDualEncoder(nn.Module):
    """Pictures of 8 to 32 pixels and captions of known words.

    Args:
        words: all that captions consist of, in lower case.
        features: of the space.
        width: of the first convolution.
        image_size: height and width of the pictures.
    """

    def __init__(self, words: Sequence[str], features: int = 64, width: int = 16, image_size: int = 32) -> None:
        super().__init__()
        if len({*words}) < len(words) or not words:
            raise ModelError(f"{len(words)} words of which {len({*words})} differ are no vocabulary. Give each once.")
        self.numbers = {word: number for number, word in enumerate(words)}
        self.image_size = image_size
        self.pictures = SmallCNN(features, 3, image_size, width)
        self.words = nn.EmbeddingBag(len(words), features, mode="mean")
        self.captions = nn.Sequential(nn.Linear(features, 2 * features), nn.ReLU(), nn.Linear(2 * features, features))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    @property
    def scale(self) -> float:
        """The factor of cosine similarities in its loss."""
        return float(self.factor.detach())

    @property
    def factor(self) -> Tensor:
        """The same with its gradient."""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)

    def image_features(self, pixels: Tensor) -> Tensor:
        """`[rows, features]` of pictures `[rows, 3, height, width]` in 0..1."""
        features: Tensor = self.pictures(pixels)
        return features

    def text_features(self, texts: Sequence[str], *, truncation: bool = False) -> Tensor:
        """`[texts, features]`; captions of any length, so there is nothing to cut off.

        Raises:
            DataError: a word that it doesn't know, or no words.
        """
        bags = [text.lower().split() for text in texts]
        for text, bag in zip(texts, bags, strict=True):
            odd = next((word for word in bag or [""] if word not in self.numbers), None)
            if odd is not None:
                raise DataError(f"the caption {text!r:.40} has the word {odd!r}, which this encoder doesn't know.")
        device = self.words.weight.device
        ids = torch.tensor([self.numbers[word] for bag in bags for word in bag], device=device)
        ends = torch.tensor([0, *(len(bag) for bag in bags[:-1])], device=device).cumsum(0)
        features: Tensor = self.captions(self.words(ids, ends))
        return features
