"""Sets of images with their labels or targets, whose rows keep their own names wherever they go.

A row is found by its `index`, in a set and in every subset of it: forget and retain sets are told apart by it, caches
and pairings go by it. Positions, 0 to `len - 1`, only say where a row stands in the set at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...errors import DataError
from ...runs import hash_json, hash_tensors

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["ImageBatch", "Images", "first_few"]

SHOWN = 5
MOST_MADE_UP = 1_000_000  # names of classes or identities that are made up from the largest number


class ImageBatch(NamedTuple):
    """Some rows of a set.

    Args:
        pixels: `[rows, channels, height, width]`
        target: `[rows]`, labels (int64) or regression targets (float32).
        index: `[rows]`, the rows' own names.
    """

    pixels: Tensor
    target: Tensor
    index: Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """An immutable set of images. Arrays and lists become tensors; nothing is scaled, what doesn't fit is refused.

    Args:
        pixels: `[rows, channels, height, width]`, float32 in 0..1.
        labels: `[rows]`, int64, 0 to `len(classes) - 1`; None for regression.
        targets: `[rows]`, float32, finite and not all equal; None for classification.
        index: `[rows]`, int64, each row's own name, each once; 0, 1, ... if None.
        identity: `[rows]`, int64, whose image it is (a font, a person), or None.
        classes: the labels' names; "0", "1", ... up to the largest label if empty.
        identities: the identities' names, likewise.
        name: of the set, in messages and reports; not part of its content.

    Raises:
        DataError: any of that doesn't hold; the message names the row.
    """

    pixels: Tensor
    labels: Tensor | None = None
    targets: Tensor | None = None
    index: Tensor = field(default=None)
    identity: Tensor | None = None
    classes: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    name: str = "images"

    def __post_init__(self) -> None:
        pixels = _pixels(self.pixels, self.name)
        rows = len(pixels)
        if (self.labels is None) == (self.targets is None):
            reason = "neither labels nor targets" if self.labels is None else "both labels and targets"
            raise DataError(f"{self.name} has {reason}. Give labels for classification or targets for regression.")
        parts: dict[str, Any] = {"pixels": pixels}
        parts["index"] = torch.arange(rows) if self.index is None else _whole(self.index, rows, "index", self.name)
        if twice := _repeated(parts["index"]):
            raise DataError(
                f"{len(twice)} indices stand more than once in {self.name}: {first_few(twice)}. "
                "Give each row a name of its own."
            )
        for values, names in (("labels", "classes"), ("identity", "identities")):
            if getattr(self, values) is not None:
                parts[values] = _whole(getattr(self, values), rows, values, self.name)
                parts[names] = _named(parts[values], tuple(map(str, getattr(self, names))), values, names, self.name)
        if self.targets is not None:
            parts["targets"] = _targets(self.targets, rows, self.name)
        for name, value in parts.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, item: int | slice | Sequence[int] | Tensor) -> ImageBatch:
        """The rows at these positions; a whole number gives a batch of one row.

        Raises:
            DataError: a position outside the set.
        """
        at = self._at(item)
        return ImageBatch(self.pixels[at], self.target[at], self.index[at])

    def __repr__(self) -> str:
        kind = "targets" if self.labels is None else f"{len(self.classes)} classes"
        return f"Images({self.name!r}, {len(self)} rows of {'x'.join(map(str, self.shape))}, {kind})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def target(self) -> Tensor:
        """`[rows]`: the labels, or the regression targets."""
        if self.labels is not None:
            return self.labels
        assert self.targets is not None
        return self.targets

    @property
    def num_outputs(self) -> int:
        """What a net for this set needs: one output a class, or one for a target."""
        return len(self.classes) if self.labels is not None else 1

    @cached_property
    def hash(self) -> str:
        """Content hash: pixels, labels or targets, indices, identities and their names, in this order of rows."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        tensors = {name: value for name, value in parts.items() if isinstance(value, Tensor)}
        return hash_json([hash_tensors(tensors), self.classes, self.identities])

    def positions(self, indices: Iterable[int] | Tensor) -> Tensor:
        """`[len(indices)]`, where the rows of these names stand, in the order given.

        Raises:
            DataError: none, unknown ones, or one twice; the first few are named.
        """
        numbers = _numbers(indices, self.name)
        order = torch.argsort(self.index)
        known = self.index[order]
        place = torch.searchsorted(known, numbers).clamp(max=len(self) - 1)
        if unknown := numbers[known[place] != numbers].tolist():
            raise DataError(
                f"{self.name} has no rows of {len(unknown)} of the {len(numbers)} indices: {first_few(unknown)}. "
                "Take them from its .index."
            )
        if twice := _repeated(numbers):
            raise DataError(f"{len(twice)} indices are given more than once: {first_few(twice)}. Give each once.")
        return order[place]

    def subset(self, indices: Iterable[int] | Tensor, name: str | None = None) -> Images:
        """The rows of these names, in the order given; they keep their names, and the set its classes.

        Raises:
            DataError: as `positions`.
        """
        return self._rows(self.positions(indices), name or self.name)

    def where(self, mask: Tensor, name: str | None = None) -> Images:
        """The rows where `mask` `[rows]` is true.

        Raises:
            DataError: there are none; the mask has another length.
        """
        if mask.dtype != torch.bool or mask.shape != (len(self),):
            raise DataError(f"a mask of {self.name} is {len(self)} booleans, not {mask.dtype} {list(mask.shape)}.")
        return self._rows(mask.nonzero()[:, 0], name or self.name)

    def joined(self, other: Images, name: str | None = None) -> Images:
        """The rows of both, in the order of their indices, so that what was split is put together to the same set.

        Raises:
            DataError: they share rows, or differ in shape, in kind or in the names of classes or identities.
        """
        if both := shared(self, other):
            raise DataError(f"{self.name} and {other.name} share {len(both)} indices: {first_few(both)}.")
        for what in ("shape", "classes", "identities"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise DataError(f"{self.name} and {other.name} can't be joined: their {what} are {mine} and {theirs}.")
        order = torch.argsort(torch.cat([self.index, other.index]))
        parts: dict[str, Any] = {}
        for part in ("pixels", "labels", "targets", "index", "identity"):
            mine, theirs = getattr(self, part), getattr(other, part)
            if (mine is None) != (theirs is None):
                raise DataError(f"{self.name} and {other.name} can't be joined: only one of them has {part}.")
            parts[part] = None if mine is None else torch.cat([mine, theirs])[order]
        return self._made(parts, name or self.name)

    def _rows(self, at: Tensor, name: str) -> Images:
        if len(at) == 0:
            raise DataError(f"no row of {self.name} is selected for {name}. Select at least one.")
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return self._made({k: v[at] for k, v in parts.items() if isinstance(v, Tensor)}, name)

    def _made(self, tensors: dict[str, Any], name: str) -> Images:
        """With this set's class names. What was checked once isn't again; a part's targets may all be equal."""
        images = object.__new__(Images)
        for part in fields(self):
            value = getattr(self, part.name)
            keeps = not isinstance(value, Tensor) and part.name not in tensors
            object.__setattr__(images, part.name, value if keeps else tensors[part.name])
        object.__setattr__(images, "name", name)
        return images

    def _at(self, item: int | slice | Sequence[int] | Tensor) -> Tensor:
        rows = len(self)
        if isinstance(item, slice):
            return torch.arange(rows)[item]
        at = torch.as_tensor(item).reshape(-1)
        if at.dtype == torch.bool and len(at) == rows:
            return at.nonzero()[:, 0]
        if at.dtype == torch.bool or at.is_floating_point():
            raise DataError(
                f"{item!r:.60} is no position in {self.name}. Give whole numbers, a slice or {rows} booleans."
            )
        if outside := at[(at < -rows) | (at >= rows)].tolist():
            raise DataError(f"{self.name} has {rows} rows and none at {first_few(outside)}. Count from 0.")
        return at % rows


def shared(one: Images, other: Images) -> list[int]:
    """The indices that stand in both."""
    return one.index[torch.isin(one.index, other.index)].tolist()


def first_few(values: Sequence[object]) -> str:
    """ "1, 2, 3, 4, 5, ..." """
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")


def _pixels(array: ArrayLike, name: str) -> Tensor:
    pixels = _tensor(array, "pixels", name)
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise DataError(
            f"the pixels of {name} have shape {list(pixels.shape)}. Give [rows, channels, height, width], channels first."
        )
    if len(pixels) == 0:
        raise DataError(f"{name} has no images. Give at least one.")
    if not pixels.is_floating_point():
        raise DataError(
            f"the pixels of {name} are {str(pixels.dtype)[6:]}. Give floats in 0..1: divide bytes by 255, 16 bits by 65535."
        )
    pixels = pixels.to(torch.float32)
    if not (pixels.amin() >= 0 and pixels.amax() <= 1):  # also for NaN
        wrong = ~((pixels >= 0) & (pixels <= 1)).flatten(1)
        row = int(wrong.any(1).nonzero()[0])
        value = float(pixels[row].flatten()[wrong[row]][0])
        raise DataError(
            f"image {row} of {name} has a pixel of {value:g}. Pixels are finite and in 0..1: divide bytes by 255, "
            "and leave normalising to the model."
        )
    return pixels


def _tensor(array: ArrayLike | Iterable[int], what: str, name: str) -> Tensor:
    try:
        return torch.as_tensor(array).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"the {what} of {name} are no array of numbers: {str(error).splitlines()[0]}.") from None


