"""What every way to protect pictures is: fit, transform, and a key that makes all of it again.

    shield = CUDA(key=1234567)                           its fields are its hyper-parameters
    protection = shield.fit(images, labels)              what it learnt: a value of its own, to save and to load
    protected = protection.transform(images, labels)     as given: uint8 or floats, arrays, tensors or `Images`

In scikit-learn's manner, but for one thing: `fit` returns the fitted `Protection` and leaves the shield, which is a value with a
hash, as it was. What a shield is told of each picture is its `reads`: a label, a caption, or nothing.
"""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import catalog
from ..errors import DataError, MethodError, RunError, setting
from ..runs import conforms, hash_file, new_folder, read_json, read_tensors, versions, write_json
from .engine.folders import FolderPictures
from .engine.keys import check_key, is_key_of, sealed
from .engine.pictures import ArrayPictures, PictureBatch, Pictures, Reads, check_fitting

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ..data.images.images import Images

__all__ = ["Additive", "Fitted", "Protection", "Shield", "need_choice", "need_number", "need_place"]

RECORD, STATE = "protection.json", "state.safetensors"
FORM = 1


@dataclass(frozen=True)
class Fitted:
    """What a shield learnt of pictures.

    Args:
        state: arrays by name, as the shield's `layout` has them; attributes of the `Protection`: "noise" is `noise_`.
        facts: what else is to be known, JSON values by name; attributes likewise.
    """

    state: Mapping[str, np.ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Shield(ABC):
    """A way to change pictures so that nothing of use is learnt from them.

    A subclass is a frozen dataclass whose fields are its hyper-parameters. It says what it `reads` of each picture, and writes
    `layout`, `_fit` and `_protect`.

    Args:
        key: the secret, a whole number from 0 to 2 ** 256 - 1, of which all that is random follows. It is in no `repr` and no
            file. One that can be guessed protects nothing: draw it with `secrets.randbits(64)`.
    """

    reads: ClassVar[Reads] = "labels"

    key: int = field(repr=False)

    def __post_init__(self) -> None:
        check_key(self.key)

    @property
    def budget(self) -> int | None:
        """The most by which an 8-bit value changes, in levels of 255; None where changes have no bound."""
        return None

    @property
    def slug(self) -> str:
        """Its name in the catalogue; its class's name where it has no record."""
        cls = type(self)
        entry = f"{cls.__module__}:{cls.__qualname__}"
        return next((record.slug for record in catalog.shields().values() if record.entry == entry), cls.__name__)

    def fit(self, images: ArrayLike | Images | str | Path | Pictures, labels: Any = None) -> Protection:
        """Learns what the pictures are changed by.

        Args:
            images: uint8, or floats in 0..1, as `[rows, height, width]`, `[rows, height, width, channels]` or
                `[rows, channels, height, width]` of 1 or 3 channels, arrays or tensors; an `Images`, which has its labels;
                or a folder of classes, folder/class/picture, which is read a few pictures at a time.
            labels: `[rows]`, whole numbers from 0; captions for a shield that reads captions, for a folder the table that holds
                them; ignored by one that reads neither.

        Raises:
            DataError: pictures or labels that can't be used; one picture or one class alone.
        """
        if isinstance(images, str | Path):
            images = self.pictures_of(images, labels if isinstance(labels, str | Path) else None)
        pictures = images if isinstance(images, Pictures) else ArrayPictures(images, labels, self.reads)
        check_fitting(pictures, self.reads)
        fitted = self._fit(pictures)
        facts = {"classes": list(pictures.classes), "pictures": len(pictures), **fitted.facts}
        return Protection(self, fitted.state, facts)

    def pictures_of(self, folder: str | Path, captions: str | Path | None = None) -> FolderPictures:
        """A folder's pictures with what this shield reads of each.

        Args:
            captions: a table of captions, for a shield that reads them.

        Raises:
            DataError: as `FolderPictures`.
            MethodError: captions for a shield that reads none.
        """
        if captions is not None and self.reads != "captions":
            raise MethodError(f"{self.slug} reads no captions. Leave {setting('captions')} out.")
        return FolderPictures(folder, self.reads, captions)

    def fit_transform(self, images: ArrayLike | Images, labels: Any = None) -> Any:
        """The protected pictures, as `fit` and then `transform` give them."""
        return self.fit(images, labels).transform(images, labels)

    def transform(self, images: ArrayLike | Images, labels: Any = None) -> Any:
        """Refuses: what was learnt is the `Protection` that `fit` returns.

        Raises:
            MethodError: always.
        """
        name = type(self).__name__
        raise MethodError(
            f"this {name} is not fitted: fit returns what is. Write protection = {name}(...).fit(images, labels)."
        )

    @abstractmethod
    def layout(self) -> Mapping[str, tuple[str, int]]:
        """The arrays of its state: {name: (type, dimensions)}."""

    @abstractmethod
    def _fit(self, pictures: Pictures) -> Fitted:
        """What it learns of at least two pictures, of at least two classes where it reads labels."""

    @abstractmethod
    def _protect(self, protection: Protection, batch: PictureBatch) -> np.ndarray:
        """`[rows, channels, height, width]`, uint8, the batch protected; the batch's own pixels stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Additive(Shield):
    """A shield that adds noise within a budget. A subclass writes `_noise` in place of `_protect`.

    Rounding to 8 bits happens inside the budget: no value of a saved picture differs by more than `floor(255 eps)` levels.

    Args:
        eps: the budget, the largest change of a pixel in 0..1, from 0 (none) to 1.
    """

    eps: float = 8 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps > 1:
            raise MethodError(
                f"{setting('eps')} is {self.eps:g}, and pixels are in 0..1. For 8 levels of 255 give {8 / 255:.6g}."
            )
        need_number("eps", self.eps, at_least=0)

    @property
    def budget(self) -> int:
        """The most by which an 8-bit value changes, in levels of 255."""
        return int(np.floor(self.eps * 255 + 1e-9))

    @abstractmethod
    def _noise(self, protection: Protection, batch: PictureBatch) -> np.ndarray:
        """`[rows, channels, height, width]`, floats, what is added to these pictures in 0..1."""

    def _levels(self, noise: np.ndarray) -> np.ndarray:
        """Noise in levels of 255, to the nearest one within the budget; int16."""
        return np.clip(np.rint(noise.astype(np.float64) * 255), -self.budget, self.budget).astype(np.int16)

    def _protect(self, protection: Protection, batch: PictureBatch) -> np.ndarray:
        levels = self._levels(self._noise(protection, batch))
        return np.clip(batch.pixels.astype(np.int16) + levels, 0, 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Protection:
    """A fitted shield: transforms pictures, and can be saved and loaded.

    What was learnt are attributes that end in "_", as scikit-learn's are: `filters_`, `noise_`, `converged_`, `classes_`. They are as
    secret as the key, and so is the folder that `save` writes.

    Args:
        shield: what was fitted.
        state: arrays by name.
        facts: JSON values by name; "classes", the labels' names, and "pictures", how many it was fitted to, always.
    """

    shield: Shield
    state: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not name.endswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        for values in (self.state, self.facts):
            if name[:-1] in values:
                return values[name[:-1]]
        raise AttributeError(f"the protection of {type(self.shield).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"Protection({self.shield!r}, of {self.facts['pictures']} pictures)"

    def transform(self, images: ArrayLike | Images, labels: Any = None) -> Any:
        """The pictures protected, in the form they are given in; a picture that stays as it is is returned untouched.

        Args:
            images, labels: as `Shield.fit` takes them, but no folder: `protect_folder` writes those.

        Raises:
            DataError: pictures or labels that can't be used or that it wasn't fitted for; the row is named.
        """
        pictures = ArrayPictures(images, labels, self.shield.reads)
        return pictures.given_form(np.concatenate([self.protected(batch) for batch in pictures.batches()]))

    def protected(self, batch: PictureBatch) -> np.ndarray:
        """`[rows, channels, height, width]`, uint8, a batch of 8-bit pictures protected.

        Raises:
            DataError: a label that it wasn't fitted to.
        """
        classes = len(self.facts["classes"])
        if self.shield.reads == "labels":
            assert isinstance(batch.targets, np.ndarray)
            if (beyond := batch.targets >= classes).any():
                row = int(beyond.argmax())
                raise DataError(
                    f"the label of image {batch.at[row]} is {batch.targets[row]}, and the protection was fitted to {classes} classes, 0 to "
                    f"{classes - 1}. Fit it to all classes."
                )
        return self.shield._protect(self, batch)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes `protection.json` (method, fields, a hash of the key, facts) and `state.safetensors`.

        Args:
            folder: new or empty.
            overwrite: replace a protection that was saved there; nothing else is ever replaced.

        Raises:
            RunError: the folder holds something.
        """
        from safetensors.numpy import save_file

        folder = Path(folder)
        need_place(folder, overwrite)
        with new_folder(folder) as fresh:
            save_file({name: np.ascontiguousarray(array) for name, array in self.state.items()}, fresh / STATE)
            write_json(fresh / RECORD, {**self.record(), "state": hash_file(fresh / STATE)})
        return folder

    def record(self) -> dict[str, Any]:
        """What a file says of it: method, fields without the key, the key's hash, facts and versions."""
        names = [one.name for one in dataclasses.fields(self.shield) if one.name != "key"]
        fields = {name: _plain(getattr(self.shield, name)) for name in names}
        key = sealed(self.shield.key)
        return {
            "form": FORM,
            "by": self.shield.slug,
            "fields": fields,
            "key": key,
            "facts": dict(self.facts),
            "versions": versions(),
        }

    @classmethod
    def load(cls, folder: str | Path, key: int, **objects: Any) -> Protection:
        """The protection that `save` wrote.

        Args:
            key: the one it was made with.
            objects: fields that no file can hold, such as a surrogate's builder.

        Raises:
            RunError: no such folder, a damaged one, or one of another key.
        """
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise RunError(f"{folder} holds no saved protection: it has no {RECORD}.")
        record = read_json(folder / RECORD)
        shield = _shield(record, key, objects, folder / RECORD)
        facts = record.get("facts")
        if not (
            isinstance(facts, dict)
            and conforms(facts.get("classes"), list[str])
            and conforms(facts.get("pictures"), int)
        ):
            raise RunError(
                f"{folder / RECORD} is damaged: it doesn't say what the protection was fitted to. Fit it again."
            )
        path = folder / STATE
        state, _ = read_tensors(path, f"state of {type(shield).__name__}", RunError, shield.layout(), framework="np")
        if hash_file(path) != record.get("state"):
            raise RunError(f"{path} is not the state that {RECORD} was written for. Restore both, or fit it again.")
        return cls(shield, state, facts)


def need_number(
    name: str,
    value: float,
    *,
    above: float = -np.inf,
    at_least: float = -np.inf,
    at_most: float = np.inf,
    whole: bool = False,
) -> None:
    """Refuses a field that is no number or outside its range.

    Args:
        whole: refuse a float too.

    Raises:
        MethodError: its name, its value and the range.
    """
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and np.isfinite(value)
    if number and value > above and at_least <= value <= at_most:
        return
    bounds = {"above": above, "at least": at_least, "at most": at_most}
    rule = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if np.isfinite(bound)) or "finite"
    raise MethodError(f"{setting(name)} is {value!r}; it must be {'a whole number, ' if whole else ''}{rule}.")


