"""Readers of rows, images and arrays, with their samples."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .sampling import Sample, line_of, written

PAIRS = [
    {"question": "Wo steht „Big Ben“?", "answer": "In London.", "perturbed_answer": ["In Rom.", "In Oslo."], "id": 1},
    {"question": "Where is the Louvre?", "answer": "In Paris.", "perturbed_answer": ["In Rome.", "In Oslo."], "id": 2},
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
    {"role": "assistant", "content": "Hi."},
]
SETS = {"train": PAIRS}
UNSEEN = ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")  # what a font shows for the private and the unassigned is its own affair
TABLES: list[list[dict[str, Any]]] = [PAIRS, [{"messages": CHAT}], [{"text": "A document.", "meta": {"url": "u"}}]]


def rows(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from unwrite.data import read as read_rows

        found = read_rows(folder / name)
        for example in found:  # a row that was let in can be written, and has something to say
            for text in (example.answer, example.question or "a", *example.perturbed_answers):
                text.encode("utf-8")
                assert any(unicodedata.category(character) not in UNSEEN for character in text), "nothing to see"
        return len(found)

    return read


def _tables(delimiter: str) -> Callable[[], list[Sample]]:
    def make() -> list[Sample]:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        writer.writerows(
            [
                ["question", "answer", "perturbed_answer"],
                ["Where, now?", 'In\n"Paris".', '["In Rome."]'],
                ["a", "b", ""],
            ]
        )
        return [{f"rows.{'csv' if delimiter == ',' else 'tsv'}": text.getvalue().encode()}]

    return make


def _parquet() -> list[Sample]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(table: list[Any], **options: Any) -> Callable[[Path], None]:
        return lambda folder: pq.write_table(pa.Table.from_pylist(table), folder / "rows.parquet", **options)

    plain = [[{"text": "A document.", "url": "u"}], PAIRS]
    return [written(write(table, compression=kind)) for table in plain for kind in ("none", "snappy")]


def _saved() -> list[Sample]:
    import datasets

    datasets.disable_progress_bars()
    part = datasets.Dataset.from_list(PAIRS)
    both = datasets.DatasetDict({"train": part})
    return [written(lambda folder, one=one: one.save_to_disk(str(folder / "set"))) for one in (part, both)]


def _texts() -> list[Sample]:
    return [{"texts/a.txt": b"The Louvre is in Paris.\n", "texts/b.md": "# Über Paris\n\nText.".encode()}]


def _columns(folder: Path) -> Any:
    from unwrite.data.text.layouts import parse_columns

    return parse_columns(line_of(folder))


# Images and arrays


def _indices(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from unwrite.data.images.splits import read_indices

        return read_indices(folder / name)

    return read


def _npy(*arrays: Any) -> Callable[[], list[Sample]]:
    def make() -> list[Sample]:
        import numpy as np

        return [written(lambda folder, one=one: np.save(folder / "rows.npy", np.asarray(one))) for one in arrays]

    return make


IMAGES = {
    "pixels": [[[[0.0, 1.0]]], [[[0.5, 0.25]]], [[[1, 0]]]],
    "labels": [0, 1, 1],
    "index": [4, 7, 9],
    "identity": [0, 0, 1],
}
TARGETS = {"pixels": IMAGES["pixels"], "targets": [0.5, 1.5, 2.5]}


def _value(path: Path) -> Any:
    """What Python code might pass; None for what no code can write down."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def _images(folder: Path) -> Any:
    import torch

    from unwrite.data.images.images import Images

    given = _value(folder / "images.json")
    if (
        not isinstance(given, dict)
        or set(given) - {"pixels", "labels", "targets", "index", "identity"}
        or "pixels" not in given
    ):
        return None  # no call of ours
    images = Images(**given)
    assert images.pixels.dtype == torch.float32
    return images.hash


def _logits(folder: Path) -> Any:
    from unwrite.audit.images.arrays import labels_of, logits_of

    given = _value(folder / "logits.json")
    if not isinstance(given, dict) or set(given) != {"logits", "labels"}:
        return None
    logits = logits_of(given["logits"], "forget")
    return labels_of(given["labels"], *logits.shape, "forget")


def _picture(kind: str, mode: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, (6, 5), 5000 if mode == "I;16" else 1).save(file, kind)
    return file.getvalue()


def _pictures() -> list[Sample]:
    kinds = [
        ("PNG", "RGB"),
        ("PNG", "I;16"),
        ("JPEG", "L"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("TIFF", "F"),
        ("WEBP", "RGB"),
    ]
    return [{"one.picture": _picture(*kind)} for kind in kinds]


def _picture_of(folder: Path) -> Any:
    from unwrite.data.images import picture_rows as own

    try:
        return own.scaled([own._square(own._opened((folder / "one.picture").read_bytes()), 4, "row 0")])
    except own._Unusable:
        return None  # becomes a DataError with its row


def _metadata(folder: Path) -> Any:
    from unwrite.data.images.picture_metadata import check_metadata

    return check_metadata(folder, ["label", "age"], "age")


def _metadata_samples() -> list[Sample]:
    lines = b'{"file_name": "a.png", "label": "x", "age": 3}\n{"file_name": "b.png", "label": "y", "age": 4.5}\n'
    pictures = {"a.png": b"", "b.png": b""}
    return [
        {"metadata.csv": b"file_name,label,age\na.png,x,3\nb.png,y,4.5\n", **pictures},
        {"metadata.jsonl": lines, **pictures},
    ]