def _column(array: ArrayLike, rows: int, what: str, name: str) -> Tensor:
    values = _tensor(array, what, name)
    if values.shape != (rows,):
        raise DataError(f"{name} has {rows} images and {what} of shape {list(values.shape)}. Give one each, [{rows}].")
    return values


def _whole(array: ArrayLike, rows: int, what: str, name: str) -> Tensor:
    values = _column(array, rows, what, name)
    if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
        raise DataError(f"the {what} of {name} are {str(values.dtype)[6:]}. Give whole numbers.")
    return values.to(torch.int64)


def _named(values: Tensor, names: tuple[str, ...], what: str, kind: str, name: str) -> tuple[str, ...]:
    """The names, made up where there are none, once every value has one."""
    most = len(names) if names else int(values.max()) + 1
    if most > MOST_MADE_UP and not names:
        row = int(values.argmax())
        raise DataError(
            f"{what} of {name} reach {most - 1} (row {row}), and at most {MOST_MADE_UP:,} {kind} are named by themselves. Count "
            f"{what} from 0 without gaps, or give {kind}."
        )
    wrong = ((values < 0) | (values >= most)).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        upto = f"0 to {most - 1} ({most} {kind})" if names else "0 or more"
        raise DataError(
            f"{len(wrong)} {what} of {name} are out of range (first: row {row}, {int(values[row])}). "
            f"They must be {upto}."
        )
    return names or tuple(str(number) for number in range(most))


