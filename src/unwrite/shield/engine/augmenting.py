"""Strong augmentations of pictures in 0..1, each picture with draws of its own: plasma, shuffled channels, TrivialAugment.

Plasma is a map of clouds made by the diamond-square algorithm: a grid is refined again and again, each new point the mean of
its neighbours mixed with a random number, s parts of it, and s shrinks by the roughness at every level.

    new = (1 - s) mean(neighbours) + s U(0, 1),   s = roughness ** level

The operations of TrivialAugment (arXiv 2103.10158) are those of kornia's list, which UEraser uses, on the same ranges.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["OPERATIONS", "plasma", "plasma_brightness", "plasma_contrast", "shuffle_channels", "trivial_augment"]


def plasma_brightness(
    pixels: Tensor,
    generator: torch.Generator,
    *,
    chance: float,
    roughness: tuple[float, float] = (0.3, 0.7),
    intensity: tuple[float, float] = (0.5, 1.0),
) -> Tensor:
    """Adds clouds from -intensity to intensity to each channel of a part of the pictures."""
    rows = len(pixels)
    chosen = _chosen(rows, chance, generator)
    rough, strong = _between(rows, roughness, generator), _between(rows, intensity, generator)
    clouds = 2 * plasma(tuple(pixels.shape), rough, generator) - 1
    moved = (pixels + (_column(strong) * clouds).to(pixels)).clamp(0, 1)
    return torch.where(_column(chosen).to(pixels.device), moved, pixels)


def plasma_contrast(
    pixels: Tensor, generator: torch.Generator, *, chance: float, roughness: tuple[float, float] = (0.3, 0.7)
) -> Tensor:
    """Multiplies the distance from middle grey by clouds from 0 to 4 in each channel of a part of the pictures."""
    chosen = _chosen(len(pixels), chance, generator)
    clouds = 4 * plasma(tuple(pixels.shape), _between(len(pixels), roughness, generator), generator)
    moved = ((pixels - 0.5) * clouds.to(pixels) + 0.5).clamp(0, 1)
    return torch.where(_column(chosen).to(pixels.device), moved, pixels)


def shuffle_channels(pixels: Tensor, generator: torch.Generator, *, chance: float) -> Tensor:
    """Puts the channels of a part of the pictures into a random order."""
    rows, channels = pixels.shape[:2]
    chosen = _chosen(rows, chance, generator)
    order = torch.rand(rows, channels, generator=generator).argsort(1)
    order = torch.where(chosen[:, None], order, torch.arange(channels))
    return pixels[torch.arange(rows)[:, None], order.to(pixels.device)]


def trivial_augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One operation a picture, drawn from all alike, at a strength drawn from its range."""
    names = list(OPERATIONS)
    which = torch.randint(len(names), (len(pixels),), generator=generator)
    strength = torch.rand(len(pixels), generator=generator)
    result = pixels.clone()
    for number, name in enumerate(names):
        rows = (which == number).nonzero()[:, 0].to(pixels.device)
        if len(rows):
            operation, low, high = OPERATIONS[name]
            values = (low + (high - low) * strength[rows.cpu()]).to(pixels)
            result[rows] = operation(pixels[rows], values).clamp(0, 1)
    return result


def plasma(shape: tuple[int, ...], roughness: Tensor, generator: torch.Generator) -> Tensor:
    """Clouds in 0..1, `[rows, channels, height, width]`, a map of its own for each channel.

    Args:
        shape: of what is returned.
        roughness: `[rows]`, 0 to 1: by how much randomness shrinks at each level.
    """
    rows, channels, height, width = shape
    levels = max(1, math.ceil(math.log2(max(height, width, 2) - 1)))
    clouds = torch.rand(rows, channels, 2, 2, generator=generator)
    scale = torch.ones(rows, 1, 1, 1)
    for _ in range(levels):
        scale = scale * _column(roughness)
        clouds = _refined(clouds, scale, generator)
    return clouds[..., :height, :width]


