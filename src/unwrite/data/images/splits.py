"""Which images to forget and which to keep: by class, at random, by identity, by target, or from a list of indices.

Every maker first sets a holdout aside, the same for one seed whatever is forgotten: rows of the same kind that nothing
is ever trained on, for membership attacks. What is left is the training set, and so one target model serves all splits
of one seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DataError, unknown
from ...runs import Malformed, hash_json, parse_json
from .images import Images, first_few, shared

__all__ = [
    "ImageSplit",
    "check_images",
    "class_numbers",
    "held_out",
    "read_indices",
    "split_at_random",
    "split_by_class",
    "split_by_identity",
    "split_by_index",
    "split_by_target",
]

SUFFIXES = (".txt", ".json", ".npy")


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """What to forget, what to keep, what was never trained on, and what to measure on.

    No two of forget, retain, holdout and test share an index.

    Args:
        forget: the rows to remove.
        retain: the rows that stay; forget and retain together are what the target model was trained on.
        holdout: rows of the training set's kind that nothing was trained on (membership attacks), or None.
        test: rows to measure on, or None.
        test_forget: the rows of `test` of the kind that is forgotten (its class, person or range); None where
            nothing tells them apart.
        evaluation: further named sets to measure on ("new fonts").
        name: in messages and reports.
        downstream: named sets of other tasks, with labels of their own, on which features are judged; their pixels have
            this data's shape.

    Raises:
        DataError: an empty part, parts that share rows, or that don't fit one model.
    """

    forget: Images
    retain: Images
    holdout: Images | None = None
    test: Images | None = None
    test_forget: Images | None = None
    evaluation: Mapping[str, Images] = field(default_factory=dict)
    name: str = "split"
    downstream: Mapping[str, Images] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = self.parts
        for kind in ("forget", "retain"):
            if kind not in parts:
                raise DataError(f"the {kind} set is empty. Give at least one row to {_VERBS[kind]}.")
        if taken := sorted(set(self.evaluation) & _OWN):
            raise DataError(f"an evaluation set can't be called {taken[0]!r}, a part of the split itself. Rename it.")
        if taken := sorted(set(self.downstream) & set(parts)):
            raise DataError(f"a downstream set can't be called {taken[0]!r}, a part of the split itself. Rename it.")
        check_images(parts)
        for kind, rows in self.downstream.items():
            if rows.labels is None or rows.shape != self.forget.shape:
                raise DataError(
                    f"downstream set {kind!r} has {'targets' if rows.labels is None else 'labels'} and images of "
                    f"{list(rows.shape)}. Give labels, and images of {list(self.forget.shape)}."
                )
        if self.test_forget is not None and (
            self.test is None or len(shared(self.test_forget, self.test)) < len(self.test_forget)
        ):
            raise DataError("test_forget has rows that are not in test. Take it from the test set.")

    @property
    def parts(self) -> dict[str, Images]:
        """The sets there are, by name: forget, retain, holdout, test and those of `evaluation`."""
        own = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout, "test": self.test}
        return {kind: rows for kind, rows in {**own, **self.evaluation}.items() if rows is not None}

    @property
    def train(self) -> Images:
        """Forget and retain together, in the order of their indices: the same for every split of one training set."""
        return self.retain.joined(self.forget, "train")

    @cached_property
    def test_retain(self) -> Images | None:
        """The rows of `test` that are not of the forgotten kind; None if all or none are known to be."""
        if self.test is None or self.test_forget is None:
            return self.test
        mask = ~torch.isin(self.test.index, self.test_forget.index)
        return self.test.where(mask, "test retain") if bool(mask.any()) else None

    @cached_property
    def hash(self) -> str:
        """Content hash over all parts and downstream sets."""
        return hash_json({kind: rows.hash for kind, rows in {**self.parts, **self.downstream}.items()})


def check_images(parts: Mapping[str, Images]) -> None:
    """Refuses sets that don't fit one model, or that share rows: of forget, retain, holdout and test no two may.

    Raises:
        DataError: it names the sets, and the first few of the rows.
    """
    first, rows_of_first = next(iter(parts.items()))
    for kind, rows in parts.items():
        for what in ("shape", "num_outputs"):
            mine, theirs = getattr(rows_of_first, what), getattr(rows, what)
            if mine != theirs:
                raise DataError(f"the {what} of {first} is {mine} and of {kind} {theirs}. Take parts of one data set.")
    for one, other in combinations([kind for kind in parts if kind in _OWN], 2):
        if both := shared(parts[one], parts[other]):
            raise DataError(
                f"{one} and {other} share {len(both)} rows (index {first_few(both)}). Remove them from one, or, if "
                "they are different images, number the sets apart."
            )


def split_by_class(
    data: Images,
    classes: str | int | Sequence[str | int],
    *,
    test: Images | None = None,
    holdout: float | Images | None = 0.1,
    seed: int = 0,
    evaluation: Mapping[str, Images] | None = None,
) -> ImageSplit:
    """Forgets whole classes.

    Args:
        data: what there is to train on, holdout included.
        classes: their names, or numbers.
        test: rows to measure on.
        holdout: a set of its own, or the share of `data` to set aside (of each class alike); None or 0 for none.
        seed: of the holdout.
        evaluation: further named sets to measure on.

    Raises:
        DataError: no such class; nothing to forget, or nothing else.
    """
    numbers = class_numbers(classes, data.classes, "class", data.name)
    return _split(data, "labels", numbers, test, holdout, seed, evaluation, f"class {_names(numbers, data.classes)}")


def split_by_identity(
    data: Images,
    identities: str | int | Sequence[str | int],
    *,
    test: Images | None = None,
    holdout: float | Images | None = 0.1,
    seed: int = 0,
    evaluation: Mapping[str, Images] | None = None,
) -> ImageSplit:
    """Forgets everything of some persons, fonts or the like. Arguments as `split_by_class`."""
    numbers = class_numbers(identities, data.identities, "identity", data.name)
    name = f"identity {_names(numbers, data.identities)}"
    return _split(data, "identity", numbers, test, holdout, seed, evaluation, name)


def split_at_random(
    data: Images,
    share: float,
    *,
    classes: Sequence[str | int] | None = None,
    test: Images | None = None,
    holdout: float | Images | None = 0.1,
    seed: int = 0,
    evaluation: Mapping[str, Images] | None = None,
) -> ImageSplit:
    """Forgets a random share of the training rows, of any class, or that share of each of some classes.

    Args:
        share: between 0 and 1.
        classes: their names or numbers; None draws from all rows together.
        others: as `split_by_class`; `seed` also draws the share.
    """
    if not 0 < share < 1:
        raise DataError(f"a share of {share} can't be forgotten. Give a number between 0 and 1, both excluded.")
    train, held = held_out(data, holdout, seed)
    generator = torch.Generator().manual_seed(seed)
    if classes is None:
        drawn = _draw(torch.arange(len(train)), share, generator)
    else:
        numbers = class_numbers(classes, train.classes, "class", data.name)
        assert train.labels is not None
        drawn = torch.cat([_draw((train.labels == n).nonzero()[:, 0], share, generator) for n in numbers])
    mask = torch.zeros(len(train), dtype=torch.bool)
    mask[drawn] = True
    return _parted(train, mask, held, test, None, evaluation, f"random {share:.3g}")


def split_by_target(
    data: Images,
    low: float | None = None,
    high: float | None = None,
    *,
    test: Images | None = None,
    holdout: float | Images | None = 0.1,
    seed: int = 0,
    evaluation: Mapping[str, Images] | None = None,
) -> ImageSplit:
    """Forgets the rows whose regression target lies in `low <= target <= high`; None leaves an end open.

    Other arguments as `split_by_class`.
    """
    if data.targets is None:
        raise DataError(f"{data.name} has labels, not targets, so it has no range of values. Split it by class.")
    bounds = (-torch.inf if low is None else float(low), torch.inf if high is None else float(high))
    if not bounds[0] <= bounds[1]:
        raise DataError(f"no target lies from {low} to {high}. Give the lower bound first.")

    def within(rows: Images) -> Tensor:
        assert rows.targets is not None
        return (rows.targets >= bounds[0]) & (rows.targets <= bounds[1])

    train, held = held_out(data, holdout, seed)
    of_kind = None if test is None or test.targets is None else within(test)
    return _parted(train, within(train), held, test, of_kind, evaluation, f"targets {bounds[0]:g} to {bounds[1]:g}")


def split_by_index(
    data: Images,
    indices: str | Path | Iterable[int],
    *,
    test: Images | None = None,
    holdout: float | Images | None = 0.1,
    seed: int = 0,
    evaluation: Mapping[str, Images] | None = None,
) -> ImageSplit:
    """Forgets the rows of these names: given, or in a file that `read_indices` reads.

    The holdout is drawn from the others. Other arguments as `split_by_class`.

    Raises:
        DataError: unknown or repeated indices; the first few are named.
    """
    named = isinstance(indices, str | Path)
    rows = read_indices(indices) if isinstance(indices, str | Path) else list(indices)
    mask = torch.zeros(len(data), dtype=torch.bool)
    mask[data.positions(rows)] = True
    name = Path(str(indices)).stem if named else f"{len(rows)} rows"
    forget = data.where(mask, "forget")
    if bool(mask.all()):
        raise DataError(f"{name} names all {len(data)} rows of {data.name}. Leave at least one row to keep.")
    retain, held = held_out(data.where(~mask, "retain"), holdout, seed)
    return ImageSplit(forget, retain, held, test, evaluation=evaluation or {}, name=name)


def read_indices(path: str | Path) -> list[int]:
    """Whole numbers from a file: .txt, one a line; .json, one list; .npy, one array `[rows]`.

    Raises:
        DataError: no such file, another suffix, none in it, or something else in it; the message names the line.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise DataError(f"{path}: {unknown('file type', path.suffix or path.name, SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}. Check the path.")
    try:
        indices = {".txt": _lines, ".json": _json, ".npy": _array}[kind](path)
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8 text. Save it as UTF-8.") from None
    if not indices:
        raise DataError(f"{path.name} has no indices. Give at least one.")
    return indices


