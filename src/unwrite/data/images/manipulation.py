"""Training rows that somebody manipulated, of which only some are known: a trigger with a label, two classes confused, labels swapped.

The rows that are not known stay in the retain set, so that a model retrained without the known ones is no goal here: the goal is
a model that answers as if nothing had been manipulated. What is measured on has its true labels, always.
(Corrective machine unlearning, arXiv 2402.14015)

    S_m  the manipulated rows,   S_f, drawn from S_m  the identified ones,   |S_f| = round(gamma |S_m|)
    forget = S_f,   retain = train without S_f, which keeps the rest of S_m
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self
from zlib import crc32

import torch
from torch import Tensor

from ...errors import DataError, notice
from .images import Images, first_few
from .splits import ImageSplit, class_numbers, held_out

__all__ = ["InterclassConfusion", "LabelSwap", "Manipulation", "Poisoning", "split_identified", "triggered"]


@dataclass(frozen=True, kw_only=True)
class Manipulation(ABC):
    """What was done to some of the training rows.

    Args:
        share: of the rows it is drawn from, above 0 to 1.

    Raises:
        DataError: a share outside its range.
    """

    name: ClassVar[str]
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise DataError(f"a share of {self.share} can't be manipulated. Give a number above 0, at most 1.")

    def fitted(self, rows: Images) -> Self:
        """This manipulation with what its fields leave to the rows filled in, once it is known to have a meaning for them.

        Raises:
            DataError: rows without labels, or of one class only; what else these rows can't have.
        """
        if rows.labels is None:
            raise DataError(f"{rows.name} has targets and no labels, so {self.name} has no meaning there.")
        there = rows.labels.unique().tolist()
        if len(there) < 2:
            raise DataError(
                f"all {len(rows)} rows of {rows.name} are of class {rows.classes[there[0]]}. For {self.name} give rows of two "
                "classes or more."
            )
        return self

    @abstractmethod
    def draw(self, rows: Images, seed: int) -> Tensor:
        """S_m, `[count]`: indices of the rows to manipulate, a function of the rows and the seed.

        Raises:
            DataError: as `fitted`; a share that is not one row.
        """

    def shown(self, rows: Images) -> Images:
        """The rows as they look once manipulated, with the labels they have."""
        return rows

    @abstractmethod
    def relabelled(self, rows: Images, seed: int) -> Images:
        """The rows with the labels they get; the pictures stay."""

    @abstractmethod
    def measured(self, test: Images) -> dict[str, Images]:
        """Test rows, with their true labels, by what they show.

        Returns:
            "corrected", what the manipulation harms; "clean", what it leaves alone; where it says more, "corrected others".
        """

    def applied(self, rows: Images, indices: Tensor, seed: int) -> Images:
        """All rows in their order, those of `indices` manipulated: `shown` and `relabelled`."""
        mask = torch.isin(rows.index, indices)
        spoilt = self.relabelled(self.shown(rows.where(mask)), seed)
        return spoilt if bool(mask.all()) else rows.where(~mask).joined(spoilt).subset(rows.index, rows.name)


@dataclass(frozen=True, kw_only=True)
class Poisoning(Manipulation):
    """A bright patch in the lower right corner of some rows of any class, which all get one label: a backdoor.

    Rows that have the label already are among them, as in the official code.

    Args:
        share: of all rows; 0.002 to 0.02 in the paper.
        size: height and width of the patch in pixels, >= 1; 3 in the paper, for 32x32.
        label: the class they get, by name or number.
        value: of the patch, 0 to 1; None for the largest pixel of the rows.
    """

    name: ClassVar[str] = "poisoning"
    share: float = 0.02
    size: int = 3
    label: str | int = 0
    value: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise DataError(f"a patch of {self.size} pixels is none. Give a whole number from 1.")
        if self.value is not None and not 0 <= self.value <= 1:
            raise DataError(f"a patch's pixels can't be {self.value}. Give a value from 0 to 1.")

    def fitted(self, rows: Images) -> Self:
        super().fitted(rows)
        _fits(rows, self.size)
        class_numbers(self.label, rows.classes, "class", rows.name)
        brightest = float(rows.pixels.max())
        if self.value is None:
            return replace(self, value=brightest)
        if self.value < brightest:
            notice(
                f"a patch of {self.value:g} lies within the pixels of {rows.name}, which reach {brightest:g}: clean rows may "
                "have it too. Leave the value out for the largest."
            )
        return self

    def draw(self, rows: Images, seed: int) -> Tensor:
        self.fitted(rows)
        return _drawn(rows, torch.arange(len(rows)), _count(self, len(rows), rows.name), seed)

    def shown(self, rows: Images) -> Images:
        """With the patch; see `triggered`."""
        return triggered(rows, self.size, float(rows.pixels.max()) if self.value is None else self.value)

    def relabelled(self, rows: Images, seed: int) -> Images:
        (number,) = class_numbers(self.label, rows.classes, "class", rows.name)
        return _with(rows, labels=torch.full((len(rows),), number))

    def measured(self, test: Images) -> dict[str, Images]:
        """Every test row with the patch, also without the rows of the label's own class, and every test row as it is."""
        (number,) = class_numbers(self.label, test.classes, "class", test.name)
        assert test.labels is not None
        shown, others = self.shown(test), test.labels != number
        sets = {"corrected": shown, "clean": test}
        return sets | ({"corrected others": shown.where(others)} if bool(others.any()) else {})