def _refined(clouds: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Twice as fine a grid: `[rows, channels, n, n]` to `[..., 2 n - 1, 2 n - 1]`."""
    side = 2 * clouds.shape[-1] - 1
    fine = clouds.new_zeros(*clouds.shape[:2], side, side)
    noise = scale * torch.rand(fine.shape, generator=generator)
    fine[..., ::2, ::2] = clouds
    corners = clouds[..., :-1, :-1] + clouds[..., 1:, :-1] + clouds[..., :-1, 1:] + clouds[..., 1:, 1:]
    fine[..., 1::2, 1::2] = (1 - scale) * corners / 4 + noise[..., 1::2, 1::2]
    padded = F.pad(fine, (1, 1, 1, 1))
    total = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    count = torch.full((side, side), 4.0)
    for edge in (0, -1):  # a neighbour fewer
        count[edge, :] -= 1
        count[:, edge] -= 1
    between = (1 - scale) * total / count + noise
    for rows, columns in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        fine[..., rows, columns] = between[..., rows, columns]
    return fine


def _chosen(rows: int, chance: float, generator: torch.Generator) -> Tensor:
    return torch.rand(rows, generator=generator) < chance


def _between(rows: int, ends: tuple[float, float], generator: torch.Generator) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * torch.rand(rows, generator=generator)


def _column(values: Tensor) -> Tensor:
    """`[rows]` to `[rows, 1, 1, 1]`."""
    return values[:, None, None, None]


def _auto_contrast(pixels: Tensor, values: Tensor) -> Tensor:
    """Each channel stretched to 0..1; a flat one stays as it is."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) / (high - low).clamp(min=1e-12), pixels)


def _equalized(pixels: Tensor, values: Tensor) -> Tensor:
    """Each channel's 256 levels spread so that all are about as frequent, as Pillow does it."""
    import numpy as np
    from PIL import Image, ImageOps

    levels = torch.round(pixels * 255).to(torch.uint8).cpu().flatten(0, 1).numpy()
    spread = np.stack([np.asarray(ImageOps.equalize(Image.fromarray(one))) for one in levels])
    return torch.from_numpy(spread).reshape(pixels.shape).to(pixels) / 255


def _posterized(pixels: Tensor, values: Tensor) -> Tensor:
    """As many of the upper bits as the value rounds to."""
    step = 2 ** (8 - _column(values).round())
    return torch.floor(torch.floor(pixels * 255) / step) * step / 255


def _solarized(pixels: Tensor, values: Tensor) -> Tensor:
    """What is at or above the value is inverted."""
    return torch.where(pixels >= _column(values), 1 - pixels, pixels)


def _contrast(pixels: Tensor, values: Tensor) -> Tensor:
    return pixels * _column(values)


def _brightness(pixels: Tensor, values: Tensor) -> Tensor:
    return pixels + _column(values) - 1


def _sharpness(pixels: Tensor, values: Tensor) -> Tensor:
    """Between a smoothed copy (0), the picture (1) and beyond; edges stay."""
    channels = pixels.shape[1]
    kernel = torch.ones(channels, 1, 3, 3, device=pixels.device, dtype=pixels.dtype)
    kernel[..., 1, 1] = 5
    smooth = pixels.clone()
    if min(pixels.shape[2:]) >= 3:
        smooth[..., 1:-1, 1:-1] = F.conv2d(pixels, kernel / 13, groups=channels)
    return smooth + _column(values) * (pixels - smooth)


def _moved(matrix: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """An affine operation from `matrix(values, width / height)`, `[rows, 2, 3]`: where each place of the result is taken from."""

    def operation(pixels: Tensor, values: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        grid = F.affine_grid(matrix(values, width / height), list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, padding_mode="zeros", align_corners=False)

    return operation


def _rotation(degrees: Tensor, aspect: float) -> Tensor:
    """In pixels it is a rotation, whatever the picture's sides."""
    angle = degrees * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return torch.stack([cos, -sin / aspect, zero, sin * aspect, cos, zero], 1).view(-1, 2, 3)


def _of_shift(across: bool, shear: bool) -> Callable[[Tensor, float], Tensor]:
    """Shears by a share of the distance from the middle, or shifts by a share of the picture's side."""

    def matrix(values: Tensor, aspect: float) -> Tensor:
        result = torch.eye(2, 3, device=values.device, dtype=values.dtype).repeat(len(values), 1, 1)
        axis = 0 if across else 1
        if shear:
            result[:, axis, 1 - axis] = -values * (1 / aspect if across else aspect)
        else:
            result[:, axis, 2] = -2 * values
        return result

    return matrix


OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "auto contrast": (_auto_contrast, 0, 1),
    "equalize": (_equalized, 0, 1),
    "rotate": (_moved(_rotation), -30, 30),
    "posterize": (_posterized, 0, 4),
    "solarize": (_solarized, 0, 1),
    "contrast": (_contrast, 0.1, 1.9),
    "brightness": (_brightness, 0.1, 1.9),
    "sharpness": (_sharpness, 0.1, 1.9),
    "shear across": (_moved(_of_shift(across=True, shear=True)), -0.3, 0.3),
    "shear down": (_moved(_of_shift(across=False, shear=True)), -0.3, 0.3),
    "shift across": (_moved(_of_shift(across=True, shear=False)), -0.5, 0.5),
    "shift down": (_moved(_of_shift(across=False, shear=False)), -0.5, 0.5),
}  # each a function of [rows, channels, height, width] and [rows], and the range of the latter
