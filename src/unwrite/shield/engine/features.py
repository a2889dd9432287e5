"""What a trained network sees in pictures: the input of its last linear layer, of pictures brought to its size and normalised as it was trained.

    name or folder   a classifier of transformers, or a CLIP image tower, whose features are its image embeddings
    a module         takes pixels in 0..1; its last linear layer is looked for in one forward
    PictureFeatures  any other: which layer reads the features, and how pixels are normalised

The network is only looked at: it stays in evaluation mode, no weight or statistic moves, and no hook is left on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import hub
from ...errors import MethodError, ModelError, notice, setting
from ...models.checkpoints import check_weights, first_line
from ...models.loading import model_folder
from ...models.quiet import quiet
from ...models.vision_layout import vision_layout
from ...runs import model_key, read_json
from .pictures import Pictures
from .surrogates import frozen

__all__ = [
    "OUTPUT",
    "FeatureReader",
    "FeatureSurrogate",
    "PictureFeatures",
    "check_named",
    "crop_of",
    "middle",
    "scaled",
    "side_of",
    "surrogate_of",
]

OUTPUT = "output"  # what the network returns, where no layer's input is meant
USUAL = 224  # pixels a side, where neither a network nor the pictures say another
_EMBEDDINGS = ("image_embeds", "pooler_output")
_CLIP = ("clip", "clip_vision_model")


@dataclass(frozen=True)
class PictureFeatures:
    """A network with how its features are read.

    Args:
        model: any module of pictures, in evaluation mode.
        at: the path of the layer whose input are the features, such as "fc"; none for its last linear layer, found in one forward;
            "output" for what it returns (image embeddings of transformers' outputs, or a tensor).
        mean, std: of each channel, by which it wants pixels in 0..1 normalised; none where it does so itself.
        image_size: of the pictures it was made for, a side in pixels; none for what its config says, if anything.
    """

    model: nn.Module
    at: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise MethodError(
                f"the means are {self.mean} and the deviations {self.std}. Give both, a number a channel, or neither."
            )
        if any(not value > 0 for value in self.std or ()):
            raise MethodError(f"the deviations are {self.std}; each must be above 0.")

    @property
    def own_size(self) -> int | None:
        """The side it was made for, as far as that is known."""
        config = getattr(self.model, "config", None)
        sizes = (self.image_size, getattr(self.model, "image_size", None), getattr(config, "image_size", None))
        return next((size for size in sizes if isinstance(size, int)), None)


FeatureSurrogate: TypeAlias = str | nn.Module | PictureFeatures | Callable[..., nn.Module | PictureFeatures]


def check_named(surrogate: object) -> None:
    """Refuses what can be no trained network.

    Raises:
        MethodError: a name that is neither a folder nor of the Hub; a module in training mode; something else.
    """
    if isinstance(surrogate, str):
        if not (Path(surrogate).expanduser().is_dir() or hub.repository(surrogate)):
            raise MethodError(
                f"{setting('surrogate')} is {surrogate!r:.80}, which is no folder here and no name of the Hub. Give a trained image model: a "
                "folder, or a name such as microsoft/resnet-50."
            )
        return
    model = surrogate.model if isinstance(surrogate, PictureFeatures) else surrogate
    if isinstance(model, nn.Module):
        moving = next((name or "all of it" for name, part in model.named_modules() if part.training), None)
        if moving is not None:
            raise MethodError(
                f"the surrogate {type(model).__name__} is in training mode ({moving}), where its features change with the batch. Call .eval() on it."
            )
    elif not callable(surrogate):
        raise MethodError(
            f"{setting('surrogate')} is {surrogate!r:.60}; give a folder or a name of the Hub, a module, or a function that makes one."
        )


def surrogate_of(surrogate: FeatureSurrogate, channels: int, image_size: int, seed: int) -> PictureFeatures:
    """The network a field names, loads, builds or is; built from the seed with torch's global generator.

    Args:
        channels, image_size: handed to a function that makes one, with `num_classes`.

    Raises:
        MethodError, ModelError: it can't be used or loaded.
    """
    check_named(surrogate)
    if isinstance(surrogate, str):
        return _loaded(surrogate)
    made: Any = surrogate
    if not isinstance(surrogate, nn.Module | PictureFeatures):
        torch.manual_seed(seed)
        made = surrogate(num_classes=2, channels=channels, image_size=image_size)
        if not isinstance(made, nn.Module | PictureFeatures):
            raise ModelError(f"{setting('surrogate')} makes {type(made).__name__}; it must make a module.")
        (made.model if isinstance(made, PictureFeatures) else made).eval()
    return made if isinstance(made, PictureFeatures) else PictureFeatures(made)


class FeatureReader:
    """Reads features of 8-bit pictures, `[rows, dim]`.

    Args:
        surrogate: the network.
        channels: of the pictures.
        image_size: the side of what it is shown.
        crop: the part of the shorter side that is shown: it is scaled to image_size / crop, and the middle cut out.
        device: where it runs.

    Raises:
        ModelError: it takes no such pictures, or has no last linear layer.
    """

    def __init__(self, surrogate: PictureFeatures, channels: int, image_size: int, crop: float, device: str) -> None:
        self.image_size, self.crop, self.device = image_size, crop, device
        self.model = surrogate.model.to(device)
        self.name = type(self.model).__name__
        if surrogate.mean is not None and len(surrogate.mean) not in (1, channels):
            raise ModelError(
                f"the surrogate {self.name} has {len(surrogate.mean)} means, and the pictures {channels} channels. Give pictures of as many."
            )
        self._mean, self._std = (
            None if values is None else torch.tensor(values, device=device)[:, None, None]
            for values in (surrogate.mean, surrogate.std)
        )
        self.key = model_key(self.model)
        probe = torch.full((2, channels, image_size, image_size), 0.5, device=device)
        probe[0, :, ::2] = 0.25
        with frozen(self.model):
            self._layer = self._found(surrogate.at, self._normalised(probe))
            try:
                features = self.of(probe)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ModelError(
                    f"the surrogate {self.name} doesn't take pictures of {channels} channels, {image_size}x{image_size}: {first_line(error)}"
                ) from None
        if features.ndim != 2 or len(features) != 2:
            raise ModelError(
                f"the features of {self.name} at {surrogate.at or 'its last layer'} have shape {list(features.shape)} for two pictures. They must be "
                "[2, dim]: name another layer."
            )
        self.dim = features.shape[1]

    def of(self, pixels: Tensor) -> Tensor:
        """Features of pixels in 0..1, `[rows, channels, image_size, image_size]`; gradients flow to the pixels.

        Raises:
            ModelError: a layer that did not run.
        """
        seen: list[Tensor] = []
        if self._layer is None:
            return _embeddings(self.model(self._normalised(pixels)), self.name)
        hook = self._layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            self.model(self._normalised(pixels))
        finally:
            hook.remove()
        if not seen:
            raise ModelError(f"the layer of {self.name} that was named does not run. Name another.")
        return seen[-1]

    @torch.no_grad()
    def read(self, pixels: np.ndarray, places: list[str]) -> np.ndarray:
        """`[rows, dim]`, float32: features of pictures of one size, brought to the network's.

        Args:
            pixels: `[rows, channels, height, width]`, uint8.
            places: where each is from, for messages.

        Raises:
            ModelError: a feature that is no number.
        """
        with frozen(self.model):
            shown = scaled(torch.from_numpy(pixels).to(self.device), self.image_size, self.crop)
            features = self.of(middle(shown, self.image_size)).float()
        finite = torch.isfinite(features).all(1).tolist()
        if not all(finite):
            raise ModelError(
                f"the surrogate {self.name} gives a feature that is no finite number for {places[finite.index(False)]}. Give another surrogate."
            )
        return np.asarray(features.cpu().numpy())

    def read_all(self, pictures: Pictures) -> np.ndarray:
        """`[pictures, dim]`, a few pictures in memory at a time."""
        batches = [
            self.read(batch.pixels, [pictures.place(row) for row in batch.at.tolist()]) for batch in pictures.batches()
        ]
        return np.concatenate(batches)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return pixels if self._mean is None else (pixels - self._mean) / self._std

    def _found(self, at: str | None, pixels: Tensor) -> nn.Module | None:
        """The layer whose input is read; none for the network's output."""
        if at == OUTPUT:
            return None
        if at is None:
            layout = vision_layout(self.model, pixels)
            return layout.model.get_submodule(layout.head_linears[-1])
        try:
            return self.model.get_submodule(at)
        except AttributeError:
            raise ModelError(f"the surrogate {self.name} has no layer {at!r:.80}. Name one of its own.") from None


def side_of(surrogate: PictureFeatures, asked: int | None, pictures: Pictures) -> int:
    """The side of noise and of what the network sees: as asked, its own, the shorter one of all pictures alike, or 224."""
    shapes = {pictures.shape(row) for row in range(len(pictures))}
    alike = min(next(iter(shapes))[1:]) if len(shapes) == 1 else USUAL
    return asked or surrogate.own_size or alike


def crop_of(asked: float | None, image_size: int, pictures: Pictures) -> float:
    """The part of the shorter side that is shown: as asked; all of pictures that have the network's size, else 224 of 256."""
    if asked is not None:
        return asked
    fits = all(pictures.shape(row)[1:] == (image_size, image_size) for row in range(len(pictures)))
    return 1.0 if fits else 224 / 256


def scaled(pixels: Tensor, image_size: int, crop: float) -> Tensor:
    """Pictures in 0..1 whose shorter side is image_size / crop, the nearest whole number.

    Args:
        pixels: `[rows, channels, height, width]`, uint8.
    """
    height, width = pixels.shape[-2:]
    side = max(image_size, round(image_size / crop))
    size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    shown = pixels.float() / 255
    return shown if size == (height, width) else F.interpolate(shown, size, mode="bilinear", antialias=True)


def middle(shown: Tensor, image_size: int) -> Tensor:
    """The square in the middle; `[..., image_size, image_size]`."""
    top, left = (round((side - image_size) / 2) for side in shown.shape[-2:])
    return shown[..., top : top + image_size, left : left + image_size]


def _embeddings(output: Any, name: str) -> Tensor:
    """What a network returns, as features."""
    if isinstance(output, Tensor):
        return output
    fields = output if isinstance(output, Mapping) else {}
    for field in _EMBEDDINGS:
        if isinstance(found := fields.get(field), Tensor):
            return found
    raise ModelError(f"{name} returns no image embeddings ({', '.join(_EMBEDDINGS)}) and no tensor. Name a layer.")


def _loaded(name: str) -> PictureFeatures:
    """A classifier of transformers or a CLIP image tower, normalised as its folder says.

    Raises:
        ModelError: no such model, pickled weights, or another kind.
    """
    import transformers

    folder = model_folder(name)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    architecture = str((config.get("architectures") or [""])[0])
    clip = config.get("model_type") in _CLIP
    if not (clip or architecture.endswith("ForImageClassification")):
        raise ModelError(
            f"{name} is {architecture or 'no model of transformers'}. A surrogate is an image classifier or a CLIP model; give another, "
            "or a module from Python."
        )
    check_weights(folder, "model", allow_pickle=False)
    auto = transformers.CLIPVisionModelWithProjection if clip else transformers.AutoModelForImageClassification
    try:
        with quiet(), hub.closed():
            model = auto.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except Exception as error:  # whatever the library meets in a folder
        raise ModelError(f"{name} could not be loaded as {auto.__name__}: {first_line(error)}") from error
    mean, std, size = _preprocessing(folder)
    return PictureFeatures(model.eval(), OUTPUT if clip else None, mean, std, size)


def _preprocessing(folder: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, int | None]:
    """(mean, std, side) of preprocessor_config.json; nothing where there is none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        notice(f"{folder} has no {path.name}, so pixels in 0..1 go to the surrogate as they are.")
        return None, None, None
    config = read_json(path)
    sizes = [config.get("crop_size") if config.get("do_center_crop", True) else None, config.get("size")]
    flat = [value for size in sizes for value in (size.values() if isinstance(size, dict) else [size])]
    side = next((value for value in flat if isinstance(value, int)), None)
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize", True) or mean is None or std is None:
        return None, None, side
    try:
        return tuple(map(float, mean)), tuple(map(float, std)), side
    except (TypeError, ValueError):
        raise ModelError(f"{path} is damaged: its means are {mean!r:.60}. Restore it.") from None
