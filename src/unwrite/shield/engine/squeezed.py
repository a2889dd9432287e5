"""Pictures with less in them, as Pillow would store them: grey, and compressed by JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

__all__ = ["grey", "jpeg"]

LUMA = (19595, 38470, 7471)  # of 65536: 0.299, 0.587 and 0.114 as Pillow has them


def grey(pixels: Tensor) -> Tensor:
    """Luma to the nearest of 256 levels in every channel; pictures of one channel as they are.

    Args:
        pixels: `[rows, 3 or 1, height, width]` in 0..1.
    """
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = torch.round(pixels * 255).long().unbind(1)
    level = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 2**15) >> 16  # [rows, height, width]
    return (level[:, None].float() / 255).expand_as(pixels).contiguous()


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    """Every picture by itself through JPEG and back, chroma subsampled as Pillow does by default.

    Args:
        pixels: `[rows, 3 or 1, height, width]` in 0..1.
        quality: 1 to 100.
    """
    levels = torch.round(pixels * 255).to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
    back = np.stack([_through_jpeg(picture, quality) for picture in levels])
    return torch.from_numpy(back).permute(0, 3, 1, 2).to(pixels) / 255


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """One picture, `[height, width, channels]`, uint8."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as file:
        return np.asarray(file).reshape(picture.shape)