def _targets(array: ArrayLike, rows: int, name: str) -> Tensor:
    values = _tensor(array, "targets", name)
    if values.shape == (rows, 1):
        values = values[:, 0]  # a column would broadcast to [rows, rows] against predictions [rows]
    values = _column(values, rows, "targets", name)
    if values.is_complex():
        raise DataError(f"the targets of {name} are {str(values.dtype)[6:]}. Give real numbers.")
    values = values.to(torch.float32)
    wrong = (~values.isfinite()).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{len(wrong)} targets of {name} are not finite (first: row {row}, {float(values[row])}). Remove those rows."
        )
    if bool((values == values[0]).all()):
        raise DataError(f"all {rows} targets of {name} are {float(values[0]):g}. There is nothing to learn from them.")
    return values


def _numbers(indices: Iterable[int] | Tensor, name: str) -> Tensor:
    values = indices if hasattr(indices, "shape") else list(indices)
    numbers = _tensor(values, "indices", name).reshape(-1)
    if len(numbers) == 0:
        raise DataError(f"no indices of {name} are given. Give at least one.")
    return _whole(numbers, len(numbers), "indices", name)


def _repeated(index: Tensor) -> list[int]:
    values, counts = index.unique(return_counts=True)
    return values[counts > 1].tolist()
