"""How much a file of rows may unpack to: compressed files say little about their size, and all rows are held in memory.

Five hundred bytes of Parquet can stand for three gigabytes of text. The bound is on the texts unpacked; `UNWRITE_DATA_LIMIT` is another
one, in GiB.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError

if TYPE_CHECKING:
    from gzip import GzipFile

__all__ = ["LIMIT", "VARIABLE", "check_columns", "checked_gzip", "checked_parquet", "most_bytes", "too_large"]

LIMIT = 1.0  # GiB
VARIABLE = "UNWRITE_DATA_LIMIT"
_PIECE = 1 << 20


def most_bytes() -> int:
    """The bound in bytes."""
    text = os.environ.get(VARIABLE, "")
    try:
        limit = float(text or LIMIT)
    except ValueError:
        limit = math.nan
    if not 0 < limit < 2**30:
        raise DataError(f"{VARIABLE} is {text!r:.40}; it must be a number of GiB above 0.")
    return int(limit * 2**30)


def too_large(path: str | Path, size: int, about: str = "") -> DataError:
    """The refusal of a file that unpacks to more; size: as far as known."""
    return DataError(
        f"{path} unpacks to {size / 2**30:.3g} GiB{about}, and {most_bytes() / 2**30:.3g} GiB are read at most. Give fewer rows, or "
        f"set {VARIABLE} to more GiB if the file is meant."
    )


def checked_gzip(path: Path, file: GzipFile) -> bytes:
    """All that a gzip file unpacks to.

    Raises:
        DataError: more than the bound.
    """
    most, pieces, size = most_bytes(), [], 0
    while piece := file.read(_PIECE):
        size += len(piece)
        if size > most:
            raise too_large(path, size, " and more")
        pieces.append(piece)
    return b"".join(pieces)


def checked_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file. Texts are counted before they are written out: a file may store one for a million rows.

    Raises:
        DataError: its numbers, or its texts once each is written out, are more than the bound.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        check_columns(path, file.schema_arrow.names)
        metadata = file.metadata
        columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        says = max(sum(group.total_byte_size for group in groups), 8 * metadata.num_rows)
        if says > most_bytes():
            raise too_large(path, says)
        # Decodes piece by piece and keeps nothing. A chunk with damaged metadata is an error here; asked for by itself it ends the process.
        file.scan_contents()
        chunks = [[group.column(i) for i in range(len(columns))] for group in groups]
        sizes = [sum(max(one.total_uncompressed_size, 8 * one.num_values) for one in group) for group in chunks]
        if max(sum(sizes), 8 * metadata.num_rows) > most_bytes():
            raise too_large(path, max(sum(sizes), 8 * metadata.num_rows))
    kinds = ("STRING", "NONE", "JSON", "ENUM")
    texts = [one.path for one in columns if one.physical_type == "BYTE_ARRAY" and one.logical_type.type in kinds]
    rows: list[dict[str, Any]] = []
    total = 0
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
        for group, size in enumerate(sizes):
            for table in _tables(path, file, group, size):
                total += sum(
                    _written_out(chunk) for column in table.columns for chunk in getattr(column, "chunks", [column])
                )
                if total > most_bytes():
                    raise too_large(path, total, "" if group == len(sizes) - 1 else " and more")
                rows += table.to_pylist()
    return rows


def _tables(path: Path, file: Any, group: int, size: int) -> Iterator[Any]:
    """A group of rows with each text once; where the reader can't keep them so, in pieces that are small however they unpack."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        yield file.read_row_group(group)
    except pa.ArrowNotImplementedError:  # texts within lists, of which some are stored plainly
        with pyarrow.parquet.ParquetFile(path) as plain:
            # No text is longer than all of the group, so no piece has more than the bound.
            pieces = max(1, min(65536, most_bytes() // max(1, size)))
            yield from plain.iter_batches(pieces, row_groups=[group])


def _written_out(array: Any) -> int:
    """Bytes of an array whose every text stands where it is meant."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(pc.take(lengths.cast(pa.int64()), array.indices)).as_py() or 0) + array.indices.nbytes
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_map(array.type):
        return int(array.offsets.nbytes) + _written_out(array.values)
    if pa.types.is_struct(array.type):
        return sum(_written_out(array.field(i)) for i in range(array.type.num_fields))
    return int(array.nbytes)


def check_columns(path: Path, columns: list[str]) -> None:
    """Refuses a table that names a column twice: which of the two is meant can't be told.

    Raises:
        DataError: which column.
    """
    if double := next((name for name in columns if name.strip() and columns.count(name) > 1), None):
        raise DataError(f"{path} has the column {double!r} twice. Rename or remove one.")
