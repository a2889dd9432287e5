"""A protected copy of a folder: PNG files under the same names, and beside them what they were made by.

    pets/cat/1.jpg   ->   safe/cat/1.png
                          safe/protection.json    method, fields, a hash of the key, SHA-256 of every file

The folder is whole or absent. Pictures are saved without loss: JPEG would take out what protects. Metadata, such as the place where
a photo was taken, and colour profiles are left out. `protection.json` names the method: keep it, and leave it out of what is published.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import DataError, MethodError, RunError, setting
from ...runs import hash_file, new_folder, progress, read_json, write_json
from ..base import RECORD, Protection, Shield
from .folders import FolderPictures
from .pictures import PictureBatch

__all__ = ["Release", "protect_folder"]


@dataclass(frozen=True)
class Release:
    """A folder that was written.

    Args:
        folder: where.
        protection: what its pictures were changed by.
        pictures: how many.
        change: the mean change of an 8-bit value, in levels of 255.
    """

    folder: Path
    protection: Protection
    pictures: int
    change: float


def protect_folder(
    by: Shield | Protection,
    source: str | Path,
    out: str | Path,
    *,
    captions: str | Path | None = None,
    overwrite: bool = False,
) -> Release:
    """Writes a protected copy of a folder of classes; the folder itself is only read, a few pictures at a time.

    Args:
        by: a shield, which is fitted to the folder first; or a protection, which is used as it is: of its classes by their names.
        source: holds a folder a class: source/class/picture.
        out: the folder to write, new or empty.
        captions: a table of captions, for a shield that reads them; none for those that lie in `source`. They are not copied.
        overwrite: replace an earlier protected copy in `out`; nothing else is ever replaced.

    Raises:
        DataError: a folder or a picture that can't be protected, or is protected already; the file is named.
        MethodError: a budget of which 8 bits leave nothing; captions for a shield that reads none.
        RunError: `out` holds something, or lies within `source` or around it.
    """
    source, out = Path(source), Path(out)
    shield = by if isinstance(by, Shield) else by.shield
    _check_budget(shield)
    _check_places(source, out, overwrite)
    pictures = shield.pictures_of(source, captions)
    names = _released_names(pictures)
    _need_unprotected(pictures)
    protection = shield.fit(pictures) if isinstance(by, Shield) else _matched(by, pictures)
    sums: dict[str, str] = {}
    changed = values = 0
    with new_folder(out) as fresh:
        with progress(len(pictures), f"protecting {source.name}") as bar:
            for batch in pictures.batches():
                protected = protection.protected(batch)
                changed += int(np.abs(protected.astype(np.int16) - batch.pixels).sum())
                values += batch.pixels.size
                sums |= _written(fresh, protected, batch, names)
                bar.advance(len(protected))
        story = protection.record()
        write_json(fresh / RECORD, {**story, "budget": shield.budget, "files": sums})
    return Release(out, protection, len(pictures), changed / values)


def _written(fresh: Path, protected: np.ndarray, batch: PictureBatch, names: list[str]) -> dict[str, str]:
    """Writes a batch; {name: SHA-256}."""
    from PIL import Image

    sums = {}
    for row, pixels in zip(batch.at.tolist(), protected, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
            buffer, "PNG"
        )
        path = fresh / names[row]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        sums[names[row]] = hashlib.sha256(buffer.getvalue()).hexdigest()
    return sums


def _check_budget(shield: Shield) -> None:
    if shield.budget is not None and shield.budget < 1:
        eps = getattr(shield, "eps", 0.0)
        raise MethodError(
            f"{setting('eps')} is {eps:g}, of which 8 bits leave nothing: one level is {1 / 255:.4f}. Give at least that."
        )


def _check_places(source: Path, out: Path, overwrite: bool) -> None:
    one, other = source.resolve(), out.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise RunError(
            f"{out} and {source} lie in one another, and pictures are never written where they are read. Choose another {setting('folder')}."
        )
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Choose another {setting('folder')}.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / RECORD).is_file():
        raise RunError(f"{out} is not empty and holds no protected pictures. Choose another {setting('folder')}.")
    if not overwrite:
        replace = setting("overwrite", True)
        raise RunError(
            f"{out} holds protected pictures. Choose another {setting('folder')}, or pass {replace} to replace them."
        )
    own = {RECORD, *_files_of(read_json(out / RECORD), out / RECORD)}
    for path in sorted(out.rglob("*")):
        if not path.is_dir() and path.relative_to(out).as_posix() not in own:
            raise RunError(
                f"{path} is none of the protected pictures in {out}, so it is not removed. Move it, or choose another {setting('folder')}."
            )


def _files_of(record: Mapping[str, Any], path: Path) -> Mapping[str, str]:
    files = record.get("files")
    if not (isinstance(files, dict) and all(isinstance(sum_, str) for sum_ in files.values())):
        raise RunError(f"{path} is no record of protected pictures. Remove it, or name another folder.")
    return files


def _released_names(pictures: FolderPictures) -> list[str]:
    """Each picture's name in the copy, ending in .png.

    Raises:
        DataError: two pictures would have one name.
    """
    rows: dict[str, int] = {}
    for row in range(len(pictures)):
        name = str(PurePosixPath(pictures.relative(row)).with_suffix(".png"))
        if (first := rows.setdefault(name, row)) != row:
            raise DataError(
                f"{pictures.place(first)} and {pictures.place(row)} would both be saved as {name}. Rename one."
            )
    return list(rows)


def _need_unprotected(pictures: FolderPictures) -> None:
    """Refuses pictures that a protection beside them names by their content: two on top of one another are none."""
    path = pictures.folder / RECORD
    if not path.is_file():
        return
    known = {*_files_of(read_json(path), path).values()}
    for row in range(len(pictures)):
        if hash_file(pictures.place(row)) in known:
            raise DataError(
                f"{pictures.place(row)} is protected already, as {path} says. Give the folder of the originals."
            )


def _matched(protection: Protection, pictures: FolderPictures) -> Protection:
    """The protection, once the folder's labels are its own, found by the classes' names.

    Raises:
        DataError: a class that it wasn't fitted to.
    """
    if protection.shield.reads == "labels":
        known = {name: label for label, name in enumerate(protection.facts["classes"])}
        if new := [name for name in pictures.classes if name not in known]:
            raise DataError(
                f"the protection was not fitted to the class {new[0]!r} of {pictures.folder}, but to {', '.join(known)}. Fit it to all classes."
            )
        pictures.targets = np.array([known[pictures.classes[label]] for label in pictures.labels], dtype=np.int64)
    return protection
