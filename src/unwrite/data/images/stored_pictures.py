"""A data set of pictures on disk as a folder of classes: every picture's own bytes, written once to the cache.

    FOLDER/*.parquet, FOLDER/data/train-*.parquet      as the Hub has them
    FOLDER/dataset_info.json, dataset_dict.json        as `datasets.save_to_disk` writes them

Class and owner are the columns `label` and `identity`, or the one column of class labels. Nothing is decoded and nothing fetched: a row
that only names a file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError, unknown
from ...runs import cached_files, hash_file, hash_json, progress
from ..stored import stored_rows
from ..text.reading import load
from .picture_files import ending_of

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["folder_of_pictures"]

SAVED = ("dataset_dict.json", "dataset_info.json")
LABELS = ("label", "labels", "class", "fine_label")
OWNERS = ("identity", "person", "celeb_id", "owner")
SPLITS = ("train", "test", "validation")
_UNSAFE = re.compile(r"[/\\\x00-\x1f]|^\.|^\s*$")


def folder_of_pictures(source: str | Path) -> Path:
    """A folder of classes for a data set on disk; `source` itself where it is no data set.

    Returns:
        class/picture or class/owner/picture below it, or train/ and test/ of that.

    Raises:
        DataError: a data set that can't be read; no column of pictures, or of classes; a row without a picture in it; a class whose
            name is no folder's.
    """
    source = Path(source)
    files = _data_files(source)
    if not files:
        return source
    key = hash_json([[str(file.relative_to(source)), hash_file(file)] for file in files])

    def make(home: Path) -> None:
        tables = _tables(source)
        for split, table in tables.items():
            _write(table, home / "pictures" / (split if len(tables) > 1 else ""), f"{source}@{split}")

    return cached_files("pictures", key, make, lambda home: home / "pictures")


def _data_files(source: Path) -> list[Path]:
    """The files of a data set, or none where the folder is something else."""
    if not source.is_dir():
        return []
    if any((source / name).is_file() for name in SAVED):
        return sorted(path for path in source.rglob("*") if path.is_file())
    return sorted(path for path in source.rglob("*.parquet") if not path.name.startswith("."))


def _tables(source: Path) -> dict[str, Dataset]:
    """Train and, where there is one, test rows, which may be called validation."""
    import datasets

    try:
        if any((source / name).is_file() for name in SAVED):
            whole = datasets.load_from_disk(str(source))
            splits = dict(whole) if isinstance(whole, Mapping) else {"train": whole}
        else:
            names = datasets.get_dataset_split_names(str(source))
            splits = {str(name): load(str(source), None, str(name)) for name in names}
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{source} can't be read as a data set: {str(error).splitlines()[0]}. Write it again."
        ) from None
    if SPLITS[0] not in splits:
        raise DataError(f"{source} has the splits {', '.join(splits)} and no train. Name the one to train on so.")
    test = next((name for name in SPLITS[1:] if name in splits), None)
    return {"train": splits["train"], **({"test": splits[test]} if test else {})}


def _write(table: Dataset, home: Path, what: str) -> None:
    image, label, owner = _columns(table, what)
    names = getattr(table.features[label], "names", None)
    table = table.select_columns([image, label, *([owner] if owner else [])])
    for number, row in enumerate(progress(stored_rows(table), f"unpacking {what}", total=len(table))):
        value = row[label]
        name = _safe(names[value] if names and value is not None and value >= 0 else value, label, what, number)
        inside = (name, _safe(row[owner], owner, what, number)) if owner else (name,)
        picture = row[image] or {}
        if not picture.get("bytes"):
            raise DataError(f"{what}: row {number} has no picture in it. Write the data set with its pictures inside.")
        folder = home.joinpath(*inside)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:07d}{_ending(picture['bytes'], what, number)}").write_bytes(picture["bytes"])


def _columns(table: Dataset, what: str) -> tuple[str, str, str | None]:
    """The columns of pictures, classes and, where there is one, owners."""
    import datasets

    def of(kind: type) -> list[str]:
        return [name for name, feature in table.features.items() if isinstance(feature, kind)]

    pictures = of(datasets.Image) or [
        name
        for name, feature in table.features.items()
        if isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature)
    ]
    if len(pictures) != 1:
        raise DataError(f"{what} has {len(pictures)} columns of pictures ({', '.join(table.column_names)}). Keep one.")
    classes = [name for name in LABELS if name in table.features] or of(datasets.ClassLabel)
    if not classes:
        raise DataError(f"{what}: {unknown('column', LABELS[0], table.column_names)}")
    return pictures[0], classes[0], next((name for name in OWNERS if name in table.features), None)


def _safe(value: Any, column: str, what: str, number: int) -> str:
    name = "" if value is None else str(value)
    if _UNSAFE.search(name):
        raise DataError(f"{what}: row {number} has the {column} {name!r:.60}, which names no folder. Rename it.")
    return name


def _ending(content: bytes, what: str, number: int) -> str:
    try:
        return ending_of(content)
    except DataError as error:
        raise DataError(f"{what}: the picture of row {number} {error}") from None