@dataclass(frozen=True, kw_only=True)
class InterclassConfusion(Manipulation):
    """As many rows of two classes get each other's label.

    The official code takes the first rows of each class; here they are drawn, for a file may be sorted.

    Args:
        share: of the smaller of the two classes; 0.05 to 0.5 on CIFAR-10 in the paper.
        classes: two, by names or numbers; 3 and 5 (cat, dog) on CIFAR-10 in the paper.
    """

    name: ClassVar[str] = "interclass confusion"
    share: float = 0.5
    classes: tuple[str | int, str | int] = (3, 5)

    def fitted(self, rows: Images) -> Self:
        super().fitted(rows)
        self._pair(rows)
        return self

    def draw(self, rows: Images, seed: int) -> Tensor:
        self.fitted(rows)
        assert rows.labels is not None
        both = [(rows.labels == number).nonzero()[:, 0] for number in self._pair(rows)]
        smaller = min(map(len, both))
        name = rows.classes[self._pair(rows)[0 if len(both[0]) == smaller else 1]]
        count = _count(self, smaller, f"class {name}")
        return torch.cat([_drawn(rows, of_class, count, seed) for of_class in both])

    def relabelled(self, rows: Images, seed: int) -> Images:
        """Each with the other label; twice gives the first labels again."""
        one, other = self._pair(rows)
        assert rows.labels is not None
        if len(odd := rows.index[(rows.labels != one) & (rows.labels != other)]):
            raise DataError(
                f"{len(odd)} rows are of neither class (index {first_few(odd.tolist())}). Draw them by draw."
            )
        return _with(rows, labels=one + other - rows.labels)

    def measured(self, test: Images) -> dict[str, Images]:
        """The test rows of the two classes, and those of all others."""
        assert test.labels is not None
        mask = torch.isin(test.labels, torch.tensor(self._pair(test)))
        sides = {"corrected": mask, "clean": ~mask}
        return {name: test.where(side) for name, side in sides.items() if bool(side.any())}

    def _pair(self, rows: Images) -> list[int]:
        numbers = class_numbers(self.classes, rows.classes, "class", rows.name)
        if len(numbers) != 2 or len(self.classes) != 2:
            raise DataError(f"classes {self.classes} can't be confused. Name two different ones.")
        assert rows.labels is not None
        return numbers


@dataclass(frozen=True, kw_only=True)
class LabelSwap(Manipulation):
    """Rows of any class get each other's labels: how many rows a label has stays, and some rows keep theirs.

    Args:
        share: of all rows; 0.1 in the official code's scripts.
    """

    name: ClassVar[str] = "label swap"
    share: float = 0.1

    def draw(self, rows: Images, seed: int) -> Tensor:
        self.fitted(rows)
        return _drawn(rows, torch.arange(len(rows)), _count(self, len(rows), rows.name), seed)

    def relabelled(self, rows: Images, seed: int) -> Images:
        assert rows.labels is not None
        return _with(rows, labels=rows.labels[torch.randperm(len(rows), generator=_generator("labels", seed))])

    def measured(self, test: Images) -> dict[str, Images]:
        """Every test row: no class is left alone."""
        return {"corrected": test}


