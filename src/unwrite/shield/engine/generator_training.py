"""Training a generator of noise once, on pictures with captions, against a frozen dual encoder (T2UE, arXiv 2508.03091, section 3.2).

Each step makes noise from the captions of a batch, adds it to their pictures, and lowers the contrastive loss of the noisy pictures
with their captions: noise that says what the caption says, so that who trains on it need not look at the picture.

    min over G of  InfoNCE(f_I(clamp(x + G(f_T(t), z))), f_T(t)),   z ~ N(0, I)

A figure of the paper has "minimise similarity"; its equation 4 and its text lower the loss, which raises it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.images.images import Images
from ...errors import DataError, MethodError, setting
from ...models.recipe import CausalTraining, fit_rows
from ...nets.text_noise_generator import TextNoiseGenerator, resized
from ...runs import seeded
from .dual_encoders import DualEncoder, frozen_encoders, info_nce, unit_text_features
from .folders import FolderPictures
from .pictures import ArrayPictures, Pictures

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["GeneratorTraining", "how_it_was_trained", "noise_loss", "train_generator"]

Captions = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """How a generator of noise is trained: AdamW, with a rate that falls to 0 along a cosine.

    Args:
        epochs: passes over the pairs, at least 1; 500 in the paper for ViT-B/32, 300 for ViT-B/16.
        batch_size: pairs a step, at least 2; 128 in the paper.
        lr: the first learning rate, above 0; 1e-4 in the paper.
        weight_decay: at least 0 (ours: the paper has decoupled decay of no stated size).
        direction: "maximise" raises the loss, which is adversarial noise and another method than T2UE.
        truncation: cut off captions that are too long for the text encoder.
        seed: of the weights, the batches, the latents, and which of a picture's captions is taken.
        device: where the generator is trained; the encoders must be there.
    """

    epochs: int = 500
    batch_size: int = 128
    lr: float = 1e-4
    weight_decay: float = 1e-4
    direction: Literal["minimise", "maximise"] = "minimise"
    truncation: bool = False
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.direction not in ("minimise", "maximise"):
            raise MethodError(f"{setting('direction')} is {self.direction!r}; use one of 'minimise', 'maximise'.")
        least = {"epochs": 1, "batch_size": 2, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < bound:
                raise MethodError(f"{setting(name)} is {value!r}; it must be a whole number, at least {bound}.")
        if not 0 < self.lr < math.inf:
            raise MethodError(f"{setting('lr')} is {self.lr!r}; it must be above 0.")
        if not 0 <= self.weight_decay < math.inf:
            raise MethodError(f"{setting('weight_decay')} is {self.weight_decay!r}; it must be at least 0.")


@dataclass(frozen=True)
class CosineTraining(CausalTraining):
    """A training whose rate falls along half a cosine, without a warm-up."""

    def rate(self, step: int, steps: int) -> float:
        return self.lr * (1 + math.cos(math.pi * step / steps)) / 2


def train_generator(
    images: ArrayLike | Images | str | Path | Pictures,
    captions: Captions | str | Path | None,
    encoders: DualEncoder,
    how: GeneratorTraining | None = None,
    *,
    generator: TextNoiseGenerator | None = None,
    eps: float | None = None,
    folder: str | Path | None = None,
) -> TextNoiseGenerator:
    """A trained generator, in evaluation mode. The encoders stay as they are, bit for bit.

    Args:
        images: as a shield takes them, of any size; or a folder, whose captions lie in it.
        captions: one a picture, or several each, of which every step draws one; for a folder, a table of captions, or None. An
            `Images` without has its classes' names for them.
        encoders: `ClipEncoders`, or anything with `text_features`, `image_features` and `scale`.
        how: its settings; the paper's without.
        generator: what is trained, in place; None builds one of the paper's size for these encoders.
        eps: its budget where it is built here; 8/255 without.
        folder: keeps the last whole epoch, from which a training that was killed goes on to the same weights.

    Raises:
        DataError: pictures or captions that can't be used, fewer than two pairs.
        ModelError: a generator for another width of text.
        MethodError: a budget for a generator that has one.
    """
    how = how or GeneratorTraining()
    pictures, texts = _pairs(images, captions)
    if (check := getattr(encoders, "check_texts", None)) and not how.truncation:
        check([one for several in texts for one in several])
    width = unit_text_features(encoders, texts[0][:1], None, how.truncation).shape[-1]
    if generator is not None and eps is not None:
        raise MethodError(f"this generator has its budget, {generator.eps:g}. Leave {setting('eps')} out.")
    with seeded(how.seed):
        if generator is None:
            generator = _default(width, 8 / 255 if eps is None else eps)
        if generator.text_width != width:
            unit_text_features(encoders, texts[0][:1], generator.text_width, how.truncation)
        batches = _PairBatches(pictures, texts, getattr(encoders, "image_size", None))

        def loss(model: nn.Module, rows: list[int], device: str) -> Tensor:
            assert isinstance(model, TextNoiseGenerator)
            pixels, chosen = batches.of(rows)
            text = unit_text_features(encoders, chosen, width, how.truncation).to(device)
            latent = torch.randn(len(rows), model.latent_width).to(device)
            value = noise_loss(model, encoders, pixels.to(device), text, latent)
            return value if how.direction == "minimise" else -value

        steps = CosineTraining(how.epochs, how.lr, how.batch_size, 0.0, how.weight_decay, math.inf, how.device)
        home = nullcontext(str(folder)) if folder is not None else tempfile.TemporaryDirectory()
        with frozen_encoders(encoders), home as place:
            fit_rows(generator, list(range(len(pictures))), steps, how.seed, Path(place), loss)
    return generator


def _default(width: int, eps: float) -> TextNoiseGenerator:
    """A generator of the paper's size."""
    return TextNoiseGenerator(width, eps=eps)


