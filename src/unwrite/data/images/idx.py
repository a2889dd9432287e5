"""Pictures and labels in idx files, as MNIST and its kin are published: Fashion-MNIST, KMNIST, MNIST itself.

0x00 0x00 0x08 dimensions, a big-endian 32-bit size each, then unsigned bytes; the file may be packed by gzip
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from ...errors import DataError
from .images import Images

__all__ = ["IDX_FILES", "idx_images", "idx_path", "read_idx"]

_BYTES = 8  # idx's number for unsigned bytes
MOST_IDX_BYTES = 2**31
IDX_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def read_idx(path: str | Path, dimensions: int) -> np.ndarray:
    """The numbers of an idx file, uint8, packed by gzip or not.

    Args:
        dimensions: how many it must have: 3 of pictures, 1 of labels.

    Raises:
        DataError: no idx file of bytes, one of other dimensions, or one that is cut off.
    """
    path = Path(path)
    try:
        packed = path.read_bytes()
        content = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    except FileNotFoundError:
        raise DataError(f"there is no file {path}. Check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}). Fetch it again.") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _BYTES:
        raise DataError(f"{path} is no idx file of bytes: it begins with {content[:4].hex() or 'nothing'}.")
    if content[3] != dimensions:
        raise DataError(f"{path} has {content[3]} dimensions, and {dimensions} are needed.")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path} is cut off within its first {start} bytes. Fetch it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if (size := math.prod(shape)) != len(content) - start or size > MOST_IDX_BYTES:
        sizes = "x".join(map(str, shape))
        raise DataError(f"{path} promises {sizes} bytes and holds {len(content) - start}. Fetch it again.")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def idx_path(folder: Path, split: str, what: str) -> Path:
    """One of the four files of a folder, packed or not.

    Raises:
        DataError: it isn't there.
    """
    name = IDX_FILES[split, what]
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {name}, nor {name}.gz. Give the folder of the four idx files.")


def idx_images(
    folder: str | Path, split: str, classes: tuple[str, ...], limit: int | None, *, first: int = 0, name: str
) -> Images:
    """The train or test rows of a folder of idx files, `[rows, 1, height, width]`.

    Args:
        split: "train" or "test".
        classes: the labels' names.
        limit: at most so many rows, the first of each class alike; None for all.
        first: the index of the first row there is; a row keeps its place in the file as its index whatever the limit.
        name: of the set.

    Raises:
        DataError: a file that isn't there or is damaged, pictures and labels of different numbers, a label without a name.
    """
    folder = Path(folder)
    files = {what: idx_path(folder, split, what) for what in ("images", "labels")}
    pixels, labels = read_idx(files["images"], 3), read_idx(files["labels"], 1)
    if len(pixels) != len(labels):
        raise DataError(f"{files['images']} has {len(pixels)} pictures and {files['labels']} {len(labels)} labels.")
    if len(labels) and int(labels.max()) >= len(classes):
        row = int((labels >= len(classes)).argmax())
        raise DataError(
            f"{files['labels']} has the label {int(labels[row])} (row {row}), and there are {len(classes)} classes."
        )
    rows = _first_of_each(labels, len(classes), limit)
    return Images(
        (pixels[rows, None] / 255).astype(np.float32),
        labels=labels[rows].astype(np.int64),
        index=torch.from_numpy(rows + first),
        classes=classes,
        name=name,
    )


def _first_of_each(labels: np.ndarray, classes: int, limit: int | None) -> np.ndarray:
    """The places of the first rows of every class, `limit // classes` each, in order; all without a limit."""
    if limit is None:
        return np.arange(len(labels))
    if limit < classes:
        raise DataError(f"a limit of {limit} leaves classes without rows. Give at least {classes}, one a class.")
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[: limit // classes] for label in range(classes)]))
