"""Image classifiers as they are used on a user's own pictures: the model, and how it wants a picture.

    a folder, or a Hub id         a classifier of transformers; its own image processor says size, crop and normalisation
    module:function, weights      an own module: the function builds it, a safetensors file holds its weights; pixels in 0..1

Normalisation becomes part of the model (`Normalised`), so that every method and audit hands it pixels in 0..1.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..errors import ModelError, setting
from .checkpoints import check_weights, first_line
from .loading import checked_device
from .quiet import quiet
from .vision_layout import logits_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image as Picture

__all__ = ["ImageModel", "Normalised", "load_image_model"]

TOLERANCE = 1e-4  # between the processor's own pixels and ours, normalised


class Normalised(nn.Module):
    """An image model that takes pixels in 0..1 and normalises them itself.

    Args:
        inner: takes normalised pixels.
        mean, std: a number a channel, or one for all.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1))
        self.register_buffer("std", std.reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """`[rows, outputs]` of pixels `[rows, channels, height, width]` in 0..1."""
        return logits_of(self.inner, (pixels - self.mean) / self.std)


@dataclass(frozen=True)
class ImageModel:
    """An image classifier with what it needs of a picture.

    Args:
        model: takes pixels in 0..1, in evaluation mode.
        prepare: makes `[channels, height, width]`, float32 in 0..1, of a picture of 8 bits.
        labels: the classes' names; empty where the model names none.
        source: where it is from: `name`, `kind`, and `weights`, the file of a module's.
        processor: transformers' image processor, or None.
    """

    model: Normalised
    prepare: Callable[[Picture], np.ndarray]
    labels: tuple[str, ...]
    source: Mapping[str, Any]
    processor: Any = None

    def bare(self, model: nn.Module) -> nn.Module:
        """What is saved of an unlearned `model`: the module that was loaded, without the normalisation around it.

        Raises:
            ModelError: it is another kind of model.
        """
        if not isinstance(model, Normalised):
            raise ModelError(f"the unlearned model is a {type(model).__name__}, which is not saved as a plain model.")
        return model.inner


def load_image_model(
    name: str, *, weights: str | Path | None = None, side: int | None = None, device: str = "cpu"
) -> ImageModel:
    """Loads a classifier.

    Args:
        name: a local folder or a Hub id of transformers; or "module:function", a function without arguments that builds a module,
            found from the working folder as by `python -m`.
        weights: the safetensors file of the module's weights.
        side: height and width that a module takes; None for the pictures' own. A processor has its own.
        device: where it is put.

    Raises:
        ModelError: what can't be loaded, in one line.
    """
    checked_device(device)
    if not Path(name).exists() and _is_builder(name):
        return _own(name, weights, side, device)
    if weights is not None or side is not None:
        flag = setting("weights" if weights is not None else "size")
        raise ModelError(
            f"{flag} is for a model that a function builds (module:function); {name} has its own. Leave it out."
        )
    return _of_transformers(name, device)


def _is_builder(name: str) -> bool:
    module, colon, function = name.partition(":")
    return (
        bool(colon)
        and not hub.is_explicit(name)
        and function.isidentifier()
        and all(part.isidentifier() for part in module.split("."))
    )


def _of_transformers(name: str, device: str) -> ImageModel:
    import transformers

    folder = Path(name)
    named = str(folder) if folder.is_dir() else hub.repository(name)
    if named is None or (not folder.is_dir() and hub.path_reason(name)):
        raise ModelError(
            f"there is no model {name}. Give a folder that transformers saved, or module:function with {setting('weights')}."
        )
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{name} has no config.json. Give a folder that transformers saved, or module:function with {setting('weights')}."
            )
        check_weights(folder, "model", allow_pickle=False)
    options: dict[str, Any] = {"local_files_only": folder.is_dir() or hub.offline(), "trust_remote_code": False}
    try:
        with quiet():
            processor = transformers.AutoImageProcessor.from_pretrained(named, **options)
    except Exception as error:  # whatever the library meets in a folder
        raise ModelError(
            f"{name} has no image processor that can be loaded, so it can't be known how it wants pictures: "
            f"{first_line(error)}. Save one beside it (processor.save_pretrained)."
        ) from error
    try:
        with quiet():
            inner, info = transformers.AutoModelForImageClassification.from_pretrained(
                named, use_safetensors=True, output_loading_info=True, **options
            )
    except Exception as error:
        raise ModelError(f"{name} could not be loaded as an image classifier: {first_line(error)}") from error
    if missing := sorted(info.get("missing_keys", ())):
        raise ModelError(
            f"{name} lacks {len(missing)} weights of an image classifier (first: {missing[0]}). Train it as one first."
        )
    channels = int(getattr(inner.config, "num_channels", 3) or 3)
    prepare = _Processed(processor, channels, name)
    mean, std = prepare.normalisation()
    model = Normalised(inner, mean, std).to(device).eval()
    names = getattr(inner.config, "id2label", None) or {}
    labels = tuple(str(names[number]) for number in sorted(names))
    if labels == tuple(f"LABEL_{number}" for number in range(len(labels))):
        labels = ()
    return ImageModel(model, prepare, labels, {"name": name, "kind": "folder" if folder.is_dir() else "hub"}, processor)


