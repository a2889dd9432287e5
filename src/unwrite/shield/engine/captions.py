"""The captions of a folder of pictures: in one table, or in a text file beside each picture.

    captions.csv        file,caption            cat/1.jpg    cat/1.txt
                        cat/1.jpg,a cat asleep

A table's first line names its columns, and a picture is named by its place in the folder, with "/" between folders.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ...errors import DataError, notice, setting

__all__ = ["TABLE", "captions_of", "read_captions"]

TABLE = "captions.csv"
FILE_COLUMNS, TEXT_COLUMNS = ("file", "image", "filename", "file_name"), ("caption", "text")


def captions_of(folder: Path, names: Sequence[str], table: Path | None) -> tuple[tuple[str, ...], ...]:
    """The captions of each picture, at least one.

    Args:
        folder: holds the pictures.
        names: each picture's place in it.
        table: the captions' file; none for `captions.csv` in the folder, or a text file beside each picture.

    Raises:
        DataError: a picture without a caption, by its file; a file that is none of captions.
    """
    if table is None and (folder / TABLE).is_file():
        table = folder / TABLE
    if table is None:
        return tuple((_beside(folder, name),) for name in names)
    known = read_captions(table)
    if missing := [name for name in names if name not in known]:
        raise DataError(
            f"{folder / missing[0]} has no caption: {table} doesn't name it ({len(missing)} of {len(names)} pictures). "
            f"Add a line {missing[0]},CAPTION."
        )
    if odd := sorted(known.keys() - {*names}):
        notice(f"{table} names {len(odd)} files that are no pictures of {folder} (first: {odd[0]}).")
    return tuple(known[name] for name in names)


def _beside(folder: Path, name: str) -> str:
    path = (folder / name).with_suffix(".txt")
    if not path.is_file():
        raise DataError(
            f"{folder / name} has no caption: there is neither {folder / TABLE} nor {path}. Write one of them, or name a table of captions "
            f"by {setting('captions')}."
        )
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no UTF-8 text that can be read ({error}). Mend it.") from None
    if not text:
        raise DataError(f"{path} is empty, and so {folder / name} has no caption. Write one.")
    return text


def read_captions(table: str | Path) -> dict[str, tuple[str, ...]]:
    """{picture: its captions} of a table of UTF-8 text, in its order; a picture may stand in several lines.

    Raises:
        DataError: no such file, no such columns, an empty cell; the line is named.
    """
    table = Path(table)
    if not table.is_file():
        raise DataError(f"there is no file {table}. Give a table with the columns file and caption.")
    known: dict[str, tuple[str, ...]] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = {name.strip().lower(): name for name in reader.fieldnames or () if name}
            picture = next((columns[name] for name in FILE_COLUMNS if name in columns), None)
            caption = next((columns[name] for name in TEXT_COLUMNS if name in columns), None)
            if picture is None or caption is None:
                raise DataError(
                    f"{table} has the columns {', '.join(columns) or 'none'}. Its first line must name file and caption."
                )
            for row in reader:
                name, text = ((row[column] or "").strip() for column in (picture, caption))
                if not name or not text:
                    lacks = "file" if not name else f"caption of {name}"
                    raise DataError(
                        f"{table}, line {reader.line_num}: the {lacks} is empty. Write it, or remove the line."
                    )
                name = PurePosixPath(name).as_posix()
                known[name] = (*known.get(name, ()), " ".join(text.split()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table} is no table that can be read ({error}). Save it as comma-separated UTF-8 text."
        ) from None
    return known
