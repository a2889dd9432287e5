"""What an attack on a folder of protected pictures found: figures that are kept as they come, a table, and one HTML page.

attack.json    what was attacked, and every cell measured so far
report.html    before, after and what changed, and the table; one file, no script, no network
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RunError, setting
from ..runs import clean, conforms, read_json, versions, write_json, write_text
from ..scoring.intervals import wilson
from ..terminal import visible
from .attacking import DefenceCell

if TYPE_CHECKING:
    import jinja2

    from .engine.published import PublishedPictures

__all__ = ["PROTECTED", "RANDOM", "UNPROTECTED", "AttackReport", "PictureRow", "picture_rows"]

RECORD, PAGE = "attack.json", "report.html"
FORM = 1
PROTECTED, RANDOM, UNPROTECTED = "protected", "random noise", "unprotected"
SHOWN = 8  # pictures on the page


@dataclass(frozen=True)
class PictureRow:
    """One picture on the page, as data URIs; of what was not given, none.

    Args:
        label: its class.
        after: as published.
        before: as it was.
        difference: what changed, about middle grey.
    """

    label: str
    after: str
    before: str | None = None
    difference: str | None = None


@dataclass(frozen=True)
class AttackReport:
    """The table of an attack.

    Args:
        attacked: hashes and settings of all that every cell depends on.
        about: for the reader: folders, pictures, classes, the net and its training.
        cells: what was measured, defence by defence.
        guess: right by always naming the commonest class, in %.
        change: the mean change of an 8-bit value in levels of 255; None without the originals.
        amplified: by how much the page shows the difference; None likewise.
    """

    attacked: Mapping[str, Any]
    about: Mapping[str, str]
    cells: tuple[DefenceCell, ...]
    guess: float
    change: float | None = None
    amplified: int | None = None

    @property
    def published(self) -> list[str]:
        """The columns: what was trained on."""
        return list(dict.fromkeys(cell.published for cell in self.cells))

    @property
    def defences(self) -> list[str]:
        """The rows."""
        return list(dict.fromkeys(cell.defence for cell in self.cells))

    def cell(self, defence: str, published: str) -> DefenceCell | None:
        """One training; None where a run ended before it."""
        return next((one for one in self.cells if (one.defence, one.published) == (defence, published)), None)

    @property
    def best(self) -> DefenceCell:
        """The defence under which the protected pictures give most away."""
        return max((one for one in self.cells if one.published == PROTECTED), key=lambda one: one.hits)

    @property
    def sentence(self) -> str:
        """What a reader takes away: the best attack, and what it is to be compared with."""
        best = self.best
        words = (
            f"Whoever trains on these pictures gets {best.accuracy:.1f} % of clean ones right at best ({best.defence})"
        )
        if UNPROTECTED not in self.published:
            return f"{words}; always naming the commonest class is right for {self.guess:.1f} %."
        plain = max(one.hits for one in self.cells if one.published == UNPROTECTED)
        noise = max(one.hits for one in self.cells if one.published == RANDOM)
        words += f"; {100 * plain / best.rows:.1f} % without protection, and {100 * noise / best.rows:.1f} % under random noise of the same size."
        if 100 * wilson(plain, best.rows)[0] > self.guess:
            return words
        return (
            f"{words} Without protection that is hardly more than always naming the commonest class ({self.guess:.1f} %), so nothing "
            "follows: train for more epochs, or on more pictures."
        )

    def json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "form": FORM,
            "attacked": dict(self.attacked),
            "about": dict(self.about),
            "guess": self.guess,
            "change": self.change,
            "cells": [
                {**asdict(cell), "accuracy": cell.accuracy, "interval": list(wilson(cell.hits, cell.rows))}
                for cell in self.cells
            ],
            "versions": versions(),
        }

    def save(self, folder: Path, rows: Sequence[PictureRow] | None = None) -> None:
        """Writes the figures, and the page where there are pictures for it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RECORD, PAGE):
            clean(folder / name)
        write_json(folder / RECORD, self.json())
        if rows is not None:
            write_text(folder / PAGE, self.html(rows))

    def with_cell(self, cell: DefenceCell) -> AttackReport:
        """With one more training."""
        return replace(self, cells=(*self.cells, cell))

    def html(self, rows: Sequence[PictureRow]) -> str:
        """One page with everything in it."""
        page = _environment().get_template("attack.html.j2").render(report=self, rows=rows, interval=_interval)
        return visible(page, lines=True)


def cells_in(folder: Path, attacked: Mapping[str, Any], overwrite: bool) -> dict[str, DefenceCell]:
    """What was measured there of the same attack, by key; nothing of a new folder.

    Raises:
        RunError: the folder holds something else, or another attack.
    """
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise RunError(f"{folder} is a file. Choose another {setting('folder')}.")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if not names:
        return {}
    if RECORD not in names or names - {RECORD, PAGE}:
        odd = sorted(names - {RECORD, PAGE}) or [PAGE]
        raise RunError(
            f"{folder} holds {odd[0]}, which is of no attack on pictures. Choose another {setting('folder')}."
        )
    record = read_json(folder / RECORD)
    cells = record.get("cells")
    if record.get("form") != FORM or not conforms(cells, list[dict[str, Any]]):
        if overwrite:
            return {}
        raise RunError(
            f"{folder / RECORD} is damaged, or of another version. Choose another {setting('folder')}, or pass "
            f"{setting('overwrite', True)} to replace it."
        )
    if record.get("attacked") != dict(attacked):
        if overwrite:
            return {}
        raise RunError(
            f"{folder} holds an attack on other pictures, or by another training. Choose another {setting('folder')}, or pass "
            f"{setting('overwrite', True)} to replace it."
        )
    names_of = ("published", "defence", "hits", "rows", "key")
    return {cell["key"]: DefenceCell(**{name: cell[name] for name in names_of}) for cell in cells or [] if _whole(cell)}


def _whole(cell: Mapping[str, Any]) -> bool:
    """Whether it can be a cell as it was written; one that can't is measured again."""
    words = all(conforms(cell.get(name), str) for name in ("published", "defence", "key"))
    return (
        words and all(conforms(cell.get(name), int) for name in ("hits", "rows")) and 0 <= cell["hits"] <= cell["rows"]
    )


def picture_rows(
    protected: PublishedPictures, original: PublishedPictures | None
) -> tuple[list[PictureRow], int | None]:
    """The first picture of each of a few classes, and by how much differences are amplified: so that the largest fills the range."""
    places = [int((protected.labels == label).argmax()) for label in np.unique(protected.labels)[:SHOWN]]
    after = protected.pixels(np.array(places))
    labels = [protected.classes[protected.labels[place]] for place in places]
    if original is None:
        rows = [PictureRow(label, _uri(pixels)) for label, pixels in zip(labels, after, strict=True)]
        return rows, None
    before = original.pixels(np.array(places))
    change = after.astype(np.int16) - before
    amplified = max(1, 127 // max(1, int(np.abs(change).max())))
    shown = np.clip(128 + amplified * change, 0, 255).astype(np.uint8)
    return [
        PictureRow(label, _uri(one), _uri(two), _uri(three))
        for label, one, two, three in zip(labels, after, before, shown, strict=True)
    ], amplified


def _uri(pixels: np.ndarray) -> str:
    """A picture, `[channels, height, width]`, as a PNG in a data URI."""
    from PIL import Image

    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _interval(cell: DefenceCell) -> str:
    low, high = wilson(cell.hits, cell.rows)
    return f"{100 * low:.1f} – {100 * high:.1f}"


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("unwrite.shield", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
