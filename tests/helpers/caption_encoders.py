"""Small encoders of captions and pictures for shields, and a generator that fits them: nothing is trained."""

import hashlib

import torch
from torch import nn

from unwrite.nets import TextNoiseGenerator

WIDTH = 6


class HashedText:
    """Features of a text that follow from its letters alone."""

    def __init__(self, width=WIDTH):
        self.width = width
        self.calls = 0

    def text_features(self, texts, *, truncation=False):
        self.calls += 1
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text):
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def __eq__(self, other):
        return isinstance(other, HashedText)

    def __hash__(self):
        return 1


class LinearEncoders(nn.Module):
    """Hashed texts, and pictures through one layer behind batch normalisation and dropout, which training would change."""

    image_size = 8

    def __init__(self, seed=0, scale=10.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.norm, self.drop, self.head = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(192, WIDTH)
        self.scale = scale
        self.texts = HashedText()

    def text_features(self, texts, *, truncation=False):
        return self.texts.text_features(texts)

    def image_features(self, pixels):
        return self.head(self.drop(self.norm(pixels)).flatten(1))


def tiny_generator(seed=0, eps=8 / 255, loud=False, channels=(8, 6), mask=False):
    """A generator of 8 x 8 pixels whose text counts; `loud` brings every value near the budget."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = TextNoiseGenerator(WIDTH, 4, channels, mask=mask, eps=eps)
        with torch.no_grad():
            for name, weight in generator.named_parameters():
                if "gamma" in name or "beta" in name:
                    weight += 0.5 * torch.randn_like(weight)
                if loud and name.startswith("out"):
                    weight *= 1000
    return generator.eval()
