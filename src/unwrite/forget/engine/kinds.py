"""The kinds of data there are: which rows go to which `Work`. A new kind is a folder beside `text` and a line here."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ...data import Examples
from ...data.images.images import Images
from ...errors import DataError

if TYPE_CHECKING:
    from .work import Work

__all__ = ["KINDS", "DataKind", "kind_of"]


@dataclass(frozen=True)
class DataKind:
    """One kind of data.

    Args:
        name: as `Method.forgets` has it.
        rows: the class of its rows.
        work: "module:Class" of its `Work`, imported when the first such rows come.
    """

    name: str
    rows: type
    work: str

    def load(self) -> type[Work]:
        """The class of its `Work`."""
        return cast("type[Work]", pkgutil.resolve_name(self.work))


KINDS = {
    "text": DataKind("text", Examples, f"{__package__}.text.work:TextWork"),
    "images": DataKind("images", Images, f"{__package__}.images.work:ImageWork"),
}


def kind_of(rows: object) -> DataKind:
    """The kind of data these rows are.

    Raises:
        DataError: rows of no kind there is.
    """
    for kind in KINDS.values():
        if isinstance(rows, kind.rows):
            return kind
    known = " or ".join(kind.rows.__name__ for kind in KINDS.values())
    raise DataError(f"the rows to forget are {type(rows).__name__}. Give {known}.")
