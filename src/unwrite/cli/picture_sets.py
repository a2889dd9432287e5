"""The sets of a run on pictures: read as the model wants them, labelled as it counts its classes, and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DataError, ModelError, notice
from .pictures import nearest

if TYPE_CHECKING:
    import numpy as np

    from ..data.images.images import Images
    from ..data.images.picture_folders import PictureFile, PictureFolder, PictureReader
    from ..data.images.splits import ImageSplit
    from ..models.image_models import ImageModel
    from .pictures import PictureRequest

MEMORY = 3.0  # of a data set's bytes: the set, its parts, and a copy in the making


@dataclass(frozen=True)
class PictureSets:
    """A split of pictures.

    Args:
        files: which pictures are in which set but retain, by their names below the folder.
    """

    split: ImageSplit
    files: Mapping[str, Sequence[str]]


def read_pictures(request: PictureRequest, loaded: ImageModel, seed: int) -> PictureSets:
    """Reads and splits the pictures.

    What is held back is drawn before anything is forgotten, so it is the same for one seed whatever that is; of single files it is
    drawn from the others.

    Raises:
        DataError: pictures that can't be read, or don't fit the model; nothing to forget, or nothing else.
    """
    from ..data.images.picture_folders import PictureFolder, PictureReader, train_test_folders
    from ..data.images.stored_pictures import folder_of_pictures

    folders = train_test_folders(folder_of_pictures(request.folder))
    given: dict[str, PictureFolder] = {}
    if folders.test is not None:
        if request.test is not None:
            raise DataError(f"{request.folder} has test pictures of its own, so --test has no meaning. Leave it out.")
        given["test"] = folders.test
    for name in ("test", "holdout"):
        text = getattr(request, name)
        if text is not None and request.share(name) is None:
            given[name] = PictureFolder.read(folder_of_pictures(text))
    train = list(folders.train.rows)
    every = [*train, *(row for folder in given.values() for row in folder.rows)]
    reader = PictureReader(every)
    classes = model_classes(loaded, reader, train[0], folders.train, given)
    check_names(request, train, classes)
    maker = _Maker(loaded, reader, classes, tuple(sorted({row.identity for row in every})), len(every))
    images = {"train": maker.images(train, request.folder)}
    names = {number: row.name for number, row in enumerate(every)}
    for name, folder in given.items():
        images[name] = maker.images(folder.rows, f"{name} pictures")
    split = _split(request, images, train, seed)
    if split.test is None:
        notice(
            "there are no test pictures, so what is kept is measured on pictures that were trained on. Give some that the "
            "model never saw: --test FOLDER."
        )
    sets = {name: part for name, part in split.parts.items() if name != "retain"}
    return PictureSets(split, {name: [names[i] for i in part.index.tolist()] for name, part in sets.items()})


def check_names(request: PictureRequest, rows: Sequence[PictureFile], classes: Sequence[str]) -> None:
    """Refuses what is to be forgotten if there is no such thing, before all pictures are read."""
    kind, _ = request.by
    if kind == "file":
        request.files(rows)
        return
    there = {row.label if kind == "class" else row.identity for row in rows}
    for name in request.names(sorted(there)):
        if name not in there:
            raise DataError(f"{request.folder}: {nearest(kind, name, dict.fromkeys(there))}")


def model_classes(
    loaded: ImageModel,
    reader: PictureReader,
    first: PictureFile,
    train: PictureFolder,
    given: Mapping[str, PictureFolder],
) -> tuple[str, ...]:
    """The classes in the model's order: by the names it gives them, or, where it gives none, in the order of the folders' names.

    Raises:
        DataError: a folder that is none of the model's classes.
        ModelError: a model that doesn't take these pictures, or has another number of classes.
    """
    import torch

    from ..data.images.images import first_few
    from ..models.vision_layout import logits_of

    pixels = torch.from_numpy(loaded.prepare(reader.picture(first)))[None]
    device = next(loaded.model.parameters()).device
    try:
        with torch.no_grad():
            outputs = logits_of(loaded.model, pixels.to(device)).shape[1]
    except RuntimeError as error:
        raise ModelError(
            f"the model doesn't take a picture of {list(pixels.shape[1:])} ({str(error).splitlines()[0][:160]}). "
            "Give --size, or pictures of its size."
        ) from None
    folders = {"train": train, **given}
    own = tuple(dict.fromkeys(loaded.labels))
    if own:
        for folder in folders.values():
            if strange := [name for name in folder.classes if name not in own]:
                raise DataError(
                    f"{folder.folder / strange[0]} is none of the model's {len(own)} classes ({first_few(own)}). Name the folders "
                    "as the model names its classes."
                )
        if len(own) != outputs:
            raise ModelError(
                f"the model names {len(own)} different classes and has {outputs} outputs. Mend its id2label."
            )
        return own
    classes = train.classes
    for folder in given.values():
        if strange := [name for name in folder.classes if name not in classes]:
            raise DataError(
                f"{folder.folder / strange[0]} is no class of {train.folder}. Give pictures of the same classes."
            )
    if len(classes) != outputs:
        raise ModelError(
            f"the model has {outputs} outputs and names no classes, and {train.folder} has {len(classes)} folders. Give a folder a "
            "class, or a model that names its classes."
        )
    notice(f"the model names no classes; they are taken in the order of the folders' names: {first_few(classes)}.")
    return classes


@dataclass
class _Maker:
    """Makes sets of rows whose indices count on."""

    loaded: ImageModel
    reader: PictureReader
    classes: tuple[str, ...]
    identities: tuple[str, ...]
    total: int
    first: int = 0

    def images(self, rows: Sequence[PictureFile], name: str) -> Images:
        from ..data.images.picture_folders import picture_images

        if self.first == 0:
            self._need_memory(self.loaded.prepare(self.reader.picture(rows[0])))
        made = picture_images(
            rows,
            self.reader,
            self.loaded.prepare,
            classes=self.classes,
            identities=self.identities,
            first=self.first,
            name=name,
        )
        self.first += len(rows)
        return made

    def _need_memory(self, one: np.ndarray) -> None:
        from ..models.agreement import free_memory

        needed, free = MEMORY * self.total * one.nbytes, free_memory()
        if needed > free:
            raise DataError(
                f"{self.total} pictures of {list(one.shape)} take about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free. "
                "Give fewer to keep, of every class alike."
            )


def _split(request: PictureRequest, images: Mapping[str, Images], rows: Sequence[PictureFile], seed: int) -> ImageSplit:
    import torch

    from ..data.images.splits import ImageSplit, held_out, split_by_class, split_by_identity

    everything = images["train"]
    kind, _ = request.by
    shares = {name: request.share(name) for name in ("test", "holdout")}
    if kind == "file":
        named = torch.zeros(len(everything), dtype=torch.bool)
        named[request.files(rows)] = True
        if bool(named.all()):
            raise DataError(
                f"{request.by[1]} names all {len(rows)} pictures of {request.folder}. Leave at least one to keep."
            )
        forget, others = everything.where(named, "forget"), everything.where(~named, "retain")
        others, test = held_out(others, images.get("test", shares["test"]), seed)
        others, holdout = held_out(others, images.get("holdout", shares["holdout"]), seed)
        return ImageSplit(forget, others, holdout, test, name=f"{int(named.sum())} files")
    train, test = held_out(everything, images.get("test", shares["test"]), seed)
    maker = split_by_class if kind == "class" else split_by_identity
    column = "label" if kind == "class" else "identity"
    names = request.names(sorted({getattr(row, column) for row in rows}))
    return maker(train, names, test=test, holdout=images.get("holdout", shares["holdout"]), seed=seed)