def _lines(path: Path) -> list[int]:
    indices = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not (text := line.strip()):
            continue
        digits = text.removeprefix("-")
        if not digits.isascii() or not digits.isdigit() or len(digits) > _LONGEST:
            raise DataError(f"{path.name}:{number}: {text[:40]!r} is no index. Give one whole number a line.")
        indices.append(int(text))
    return indices


def _json(path: Path) -> list[int]:
    try:
        value = parse_json(path.read_bytes())
    except Malformed as error:
        raise DataError(f"{path.name}: invalid JSON ({error}).") from None
    if not isinstance(value, list):
        raise DataError(f"{path.name}: needs one list of indices, not one {type(value).__name__}.")
    wrong = next((i for i, item in enumerate(value) if not isinstance(item, int) or isinstance(item, bool)), None)
    if wrong is not None:
        raise DataError(f"{path.name} item {wrong}: {value[wrong]!r:.40} is no index. Give whole numbers.")
    return value


def _array(path: Path) -> list[int]:
    import numpy as np

    try:
        value = np.load(
            path, allow_pickle=False, mmap_mode="r"
        )  # a header that promises more than there is takes no memory
    except Exception as error:  # the header is read as Python, which brings errors of its own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path.name} is no array of numbers ({why}).") from None
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
        what = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DataError(f"{path.name} holds {what}. Give one array of whole numbers, [rows].")
    return [int(item) for item in value]


