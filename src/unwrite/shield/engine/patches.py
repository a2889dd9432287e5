"""Noise that is smaller than its picture: where a patch lies, pasted into an empty picture, and cut out of one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...errors import MethodError, setting
from .keys import generator
from .pictures import Shape

__all__ = ["corners_of", "cut_out", "pasted"]


def corners_of(key: int, at: np.ndarray, side: int, shape: Shape, place: str) -> np.ndarray:
    """`[rows, 2]`: the top and the left of the patch on the pictures at these places of their set.

    Args:
        key: of which random places follow; a picture's is the same in every batch.
        at: `[rows]`
        side: of the patch.
        shape: of the pictures.
        place: "centre" or "random".

    Raises:
        MethodError: a patch that is larger than the picture.
    """
    _, height, width = shape
    if side > min(height, width):
        raise MethodError(
            f"{setting('patch')} is {side}, and the pictures have {width}x{height} pixels. Give at most {min(height, width)}."
        )
    free = np.array([height - side, width - side])
    if place == "centre":
        return np.tile(free // 2, (len(at), 1))
    # One stream of draws for the whole set; a power of two, so that batches ask for few streams.
    draws = generator(key, "place").random((1 << int(at.max()).bit_length(), 2))
    return np.floor(draws[at] * (free + 1)).astype(np.int64)


def pasted(patches: Tensor, corners: np.ndarray, shape: Shape) -> Tensor:
    """`[rows, channels, height, width]`: zeros, and each patch at its place.

    Args:
        patches: `[rows, channels, side, side]`
        corners: `[rows, 2]`
    """
    whole = patches.new_zeros(len(patches), *shape)
    rows, down, across = _places(corners, patches.shape[-1])
    whole[rows, :, down, across] = patches.permute(0, 2, 3, 1)
    return whole


def cut_out(whole: Tensor, corners: np.ndarray, side: int) -> Tensor:
    """`[rows, channels, side, side]`: what lies at each patch's place.

    Args:
        whole: `[rows, channels, height, width]`
        corners: `[rows, 2]`
    """
    rows, down, across = _places(corners, side)
    return whole[rows, :, down, across].permute(0, 3, 1, 2)


def _places(corners: np.ndarray, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of `[rows, side, side]`, with which channels come last."""
    top, left = torch.from_numpy(np.ascontiguousarray(corners.T))
    reach = torch.arange(side)
    return (
        torch.arange(len(corners))[:, None, None],
        (top[:, None] + reach)[:, :, None],
        (left[:, None] + reach)[:, None, :],
    )