@dataclass(frozen=True)
class _Processed:
    """What an image processor makes of a picture, short of its normalisation."""

    processor: Any
    channels: int
    name: str

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Its mean and deviation, a number a channel, once they are seen to be all that it does besides.

        Raises:
            ModelError: it does something else.
        """
        from PIL import Image

        on = bool(getattr(self.processor, "do_normalize", False))
        mean, std = (
            torch.tensor((getattr(self.processor, what, None) if on else None) or default).float().reshape(-1)
            for what, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        levels = np.random.default_rng(0).integers(0, 256, (67, 59, 3), dtype=np.uint8)
        picture = Image.fromarray(levels).convert("RGB" if self.channels == 3 else "L")
        own = self._run(picture, {})
        ours = (torch.from_numpy(self(picture)) - mean[:, None, None]) / std[:, None, None]
        if own.shape != ours.shape or not float((torch.from_numpy(own) - ours).abs().max()) <= TOLERANCE:
            raise ModelError(
                f"the image processor of {self.name} ({type(self.processor).__name__}) does more than to resize, crop, divide "
                f"by 255 and normalise. Give the model as module:function with {setting('weights')}."
            )
        return mean, std

    def __call__(self, picture: Picture) -> np.ndarray:
        return self._run(picture, {"do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 255}).clip(0, 1)

    def _run(self, picture: Picture, options: dict[str, Any]) -> np.ndarray:
        if self.channels == 3:
            given: Any = picture.convert("RGB")
        else:
            given = np.asarray(picture.convert("L"))[:, :, None]
            options = {**options, "input_data_format": "channels_last"}
        try:
            with quiet():
                made = self.processor(images=given, return_tensors="np", **options)["pixel_values"]
        except Exception as error:
            raise ModelError(
                f"the image processor of {self.name} can't read a picture of {picture.width}x{picture.height}: {first_line(error)}"
            ) from error
        array = np.asarray(made, dtype=np.float32)
        if array.ndim != 4 or len(array) != 1:
            raise ModelError(
                f"the image processor of {self.name} makes {list(array.shape)} of one picture, not [1, channels, height, width]."
            )
        return array[0]


@dataclass(frozen=True)
class _Plain:
    """The middle square of a picture at one size, or the picture at its own; in so many channels."""

    side: int | None
    channels: int | None = None

    def __call__(self, picture: Picture) -> np.ndarray:
        from PIL import Image

        if self.channels is not None:
            picture = picture.convert("L" if self.channels == 1 else "RGB")
        if self.side is not None:
            edge = min(picture.size)
            left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
            picture = picture.crop((left, top, left + edge, top + edge))
            if edge != self.side:
                picture = picture.resize((self.side, self.side), Image.Resampling.BILINEAR)
        array = np.asarray(picture, dtype=np.float32) / 255
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _own(name: str, weights: str | Path | None, side: int | None, device: str) -> ImageModel:
    """A module that a function builds."""
    if weights is None:
        raise ModelError(
            f"{name} builds a new model. Give its trained weights: {setting('weights', 'FILE.safetensors')}."
        )
    if side is not None and side < 1:
        raise ModelError(f"{setting('size')} is {side}; it must be at least 1.")
    inner = _built(name)
    _load_weights(inner, Path(weights), name)
    first = next((m.in_channels for m in inner.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    channels = first if first in (1, 3) else None
    model = Normalised(inner, torch.zeros(1), torch.ones(1)).to(device).eval()
    source = {"name": name, "kind": "module", "file": str(Path(weights).absolute())}
    labels = tuple(str(one) for one in getattr(inner, "classes", ()) or ())
    return ImageModel(model, _Plain(side, channels), labels, source)


def _built(name: str) -> nn.Module:
    home, _, function = name.partition(":")
    try:
        with _from_here():
            built = getattr(importlib.import_module(home), function)
            with torch.random.fork_rng():
                module = built()
    except Exception as error:  # the user's own code
        raise ModelError(f"{name} could not be built: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} gives a {type(module).__name__}, not a torch module.")
    return module


@contextmanager
def _from_here() -> Iterator[None]:
    """The working folder first among the places that modules are imported from, as by `python -m`."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _load_weights(module: nn.Module, file: Path, name: str) -> None:
    from safetensors.torch import load_model

    if not file.is_file() or file.suffix != ".safetensors":
        raise ModelError(f"{setting('weights')} is {file}; give a safetensors file (safetensors.torch.save_model).")
    try:
        load_model(module, file)
    except Exception as error:  # torch's, and the library's own of a header
        first = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ModelError(f"{file} is not of what {name} builds: {first[:200]}") from error