def noise_loss(
    generator: Callable[[Tensor, Tensor], Tensor], encoders: DualEncoder, pixels: Tensor, text: Tensor, latent: Tensor
) -> Tensor:
    """The contrastive loss of pictures, with the noise of their captions, and these captions.

    Args:
        generator: a `TextNoiseGenerator`, or another function of text and latent.
        pixels: `[rows, 3, height, width]` in 0..1.
        text: `[rows, width]`, the captions' features, of length 1.
        latent: `[rows, latent_width]`
    """
    height, width = pixels.shape[-2:]
    noise = resized(generator(text, latent), (height, width), getattr(generator, "eps", 1.0))
    images = F.normalize(encoders.image_features((pixels + noise).clamp(0, 1)).float(), dim=-1)
    return info_nce(images, text, encoders.scale)


def how_it_was_trained(how: GeneratorTraining, encoders: str) -> dict[str, Any]:
    """What a saved generator says of its training: its settings but where, and the encoders' name."""
    return {**{name: value for name, value in asdict(how).items() if name != "device"}, "encoders": encoders}


class _PairBatches:
    """Pixels at the encoders' size, and one caption each, drawn from torch's global generator.

    Args:
        pictures: of any sizes.
        texts: the captions of each.
        size: height and width that the encoders take; None for the pictures' own, which must be one.
    """

    def __init__(self, pictures: Pictures, texts: Sequence[Sequence[str]], size: int | None) -> None:
        self.pictures, self.texts, self.size = pictures, texts, size
        if size is None:
            pictures.one_shape("these encoders take pictures of one size")

    def of(self, rows: list[int]) -> tuple[Tensor, list[str]]:
        """`[rows, 3, height, width]` in 0..1, and the captions."""
        draws = torch.rand(len(rows)).tolist()
        chosen = [self.texts[row][int(draw * len(self.texts[row]))] for row, draw in zip(rows, draws, strict=True)]
        shapes = {self.pictures.shape(row) for row in rows}
        groups = [rows] if len(shapes) == 1 else [[row] for row in rows]
        return torch.cat([self._square(self.pictures.pixels(group)) for group in groups]), chosen

    def _square(self, values: np.ndarray) -> Tensor:
        """The middle square, bicubically brought to size, as CLIP's own pictures are."""
        pixels = torch.from_numpy(np.ascontiguousarray(values)).float() / 255
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        if self.size is None or pixels.shape[-2:] == (self.size, self.size):
            return pixels
        side = min(pixels.shape[-2:])
        top, left = (pixels.shape[-2] - side) // 2, (pixels.shape[-1] - side) // 2
        square = pixels[..., top : top + side, left : left + side]
        size = (self.size, self.size)
        return F.interpolate(square, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def _pairs(images: Any, captions: Any) -> tuple[Pictures, list[tuple[str, ...]]]:
    """The pictures, and the captions of each.

    Raises:
        DataError: fewer than two; captions of another number or kind.
    """
    if isinstance(images, str | Path):
        if captions is not None and not isinstance(captions, str | Path):
            raise DataError(
                f"the captions of {images} are a list. Give the file of a table, or write it into the folder."
            )
        folder = FolderPictures(images, "captions", captions, names=False, several=True)
        pictures: Pictures = folder
        several = list(folder.captions)
    else:
        named = isinstance(images, Images) and captions is None
        pictures = (
            images if isinstance(images, Pictures) else ArrayPictures(images, None, "captions" if named else "nothing")
        )
        given = pictures.targets if captions is None else captions
        if given is None or isinstance(given, str | Path | np.ndarray):
            raise DataError("there are no captions. Give a list of texts, one a picture, or several each.")
        several = [(one,) if isinstance(one, str) else tuple(one) for one in given]
    if len(several) != len(pictures):
        raise DataError(f"there are {len(pictures)} images and {len(several)} captions. Give one each.")
    for row, texts in enumerate(several):
        if not texts or any(not isinstance(one, str) or not one.strip() for one in texts):
            raise DataError(f"the caption of image {row} is {texts!r:.40}. Give a text.")
    if len(pictures) < 2:
        raise DataError(f"{pictures.name} has one picture. A contrast needs at least 2.")
    return pictures, several