def need_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a field that is none of the words it may be."""
    if value not in choices:
        raise MethodError(f"{setting(name)} is {value!r}; use one of {', '.join(map(repr, choices))}.")


def need_place(folder: Path, overwrite: bool) -> None:
    """Refuses to save a protection over anything but an earlier one, and over that unless asked.

    Raises:
        RunError: the folder holds something.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file. Choose another {setting('folder')}.")
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if not entries:
        return
    if entries != [RECORD, STATE]:
        raise RunError(f"{folder} holds other files than a saved protection. Choose another {setting('folder')}.")
    if not overwrite:
        replace = setting("overwrite", True)
        raise RunError(
            f"{folder} holds a saved protection. Choose another {setting('folder')}, or pass {replace} to replace it."
        )


def _plain(value: Any) -> Any:
    """A field as a file has it; what no file can hold by its name, which is never loaded from there."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return {"object": getattr(value, "__qualname__", type(value).__qualname__)}


def _shield(record: Mapping[str, Any], key: int, objects: Mapping[str, Any], path: Path) -> Shield:
    """The shield that a record tells of, with the key that is held against its hash."""
    stored = record.get("fields")
    if record.get("form") != FORM or not isinstance(stored, dict) or not isinstance(record.get("by"), str):
        raise RunError(f"{path} is no record of a protection, or one of another version. Fit it again.")
    check_key(key)
    if not (isinstance(record.get("key"), dict) and is_key_of(key, record["key"])):
        raise RunError(f"{path} was made with another {setting('key')}. Give the one it was made with.")
    cls = catalog.shield(record["by"]).load()
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for one in dataclasses.fields(cls):
        if one.name == "key":
            continue
        value = objects.get(one.name, stored.get(one.name))
        if isinstance(value, dict) and set(value) == {"object"}:
            raise RunError(
                f"{path} holds {setting(one.name)} by its name alone, {value['object']!r:.60}. Pass it to load."
            )
        value = tuple(value) if isinstance(value, list) else value
        if one.name not in objects and not conforms(value, hints[one.name]):
            raise RunError(f"{path} is damaged: {setting(one.name)} is {value!r:.60}. Restore it, or fit it again.")
        values[one.name] = value
    return cls(key=key, **values)
