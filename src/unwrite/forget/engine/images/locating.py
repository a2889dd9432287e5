"""Where in a picture a concept is, and how a patch of another picture gets there.

Patches of a sliding window are brought to the encoder's size and embedded; the one most like the concept is where it is. Beside that
stand two locators that need no concept: Grad-CAM, and the map of what each patch adds to the class in a concept bottleneck.
(Concept inference and poisoning, arXiv 2405.15662, official code concept_tools; Grad-CAM, arXiv 1610.02391)

    S(i, j) = cos(e(patch_ij), v),   peak = argmax S,   a patch of a donor's peak is pasted at the target's, both kept inside
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import MethodError, ModelError
from ....models.curvature import evaluating
from ....models.vision_layout import VisionLayout
from .concepts import AT_ONCE, ConceptBottleneck, Encoder, embedded

__all__ = [
    "corner",
    "cropped",
    "gradcam",
    "margin_grid",
    "pasted",
    "patch_embeddings",
    "patches",
    "peaks",
    "peaks_of_map",
    "resized",
    "similarity_grid",
]

Place = tuple[int, int]  # the row and the column of a patch's centre, in pixels


def patches(pixels: Tensor, size: int, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """All patches of a sliding window, `[rows * grid, channels, size, size]`, and the height and width of the grid.

    Args:
        pixels: `[rows, channels, height, width]`

    Raises:
        MethodError: a patch that is larger than the pictures.
    """
    rows, channels, height, width = pixels.shape
    if not 1 <= size <= min(height, width):
        raise MethodError(
            f"a patch of {size} pixels doesn't fit into pictures of {height}x{width}. Give 1 to {min(height, width)}."
        )
    windows = pixels.unfold(2, size, stride).unfold(3, size, stride)  # [rows, channels, down, across, size, size]
    down, across = windows.shape[2:4]
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(rows * down * across, channels, size, size), (down, across)


def patch_embeddings(encoder: Encoder, pixels: Tensor, size: int, stride: int) -> Tensor:
    """Embeddings of all patches, each brought to the size of the whole picture first, `[rows, down, across, dim]`."""
    down, across = patches(pixels[:1], size, stride)[1]
    parts = []
    for some in pixels.split(max(1, AT_ONCE // (down * across))):
        cut, _ = patches(some, size, stride)
        parts.append(
            embedded(encoder, F.interpolate(cut, tuple(pixels.shape[-2:]), mode="bilinear", align_corners=False))
        )
    return torch.cat(parts).reshape(len(pixels), down, across, -1)


def similarity_grid(encoder: Encoder, pixels: Tensor, vectors: Tensor, size: int, stride: int) -> Tensor:
    """The cosine of every patch with every concept, `[rows, down, across, concepts]`.

    Args:
        pixels: `[rows, channels, height, width]`
        vectors: of the concepts, `[concepts, dim]`.
        size, stride: of the sliding window, in pixels; 64 and 16 of 224 give a grid of 11x11.
    """
    found = patch_embeddings(encoder, pixels, size, stride)
    if found.shape[-1] != vectors.shape[1]:
        raise ModelError(
            f"the encoder has {found.shape[-1]} features and the concepts {vectors.shape[1]}. Make the bank with the same encoder."
        )
    return F.normalize(found, dim=-1) @ F.normalize(vectors, dim=1).T


def margin_grid(
    encoder: Encoder, pixels: Tensor, bottleneck: ConceptBottleneck, label: int, size: int, stride: int
) -> Tensor:
    """What the concepts of every patch say for a class, `[rows, down, across]`: cosines times the class's weights."""
    return similarity_grid(encoder, pixels, bottleneck.bank.vectors, size, stride) @ bottleneck.weights[label]


def peaks(grid: Tensor, size: int, stride: int) -> list[Place]:
    """Of every row, the centre of the patch where a grid `[rows, down, across]` is largest, the first of equal ones."""
    across = grid.shape[2]
    cells = [divmod(int(cell), across) for cell in grid.flatten(1).argmax(1)]
    return [(row * stride + size // 2, column * stride + size // 2) for row, column in cells]


def gradcam(layout: VisionLayout, pixels: Tensor, label: int) -> Tensor:
    """Grad-CAM of a class on the last feature map, `[rows, down, across]`, largest value 1; the model is read in evaluation mode.

    Raises:
        ModelError: no block gives a feature map of more than one cell.
    """
    with evaluating(layout.model), torch.enable_grad():
        # Where the body is frozen no feature map would have a gradient without one of the pixels.
        seen = layout.observe(pixels.detach().clone().requires_grad_())
        maps = [block for block in seen.blocks if block.ndim == 4 and block.shape[2] * block.shape[3] > 1]
        if not maps:
            raise ModelError(
                f"{type(layout.model).__name__} has no block with a feature map, which Grad-CAM looks at. Use another locator."
            )
        (grad,) = torch.autograd.grad(seen.logits[:, label].sum(), [maps[-1]])
    weight = grad.mean((2, 3), keepdim=True)
    cam = F.relu((weight * maps[-1].detach()).sum(1))
    return cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-8)


def peaks_of_map(maps: Tensor, height: int, width: int) -> list[Place]:
    """Of every row, the pixel in the middle of the cell where a map `[rows, down, across]` of whole pictures is largest."""
    down, across = maps.shape[1:]
    cells = [divmod(int(cell), across) for cell in maps.flatten(1).argmax(1)]
    return [(int((row + 0.5) * height / down), int((column + 0.5) * width / across)) for row, column in cells]


def corner(centre: Place, size: int, height: int, width: int) -> Place:
    """The first row and column of a box around a centre, moved as far as it takes to lie inside."""
    return tuple(  # type: ignore[return-value]
        max(0, min(at - size // 2, length - size)) for at, length in zip(centre, (height, width), strict=True)
    )


def cropped(picture: Tensor, centre: Place, size: int) -> Tensor:
    """The box around a centre of a picture `[channels, height, width]`, `[channels, size, size]`."""
    top, left = corner(centre, size, *picture.shape[1:])
    return picture[:, top : top + size, left : left + size]


def pasted(picture: Tensor, patch: Tensor, centre: Place) -> Tensor:
    """A copy of a picture `[channels, height, width]` with a square patch around a centre; nothing else changes.

    Raises:
        MethodError: a patch that is not square, or larger than the picture.
    """
    size = patch.shape[-1]
    if patch.shape[-2] != size or size > min(picture.shape[1:]):
        raise MethodError(
            f"a patch of {patch.shape[-2]}x{size} can't be pasted into a picture of {picture.shape[1]}x{picture.shape[2]}. Give a "
            "square one that fits."
        )
    top, left = corner(centre, size, *picture.shape[1:])
    out = picture.clone()
    out[:, top : top + size, left : left + size] = patch
    return out


def resized(picture: Tensor, size: int) -> Tensor:
    """A picture `[channels, height, width]` brought to `[channels, size, size]`."""
    # In single precision the four weights of a pixel can add up to a little more than 1.
    return F.interpolate(picture[None], (size, size), mode="bilinear", align_corners=False)[0].clamp(0, 1)
