"""Noise from a picture's description alone: a generator, trained once, turns a caption into noise that says the same to a model.

Who trains on pictures with the noise of their captions learns the noise and not the picture. Whoever makes it needs neither the
picture nor a search: one forward pass a caption. (T2UE, arXiv 2508.03091)

    x' = clamp(x + resize(G(f_T(caption), z)), 0, 1),   |G| <= eps,   z ~ N(0, I) from the key and the row, or the class

`train_generator` makes G. Of what is random only z is here, and it follows from the key; the noise of a row is the same in whatever
batch it stands, but for the last bits of a float, since normalisation uses the training's statistics.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..errors import DataError, MethodError, RunError, notice, setting
from ..nets.text_noise_generator import TextNoiseGenerator, resized
from ..runs import hash_model
from .base import Additive, Fitted, Protection, need_choice, need_number
from .engine import keys
from .engine.dual_encoders import ClipEncoders, TextEncoder, unit_text_features
from .engine.folders import FolderPictures
from .engine.noise_generators import load_generator
from .engine.pictures import PictureBatch, Pictures
from .engine.surrogates import frozen

__all__ = ["T2UE"]

PLACE = "{}"  # of the class's name in a template
CLASS_TEMPLATE, VARIED = "A photo of a {}", "varied"
TEMPLATES = (
    "a photo of a {}",
    "a picture of the {}",
    "a photo of one {}",
    "a large {} in a photo",
    "a small {} in a photo",
    "a close view of a {}",
    "a {} seen from afar",
    "a bright picture of a {}",
    "a dark picture of a {}",
    "a sharp photo of a {}",
    "a blurred photo of a {}",
    "a drawing of a {}",
    "a {} at rest",
    "part of a {}",
    "a {} in the middle of a picture",
    "many kinds of {}, and one of them here",
)


@dataclass(frozen=True, kw_only=True)
class T2UE(Additive):
    """Adds noise within eps that a trained generator makes from each picture's caption, or from its class's name (arXiv 2508.03091).

    Nothing is learnt of pictures: the state is empty, and the facts say which generator it is, by its weights' hash, and how it was
    trained. Pictures may differ in size. Grey ones get the mean of the noise's three channels.

    Args:
        eps: the budget, the largest change of a pixel in 0..1, from 0 (none) to 1; 8/255 in the paper. Where it is not the one that
            the generator was trained with, its noise is scaled.
        mode: "sample" has each picture's caption and a latent for each row; "class" one text and one latent for each class, whose names
            are then the captions.
        template: what is written around a class's name, with {} for it, or "varied" for one of 16 (ours) by key and row, which takes
            mode "sample"; none for the caption as it is, and for "A photo of a {}" of classes.
        bn_mode: "running" normalises by the statistics of the training; "batch" by those of the captions at hand, on which noise then
            depends (ours: the paper doesn't say).
        truncation: cut off captions that are too long for the text encoder.
        batch_size: captions in one forward pass, at least 1.
        generator: a folder that `save_generator` wrote, or a `TextNoiseGenerator`.
        text_encoder: the one it was trained with: a folder or an id of the Hub of a CLIP model, or anything with `text_features`.
        device: where both run.
    """

    reads = "captions"

    mode: Literal["sample", "class"] = "sample"
    template: str | None = None
    bn_mode: Literal["running", "batch"] = "running"
    truncation: bool = False
    batch_size: int = 16
    generator: str | TextNoiseGenerator | None = None
    text_encoder: str | TextEncoder | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        need_choice("mode", self.mode, ("sample", "class"))
        need_choice("bn_mode", self.bn_mode, ("running", "batch"))
        need_number("batch_size", self.batch_size, at_least=1, whole=True)
        self._check_template()
        for name in ("generator", "text_encoder"):
            if isinstance(value := getattr(self, name), Path):
                object.__setattr__(self, name, str(value))
        if isinstance(self.generator, str) and not Path(self.generator).is_dir():
            raise MethodError(
                f"{setting('generator')} is {self.generator!r}, and there is no such folder. Give one that holds a trained generator."
            )
        if not isinstance(self.generator, str | TextNoiseGenerator | None):
            raise MethodError(
                f"{setting('generator')} is {self.generator!r:.60}. Give a folder, or a TextNoiseGenerator."
            )
        if isinstance(self.text_encoder, str):
            if not Path(self.text_encoder).is_dir() and hub.repository(self.text_encoder) is None:
                raise MethodError(
                    f"{setting('text_encoder')} is {self.text_encoder!r}, and there is no such folder. Give the CLIP model that the generator was "
                    "trained with: a folder, or an id of the Hub such as openai/clip-vit-base-patch32."
                )
        elif self.text_encoder is not None and not hasattr(self.text_encoder, "text_features"):
            raise MethodError(
                f"{setting('text_encoder')} is {self.text_encoder!r:.60}. Give a folder, an id of the Hub, or an object that has text features."
            )
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise MethodError(
                f"{setting('device')} is {self.device!r}; it must be a device of torch, such as 'cpu' or 'cuda'."
            ) from None

    def _check_template(self) -> None:
        if self.template == VARIED and self.mode == "class":
            raise MethodError(
                f"{setting('template')} is {VARIED!r}, which gives pictures of one class several texts. Use {setting('mode', 'sample')}."
            )
        if self.template is not None and self.template != VARIED and PLACE not in self.template:
            raise MethodError(
                f"{setting('template')} is {self.template!r}, in which no class's name has a place. Write {PLACE} for it, as in {CLASS_TEMPLATE!r}, or "
                f"{VARIED!r}."
            )

    @cached_property
    def parts(self) -> tuple[TextNoiseGenerator, TextEncoder, Mapping[str, Any]]:
        """The generator, the text encoder, and what is known of how the generator was trained.

        Raises:
            MethodError: one of the two is not given.
            ModelError: one can't be loaded.
        """
        if self.generator is None:
            raise MethodError(
                f"{type(self).__name__} has no generator. Train one first, and give it by {setting('generator')}."
            )
        if self.text_encoder is None:
            raise MethodError(
                f"{type(self).__name__} has no text encoder. Give the one that the generator was trained with by {setting('text_encoder')}."
            )
        training: Mapping[str, Any] = {}
        generator, encoder = self.generator, self.text_encoder
        if isinstance(generator, str):
            generator, training = load_generator(generator)
        if isinstance(encoder, str):
            encoder = ClipEncoders.load(encoder, self.device)
        return generator.to(self.device), encoder, training

    @cached_property
    def _weights(self) -> str:
        """The hash of the generator's weights."""
        return hash_model(self.parts[0])

    def pictures_of(self, folder: str | Path, captions: str | Path | None = None) -> FolderPictures:
        if self.mode == "class" and captions is not None:
            raise MethodError(
                f"{setting('mode', 'class')} makes noise from classes' names. Leave {setting('captions')} out, or use {setting('mode', 'sample')}."
            )
        named = self.mode == "class" or self.template is not None
        return FolderPictures(folder, "captions", captions, names=named)

    def layout(self) -> Mapping[str, tuple[str, int]]:
        return {}

    def _fit(self, pictures: Pictures) -> Fitted:
        assert isinstance(pictures.targets, tuple)
        generator, encoder, training = self.parts
        texts = self.texts_of(pictures.targets, range(len(pictures)))
        if not self.truncation and (check := getattr(encoder, "check_texts", None)):
            check(sorted({*texts}))
        unit_text_features(encoder, texts[:1], generator.text_width, self.truncation)
        if self.eps and abs(self.eps - generator.eps) > 1e-9:
            notice(
                f"the generator was trained for a budget of {generator.eps:.4g}; its noise is scaled to {self.eps:.4g}."
            )
        if (direction := training.get("direction", "minimise")) != "minimise":
            notice(
                f"the generator was trained to {direction} the loss: its noise is adversarial, and not that of T2UE."
            )
        return Fitted({}, {"generator": self._weights, "training": dict(training)})

    def _noise(self, protection: Protection, batch: PictureBatch) -> np.ndarray:
        assert isinstance(batch.targets, tuple)
        if self._weights != protection.facts["generator"]:
            raise RunError(
                f"this protection was fitted with another generator than the one at hand. Give that by {setting('generator')}, or fit it again."
            )
        height, width = batch.pixels.shape[-2:]
        noise = self.noise_of(batch.targets, (height, width), rows=batch.at.tolist())
        return noise.mean(axis=1, keepdims=True) if batch.pixels.shape[1] == 1 else noise

    def texts_of(self, captions: Sequence[str], rows: Sequence[int]) -> tuple[str, ...]:
        """What the text encoder reads for each caption: itself, or a template with it.

        Args:
            rows: where each stands in its set, by which a varied template is drawn.
        """
        if self.template == VARIED:
            draws = [int(keys.generator(self.key, "template", row).integers(len(TEMPLATES))) for row in rows]
            return tuple(TEMPLATES[draw].replace(PLACE, one) for draw, one in zip(draws, captions, strict=True))
        template = self.template or (CLASS_TEMPLATE if self.mode == "class" else PLACE)
        return tuple(template.replace(PLACE, one) for one in captions)

    def latents_of(self, captions: Sequence[str], rows: Sequence[int]) -> Tensor:
        """`[captions, latent_width]`, from the key, and from the row or the class's name."""
        numbers = rows if self.mode == "sample" else [_number(one) for one in captions]
        width, purpose = self.parts[0].latent_width, f"latent of a {self.mode}"
        draws = [keys.generator(self.key, purpose, number).standard_normal(width) for number in numbers]
        return torch.from_numpy(np.stack(draws).astype(np.float32))

    def noise_of(
        self, captions: Sequence[str], size: int | tuple[int, int], *, rows: Sequence[int] | None = None
    ) -> np.ndarray:
        """`[captions, 3, height, width]`, float32: noise from captions and the key alone.

        Args:
            captions: a text a picture; classes' names where `mode` is "class".
            size: height and width, or both in one number.
            rows: where each stands in its set, from 0, of which its latent follows; 0, 1, ... without.

        Raises:
            DataError: no captions, an empty one, one that is too long; rows of another number.
        """
        at = list(range(len(captions)) if rows is None else rows)
        self._check_captions(captions, at)
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise DataError(f"{setting('size')} is {size!r}, of which there are no pictures. Give at least 1 pixel.")
        if self.mode == "class":  # one noise a class, however many pictures it has
            classes = sorted({*captions})
            noise = self._made(classes, [0] * len(classes), (height, width))
            return noise[[classes.index(one) for one in captions]]
        return self._made(captions, at, (height, width))

    def _made(self, captions: Sequence[str], rows: Sequence[int], size: tuple[int, int]) -> np.ndarray:
        """`[captions, 3, height, width]`: one forward pass for so many captions at a time."""
        generator, encoder, _ = self.parts
        if self.bn_mode == "batch" and len(captions) < 2:
            raise DataError(
                f"there is one caption, which has no statistics of a batch. Give at least 2, or use {setting('bn_mode', 'running')}."
            )
        texts, latents = self.texts_of(captions, rows), self.latents_of(captions, rows)
        made = []
        with torch.no_grad(), frozen(generator), _statistics(generator, self.bn_mode):
            for part in np.array_split(np.arange(len(texts)), -(-len(texts) // self.batch_size)):
                chosen = [texts[number] for number in part]
                features = unit_text_features(encoder, chosen, generator.text_width, self.truncation)
                pattern = generator.pattern(features.to(self.device), latents[part].to(self.device))
                made.append(resized(self.eps * pattern, size, self.eps).cpu().numpy())
        return np.concatenate(made)

    def _check_captions(self, captions: Sequence[str], rows: Sequence[int]) -> None:
        if isinstance(captions, str) or not len(captions):
            raise DataError("there are no captions. Give a list of texts, one a picture.")
        if len(captions) != len(rows):
            raise DataError(f"there are {len(captions)} captions and {len(rows)} rows. Give one each.")
        for number, text in enumerate(captions):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"caption {number} is {text!r:.40}. Give a text.")
        if wrong := next((row for row in rows if row < 0), None):
            raise DataError(f"row {wrong} is negative. Count rows from 0.")


@contextlib.contextmanager
def _statistics(generator: nn.Module, mode: str) -> Iterator[None]:
    """Within the block normalisation uses the batch at hand where that is asked for; what the training kept stays as it is."""
    norms = [one for one in generator.modules() if isinstance(one, nn.BatchNorm2d)] if mode == "batch" else []
    stored = [(one.running_mean, one.running_var) for one in norms]
    for one in norms:
        one.running_mean = one.running_var = None
    try:
        yield
    finally:
        for one, (mean, var) in zip(norms, stored, strict=True):
            one.running_mean, one.running_var = mean, var


def _number(name: str) -> int:
    """A class's name as a number below 2 ** 64."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
