"""Small pictures for shields: in memory, and as a folder of classes."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

COLOURS = ("amber", "blue", "cyan")


def make_pictures(rows: int = 12, side: int = 8, channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Uint8 pictures [rows, channels, side, side] of random pixels, and labels of three classes in turn."""
    pixels = np.random.default_rng(seed).integers(1, 256, (rows, channels, side, side), dtype=np.uint8)
    return pixels, np.arange(rows) % len(COLOURS)


def make_folder(folder: Path, rows: int = 2, side: int = 8, seed: int = 0) -> Path:
    """A folder of three classes with so many PNG pictures each."""
    pixels, _ = make_pictures(rows * len(COLOURS), side, seed=seed)
    for number, picture in enumerate(pixels):
        path = folder / COLOURS[number % len(COLOURS)] / f"{number // len(COLOURS)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(path)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Linear(nn.Module):
    """One linear layer behind batch normalisation, a surrogate that costs nothing."""

    def __init__(self, num_classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels * image_size**2, num_classes)

    def forward(self, pixels):
        return self.head(self.norm(pixels).flatten(1))