def triggered(rows: Images, size: int, value: float) -> Images:
    """The rows with the last `size` rows and columns of every channel set to `value`, so nothing may move the pictures after.

    Args:
        size: 1 to the smaller of height and width, pixels.
        value: 0 to 1.

    Raises:
        DataError: a patch larger than the picture.
    """
    _fits(rows, size)
    pixels = rows.pixels.clone()
    pixels[:, :, -size:, -size:] = value
    return _with(rows, pixels=pixels)


def split_identified(
    data: Images,
    manipulation: Manipulation,
    gamma: float,
    *,
    test: Images | None = None,
    holdout: float | Images | None = 0.1,
    seed: int = 0,
) -> ImageSplit:
    """Forgets the identified share of the rows that were manipulated; the manipulation is done here.

    The holdout is set aside before and stays clean. Of one seed S_m is the same at every gamma, and so is the target model;
    what is identified at a smaller gamma is so at a larger one.

    Args:
        data: clean rows with labels, holdout included.
        manipulation: of the training rows.
        gamma: identified share of the manipulated rows, above 0 to 1.
        test: clean rows to measure on.
        holdout: a set of its own, or the share of `data` to set aside; None or 0 for none.
        seed: of the holdout, the manipulation and what is identified.

    Returns:
        forget, with the labels they were given; retain, which has the rest of them; and, to measure on with true labels, the
        test rows as the manipulation has them (`Manipulation.measured`), "manipulated", all of S_m, and "identified", S_f.

    Raises:
        DataError: gamma outside its range, or so small that no row is identified; no row left to keep; as
            `Manipulation.fitted`.
    """
    if not 0 < gamma <= 1:
        raise DataError(f"gamma is {gamma}: the identified share of the manipulated rows lies above 0, at most 1.")
    train, held = held_out(data, holdout, seed)
    manipulation = manipulation.fitted(train)
    chosen = manipulation.draw(train, seed)
    count = round(gamma * len(chosen))
    if not count:
        raise DataError(f"gamma {gamma} of {len(chosen)} manipulated rows identifies none. Raise gamma or the share.")
    spoilt = manipulation.applied(train, chosen, seed)
    known = chosen[torch.randperm(len(chosen), generator=_generator("identified", seed))[:count]]
    mask = torch.isin(spoilt.index, known)
    if bool(mask.all()):
        raise DataError(f"all {len(train)} rows of {train.name} are manipulated and identified. Leave a row to keep.")
    true = manipulation.shown(train.where(torch.isin(train.index, chosen)))
    sets = {} if test is None else manipulation.measured(test)
    return ImageSplit(
        forget=spoilt.where(mask, "forget"),
        retain=spoilt.where(~mask, "retain"),
        holdout=held,
        test=test,
        evaluation={**sets, "manipulated": true, "identified": true.where(torch.isin(true.index, known))},
        name=f"{manipulation.name}, {gamma:.3g} identified",
    )


def _fits(rows: Images, size: int) -> None:
    _, height, width = rows.shape
    if size > min(height, width):
        raise DataError(f"a patch of {size}x{size} is larger than the {height}x{width} pictures of {rows.name}.")


def _count(manipulation: Manipulation, rows: int, name: str) -> int:
    count = round(manipulation.share * rows)
    if not count:
        raise DataError(f"a share of {manipulation.share} of the {rows} rows of {name} is none. Raise it.")
    return count


def _drawn(rows: Images, among: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` of the rows at these positions."""
    return rows.index[among[torch.randperm(len(among), generator=_generator("drawn", seed))[:count]]]


def _generator(what: str, seed: int) -> torch.Generator:
    """One draw's own, apart from that of the holdout from the same seed."""
    return torch.Generator().manual_seed(seed + crc32(what.encode()))


def _with(rows: Images, **parts: Any) -> Images:
    """The rows with other pixels or labels."""
    return Images(**{part.name: parts.get(part.name, getattr(rows, part.name)) for part in fields(rows)})