def _split(
    data: Images,
    column: str,
    numbers: list[int],
    test: Images | None,
    holdout: float | Images | None,
    seed: int,
    evaluation: Mapping[str, Images] | None,
    name: str,
) -> ImageSplit:
    """Forgets where `column` is one of `numbers`."""

    def of_kind(rows: Images) -> Tensor:
        return torch.isin(getattr(rows, column), torch.tensor(numbers))

    train, held = held_out(data, holdout, seed)
    tested = None if test is None or getattr(test, column) is None else of_kind(test)
    return _parted(train, of_kind(train), held, test, tested, evaluation, name)


def _parted(
    train: Images,
    mask: Tensor,
    held: Images | None,
    test: Images | None,
    of_kind: Tensor | None,
    evaluation: Mapping[str, Images] | None,
    name: str,
) -> ImageSplit:
    if not bool(mask.any()):
        raise DataError(f"no row of {train.name} is of {name}, so there is nothing to forget.")
    if bool(mask.all()):
        raise DataError(f"all {len(train)} rows of {train.name} are of {name}. Leave at least one row to keep.")
    some = test is not None and of_kind is not None and bool(of_kind.any())
    return ImageSplit(
        forget=train.where(mask, "forget"),
        retain=train.where(~mask, "retain"),
        holdout=held,
        test=test,
        test_forget=test.where(of_kind, "test forget") if some and test is not None and of_kind is not None else None,
        evaluation=evaluation or {},
        name=name,
    )


def held_out(data: Images, holdout: float | Images | None, seed: int) -> tuple[Images, Images | None]:
    """The rows to train on and those set aside, of each class alike."""
    if holdout is None or isinstance(holdout, Images):
        return data, holdout
    if holdout == 0:
        return data, None
    if not 0 < holdout < 1:
        raise DataError(f"a holdout of {holdout} is no share. Give a number from 0 to below 1, or a set.")
    generator = torch.Generator().manual_seed(seed)
    groups = torch.zeros(len(data), dtype=torch.int64) if data.labels is None else data.labels
    drawn = [_draw((groups == group).nonzero()[:, 0], holdout, generator) for group in groups.unique().tolist()]
    mask = torch.zeros(len(data), dtype=torch.bool)
    mask[torch.cat(drawn)] = True
    if not bool(mask.any()) or bool(mask.all()):
        raise DataError(
            f"a holdout of {holdout} of {data.name} ({len(data)} rows) leaves one side empty. "
            "Give another share, a set, or None."
        )
    return data.where(~mask, data.name), data.where(mask, "holdout")


def _draw(rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`round(share * len(rows))` of the rows."""
    return rows[torch.randperm(len(rows), generator=generator)[: round(share * len(rows))]]


def class_numbers(items: str | int | Sequence[str | int], names: tuple[str, ...], kind: str, where: str) -> list[int]:
    """Names or numbers to numbers, each once."""
    if not names:
        raise DataError(f"{where} has no {kind} column, so it can't be split by {kind}.")
    numbers = []
    for item in [items] if isinstance(items, str | int) else items:
        number = names.index(item) if item in names else item
        if isinstance(number, str) or not 0 <= number < len(names):
            raise DataError(f"{where}: {unknown(kind, str(item), names)} Or give its number, 0 to {len(names) - 1}.")
        numbers.append(int(number))
    if not numbers:
        raise DataError(f"no {kind} of {where} is named to be forgotten. Name at least one.")
    return sorted(set(numbers))


def _names(numbers: list[int], names: tuple[str, ...]) -> str:
    return first_few([names[number] for number in numbers])


_LONGEST = 19  # digits of the largest whole number a tensor holds
_OWN = {"forget", "retain", "holdout", "test"}
_VERBS = {"forget": "forget", "retain": "keep"}
