"""What `unwrite forget --images` was asked for: typed requests that read, load and check everything before anything is written.

PictureRequest       which pictures, what of them is forgotten, and what is held back
ImageForgetRequest   that with the model, the method and its training; `ready()` gives an `ImageReady`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import catalog
from ..errors import DataError, MethodError, ModelError, RunError, unknown
from ..hub import PREFIX
from .fields import build
from .inputs import changed, need_number
from .listing import image_methods
from .sources import absolute

if TYPE_CHECKING:
    from ..audit.requirements import Requirement
    from ..data.images.picture_folders import PictureFile
    from ..data.images.splits import ImageSplit
    from ..forget.base import Method
    from ..models.image_models import ImageModel

By = Literal["class", "identity", "file"]
DEFAULT_FOR_IMAGES = "neg-grad-plus"  # among the first five of every comparison of images, see docs/benchmarks.md
LISTS = (".txt", ".json", ".npy")


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """Which pictures there are and which of them are forgotten.

    Args:
        folder: of classes, or of `train` and `test`, each a folder of classes.
        by: what is forgotten: a kind, and names separated by commas or in a file.
        holdout, test: a folder of classes, or a share of the pictures that is held back; None for none.
    """

    folder: str
    by: tuple[By, str]
    holdout: str | None = None
    test: str | None = None

    def arguments(self) -> dict[str, Any]:
        """As the run folder keeps it."""
        sets = {name: _absolute(getattr(self, name)) for name in ("holdout", "test")}
        return {"images": _absolute(self.folder), "by": [self.by[0], _absolute(self.by[1])], **sets}

    def share(self, name: Literal["holdout", "test"]) -> float | None:
        """What is held back as a share; None where it is a folder, or nothing.

        Raises:
            MethodError: a number that is no share.
        """
        text = getattr(self, name)
        if text is None or Path(text).is_dir():
            return None
        try:
            value = float(text)
        except ValueError:
            raise DataError(f"--{name} is {text}, which is no folder and no share. Give one, such as 0.2.") from None
        need_number(f"--{name}", value, above=0, below=1)
        return value

    def names(self, known: Sequence[str]) -> list[str]:
        """What is to be forgotten, by its names; `known` ones may hold a comma.

        Raises:
            DataError: a list without names, or one that can't be read.
        """
        kind, text = self.by
        path = Path(text).expanduser()
        if text in known:
            return [text]
        if path.suffix.lower() in LISTS and path.is_file():
            return _listed(path)
        names = [name.strip() for name in text.split(",") if name.strip()]
        if not names:
            raise DataError(
                f"--by {kind} names nothing. Give names separated by commas, or a .txt file with one a line."
            )
        return list(dict.fromkeys(names))

    def files(self, rows: Sequence[PictureFile]) -> list[int]:
        """The places of the pictures that are named by file, or by number in the order of their names.

        Raises:
            DataError: a picture there isn't, or more than there are.
        """
        from ..data.images.images import first_few

        place = {row.name: number for number, row in enumerate(rows)}
        names = self.names(list(place))
        if all(name.isascii() and name.removeprefix("-").isdigit() and name not in place for name in names):
            if len(names) > len(rows):
                raise DataError(f"{self.by[1]} has {len(names)} indices and {self.folder} {len(rows)} pictures.")
            outside = [name for name in names if not 0 <= int(name) < len(rows)]
            if outside:
                raise DataError(
                    f"{self.folder} has {len(rows)} pictures and none of index {first_few(outside)}. Count from 0, in the "
                    "order of their names."
                )
            return [int(name) for name in names]
        below = [_below(name, self.folder) for name in names]
        if absent := [name for name in below if name not in place]:
            raise DataError(f"{self.folder}: {nearest('picture', absent[0], place)}")
        return [place[name] for name in dict.fromkeys(below)]


@dataclass(frozen=True, kw_only=True)
class ImageForgetRequest:
    """Everything that `unwrite forget --images` was asked for.

    Args:
        model: a folder or Hub id of transformers, or module:function.
        weights, size: of a module: its safetensors file; its height and width.
        oracle: as `model`, one trained without the forgotten pictures; of a module, its safetensors file. Or None.
        fields: the method's own, as texts.
    """

    pictures: PictureRequest
    model: str
    weights: str | None = None
    size: int | None = None
    oracle: str | None = None
    device: str = "auto"
    require: str | None = None
    method: str = DEFAULT_FOR_IMAGES
    fields: Mapping[str, str] = field(default_factory=dict)
    epochs: float | None = None
    lr: float | None = None
    batch_size: int | None = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """As the run folder keeps it: JSON values, paths absolute."""
        own = {k: v for k, v in vars(self).items() if k not in ("pictures", "fields")}
        paths = {name: _absolute(own[name]) for name in ("model", "weights", "oracle")}
        return {**self.pictures.arguments(), **own, **paths, "fields": dict(self.fields)}

    @property
    def place(self) -> str:
        """The device: cuda where there is one, for "auto"."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """The bounds that the figures must keep.

        Raises:
            MethodError: what is no requirement.
        """
        from ..audit.requirements import parse_requirements

        return () if self.require is None else parse_requirements(self.require)

    def check(self) -> Method:
        """The method, once nothing is wrong with the flags; nothing is read or loaded.

        Raises:
            MethodError: which flag, its value, and what it may be.
            DataError: a share that is none.
        """
        need_number("--epochs", self.epochs, above=0)
        need_number("--lr", self.lr, above=0)
        need_number("--batch-size", self.batch_size, at_least=1)
        need_number("--size", self.size, at_least=1)
        need_number("--seed", self.seed, at_least=0, below=2**32)
        _ = self.requirements, self.pictures.share("holdout"), self.pictures.share("test")
        catalog.method(self.method)  # an unknown name is refused as such
        if self.method not in (works := image_methods()):
            raise MethodError(f"{self.method} {self._why_not()}. Use one of {', '.join(works)}.")
        chosen: Method = build(self.method, self.fields)
        flags = {"--epochs": self.epochs, "--lr": self.lr, "--batch-size": self.batch_size}
        if idle := [flag for flag, value in flags.items() if value is not None and not chosen.trains]:
            raise MethodError(f"{self.method} trains nothing, so {idle[0]} has no meaning for it. Leave it out.")
        return chosen

    def _why_not(self) -> str:
        record = catalog.method(self.method)
        if "images" not in record.forgets:
            return "forgets texts, not images"
        if record.kind == "guard":
            return "leaves the weights as they are and is used from Python"
        return "needs the recipe that trained the model and is used from Python"

    def ready(self) -> ImageReady:
        """Reads, loads and checks everything; what can be refused is refused here.

        Raises:
            UnwriteError: what is wrong, with what value, and what to do.
        """
        from .picture_sets import read_pictures

        chosen = self.check()
        loaded = self._load(self.model, self.weights)
        read = read_pictures(self.pictures, loaded, self.seed)
        oracle = None if self.oracle is None else self._oracle(loaded)
        work = chosen.work(loaded.model, read.split.forget, read.split.retain, args=self.training(None))
        chosen.check_data(read.split.forget, read.split.retain)
        work.check()
        fitted = chosen.fitted(loaded.model)
        fitted.check_model(loaded.model)
        fitted.check_work(work)
        work.place()  # a model whose outputs don't fit these pictures
        self._check_requirements(read.split, oracle)
        return ImageReady(self, fitted, read.split, read.files, loaded, oracle)

    def training(self, checkpoints: Path | None, resumed: bool = False) -> dict[str, Any]:
        """Training arguments from the flags that were given, with checkpoints in the run folder."""
        flags = {
            "learning_rate": self.lr,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "seed": self.seed,
            "device": self.place,
        }
        given = {name: value for name, value in flags.items() if value is not None}
        if checkpoints is None:
            return given
        return {**given, "output_dir": str(checkpoints), "resume_from_checkpoint": resumed or None}

    def _load(self, name: str, weights: str | None) -> ImageModel:
        from ..models.image_models import load_image_model
        from ..runs import hash_model

        loaded = load_image_model(name, weights=weights, side=self.size, device=self.place)
        source = {**loaded.source, "of": "images", "weights": hash_model(loaded.model)}
        return replace(loaded, source=source)

    def _oracle(self, loaded: ImageModel) -> ImageModel:
        """The model that was trained without the forgotten pictures, which must read pictures as the other does."""
        import torch

        assert self.oracle is not None
        module = loaded.source["kind"] == "module"
        oracle = self._load(self.model if module else self.oracle, self.oracle if module else None)
        same = all(torch.equal(getattr(oracle.model, name), getattr(loaded.model, name)) for name in ("mean", "std"))
        if not same or oracle.labels != loaded.labels:
            what = "classes" if same else "normalisation"
            raise ModelError(f"--oracle {self.oracle} has another {what} than {self.model}. Train it in the same way.")
        return oracle

    def _check_requirements(self, split: ImageSplit, oracle: ImageModel | None) -> None:
        from ..audit.requirements import check_requirements
        from ..audit.suites.vision import VISION

        roles = ("before",) if oracle is None else ("before", "oracle")
        check_requirements(self.requirements, VISION.for_split(split), (), roles)


@dataclass(frozen=True)
class ImageReady:
    """A request with what it names read, loaded and checked.

    Args:
        files: which pictures are in which set, by their names below the folder; retain is what is in none.
        loaded: the model before; `source` names it, with its hash.
        oracle: the one trained without the forgotten pictures, or None.
    """

    request: ImageForgetRequest
    method: Method
    split: ImageSplit
    files: Mapping[str, Sequence[str]]
    loaded: ImageModel
    oracle: ImageModel | None

    @property
    def record(self) -> dict[str, Any]:
        """What the run was made from, by content."""
        rows = {name: part.hash for name, part in self.split.parts.items()}
        files = {name: list(names) for name, names in self.files.items()}
        return {"source": dict(self.loaded.source), "data": self.split.hash, "rows": rows, "pictures": files}

    def check_same(self, record: Mapping[str, Any]) -> None:
        """Refuses to go on with a run that was started from another model or other pictures.

        Raises:
            RunError: which of them has changed, with both hashes.
        """
        then, now = record.get("source", {}).get("weights"), self.loaded.source["weights"]
        if then is not None and then != now:
            raise RunError(changed(self.request.model, then, now))
        current = self.record["rows"]
        for name, before in record.get("rows", {}).items():
            if before != current.get(name):
                raise RunError(
                    changed(f"the {name} pictures of {self.request.pictures.folder}", before, current.get(name))
                )


def _absolute(source: str | None) -> str | None:
    """A path that means the same from every folder; what is none here stays."""
    return None if source is None or source.startswith(PREFIX) else absolute(source)


def _listed(path: Path) -> list[str]:
    """The names in a file: .txt, one a line; .json, one list; .npy, whole numbers."""
    from ..data.images.splits import read_indices
    from ..runs import Malformed, parse_json

    if path.suffix.lower() == ".npy":
        return [str(number) for number in read_indices(path)]
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = parse_json(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (UnicodeDecodeError, Malformed) as error:
        raise DataError(f"{path} can't be read: {error}. Save it as UTF-8.") from None
    if not isinstance(lines, list) or not all(
        isinstance(one, str | int) and not isinstance(one, bool) for one in lines
    ):
        raise DataError(f"{path} is no list of names or whole numbers.")
    names = [str(one).strip() for one in lines if str(one).strip()]
    if not names:
        raise DataError(f"{path} has no names. Give at least one.")
    return list(dict.fromkeys(names))


def _below(name: str, folder: str) -> str:
    """A picture's name below the folder, where it was given with it."""
    path = Path(name)
    home = Path(folder)
    if path.is_relative_to(home):
        return path.relative_to(home).as_posix()
    return path.as_posix()


def nearest(kind: str, name: str, known: Mapping[str, Any]) -> str:
    """As `unknown`, of many names."""
    sentence = unknown(kind, name, known)
    return sentence if "Did you mean" in sentence or len(known) <= 20 else f"there is no {kind} {name!r}."
