"""Image sets that need no network (scikit-learn's digits, rendered characters), and the usual ones through datasets.

    digits              1797 real 8x8 handwritten digits, 10 classes
    digits_regression   the same with a smooth target, ink centroid x + 2 * class / 10
    glyphs              32x32 coloured characters in clutter, class = character, identity = font
    cifar10, cifar100, svhn, celeba, faces_by_age       from the Hub, or a local folder of the same format

All return train and test rows whose indices never clash. Names in a set are counted over both.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch

from ...errors import DataError, MissingExtra, unknown
from ...runs import progress
from ..text.reading import load
from .images import Images
from .picture_metadata import check_metadata
from .picture_rows import StoredPicture, complete, decoded, scaled

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont

# Open licences (OFL, Apache 2.0); `unwrite[vision]` brings them too.
FONT_PACKAGES = (
    "font-amatic-sc font-caladea font-fredoka-one font-hanken-grotesk font-intuitive font-lato font-manrope font-rhd "
    "font-roboto font-source-sans-pro font-source-serif-pro"
)
_SIDE = 32
_GLYPHS = crc32(b"glyphs")  # another set drawn from the same seed draws other numbers
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_NO_CHARACTER = "\U0010ffff"

__all__ = [
    "TrainTest",
    "celeba",
    "cifar10",
    "cifar100",
    "digits",
    "digits_regression",
    "faces_by_age",
    "glyphs",
    "hub_images",
    "installed_fonts",
    "svhn",
]


@dataclass(frozen=True, eq=False)
class TrainTest:
    """A training set and a test set of one kind.

    Args:
        train: rows to train on; a split takes forget, retain and holdout from them.
        test: rows to measure on.
        evaluation: further named sets to measure on ("new fonts").
    """

    train: Images
    test: Images
    evaluation: Mapping[str, Images] = field(default_factory=dict)


def digits(test_share: float = 0.2, seed: int = 0) -> TrainTest:
    """scikit-learn's digits, `[rows, 1, 8, 8]`; an image's index is its row there, whatever the seed.

    Args:
        test_share: of the rows, of each class alike, between 0 and 1.
        seed: of the split.
    """
    pixels, labels = _digits()
    return _stratified(Images(pixels, labels, classes=tuple("0123456789"), name="digits"), labels, test_share, seed)


def digits_regression(test_share: float = 0.2, seed: int = 0) -> TrainTest:
    """The digits with a smooth target: where the ink's centroid lies, 0 (left) to 1 (right), plus 2 * class / 10."""
    pixels, labels = _digits()
    columns = np.linspace(0, 1, pixels.shape[-1])
    ink = pixels.sum(axis=(1, 2))  # [rows, width]
    targets = (ink @ columns) / ink.sum(1) + 2 * labels / 10
    return _stratified(Images(pixels, targets=targets, name="digits regression"), labels, test_share, seed)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images[:, None] / 16).astype(np.float32), bunch.target.astype(np.int64)


def _stratified(data: Images, labels: np.ndarray, test_share: float, seed: int) -> TrainTest:
    from sklearn.model_selection import train_test_split

    if not 0 < test_share < 1:
        raise DataError(f"a test share of {test_share} leaves nothing on one side. Give a number between 0 and 1.")
    try:
        train, test = train_test_split(np.arange(len(data)), test_size=test_share, random_state=seed, stratify=labels)
    except ValueError as error:
        raise DataError(f"a test share of {test_share} of {len(data)} rows can't be drawn: {error}.") from None
    return TrainTest(data.subset(np.sort(train), f"{data.name} train"), data.subset(np.sort(test), f"{data.name} test"))


def glyphs(
    characters: str = "ABCEFGKRSX",
    fonts: Sequence[str] | None = None,
    *,
    draws: int = 20,
    test_draws: int = 5,
    new_fonts: int = 2,
    seed: int = 0,
) -> TrainTest:
    """Rendered characters, `[rows, 3, 32, 32]`; class = character, identity = font, every image in other clutter.

    A font is a family: its weights and slants are drawn like colour, background, rotation, size and place. An image
    depends on seed, font, character and draw alone, so more fonts or draws leave the others as they are.
    evaluation: "new fonts", of which the training rows have none (their identities have names of their own).

    Args:
        characters: the classes.
        fonts: names from `installed_fonts()`; None takes all of them.
        draws: training images of each character in each font.
        test_draws: images of each character in each font, training and new.
        new_fonts: how many fonts are kept for "new fonts", drawn by the seed.
        seed: of everything.

    Raises:
        DataError: too few fonts, saying what to install; an unknown font; a character that a font lacks.
        MissingExtra: Pillow isn't installed.
    """
    _need_pillow()
    if not characters or len(set(characters)) < len(characters) or draws < 1 or test_draws < 1 or new_fonts < 0:
        raise DataError(
            f"glyphs of {characters!r} with {draws} draws, {test_draws} test draws and {new_fonts} new fonts can't be "
            "made. Give each character once, at least one draw of each kind, and no negative number."
        )
    families = installed_fonts()
    names = sorted(families) if fonts is None else list(dict.fromkeys(fonts))
    if absent := [name for name in names if name not in families]:
        raise DataError(f"{unknown('font', absent[0], families)} pip install {FONT_PACKAGES} brings the usual ones.")
    if len(names) < new_fonts + 2:
        raise DataError(
            f"glyphs need at least {new_fonts + 2} fonts and {len(names)} are there ({', '.join(names) or 'none'}). "
            f"Run: pip install {FONT_PACKAGES}"
        )
    faces = {name: _legible(families[name], name, characters) for name in names}
    order = np.random.default_rng([seed, _GLYPHS]).permutation(len(names))
    new, known = ([names[i] for i in sorted(part)] for part in (order[:new_fonts], order[new_fonts:]))
    parts = [("train", known, range(draws)), ("test", known, range(draws, draws + test_draws))]
    parts += [("new fonts", new, range(test_draws))] if new else []
    sets, first = {}, 0
    for part, own, numbers in parts:
        sets[part] = _glyph_images(part, {name: faces[name] for name in own}, characters, numbers, seed, first)
        first += len(sets[part])
    return TrainTest(sets["train"], sets["test"], {part: sets[part] for part in ("new fonts",) if part in sets})


def installed_fonts() -> dict[str, list[Path]]:
    """{font: its faces}, of the packages that declare `fonts_ttf` or `fonts_otf`, and DejaVu of matplotlib.

    "SourceSansPro-Bold.ttf" is a face of the font "SourceSansPro". Of a face in both formats the first is taken;
    variable fonts, which repeat the others, aren't.
    """
    from importlib.metadata import entry_points

    files: list[Path] = []
    for group in ("fonts_ttf", "fonts_otf"):
        for package in entry_points(group=group):
            files += sorted(Path(file) for file in package.load().values())
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.submodule_search_locations:
        home = Path(matplotlib.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
        files += sorted(file for file in home.glob("DejaVu*.ttf") if "Display" not in file.stem)
    fonts: dict[str, dict[str, Path]] = {}
    for file in files:
        if "Variable" not in file.stem and "Awesome" not in file.stem:
            fonts.setdefault(file.stem.split("-")[0], {}).setdefault(file.stem, file)
    return {name: [faces[stem] for stem in sorted(faces)] for name, faces in sorted(fonts.items())}


def _legible(faces: list[Path], font: str, characters: str) -> list[Path]:
    """The faces; refuses a character that one of them draws as nothing or as its box for unknown ones."""
    for face in faces:
        drawn = _face(face, 24)
        box = bytes(drawn.getmask(_NO_CHARACTER))
        lacking = [c for c in characters if not any(mask := bytes(drawn.getmask(c))) or mask == box]
        if lacking:
            raise DataError(f"font {font} ({face.name}) has no {lacking[0]!r}. Leave out the character or the font.")
    return faces


@cache
def _face(file: Path, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def _glyph_images(
    part: str, faces: Mapping[str, list[Path]], characters: str, draws: range, seed: int, first: int
) -> Images:
    rows = [(i, j, draw) for i in range(len(faces)) for j in range(len(characters)) for draw in draws]
    fonts = list(faces)
    pixels = np.empty((len(rows), 3, _SIDE, _SIDE), dtype=np.float32)
    for at, (i, j, draw) in enumerate(progress(rows, f"drawing glyphs, {part}")):
        key = [seed, _GLYPHS, crc32(fonts[i].encode()), ord(characters[j]), draw]
        pixels[at] = _glyph(characters[j], faces[fonts[i]], np.random.default_rng(key))
    return Images(
        pixels,
        labels=[j for _, j, _ in rows],
        index=torch.arange(first, first + len(rows)),
        identity=[i for i, _, _ in rows],
        classes=tuple(characters),
        identities=tuple(fonts),
        name=f"glyphs {part}, {len(fonts)} fonts",
    )


def _glyph(character: str, faces: list[Path], rng: np.random.Generator) -> np.ndarray:
    """One character, `[3, 32, 32]` in steps of 1/255, so that sums in another order can't change it."""
    from PIL import Image, ImageDraw

    ink, paper = rng.random(3), rng.random(3)
    while abs(float((ink - paper) @ _LUMINANCE)) < 0.25:  # else nobody could read it
        ink, paper = rng.random(3), rng.random(3)
    drawn = _face(faces[rng.integers(len(faces))], int(rng.integers(42, 58)))
    mask = Image.new("L", (2 * _SIDE, 2 * _SIDE))  # twice the size, for smooth edges
    across, down = _SIDE + rng.uniform(-7, 7, 2)
    ImageDraw.Draw(mask).text((float(across), float(down)), character, font=drawn, fill=255, anchor="mm")
    mask = mask.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC)
    slope = rng.uniform(-0.12, 0.12, (2, 3))
    line = np.linspace(-1, 1, _SIDE)
    image = paper + line[:, None, None] * slope[0] + line[None, :, None] * slope[1]  # [height, width, 3]
    image = _over(image, _strokes(rng, int(rng.integers(2, 6)), 5), rng.random(3), 0.5)
    image = _over(image, mask, ink, 1.0)
    image = _over(image, _strokes(rng, int(rng.integers(0, 3)), 2), rng.random(3), 0.8)
    image = np.clip(image + rng.normal(0, 0.05, image.shape), 0, 1)
    return (np.rint(image * 255) / 255).astype(np.float32).transpose(2, 0, 1)


def _strokes(rng: np.random.Generator, count: int, width: int) -> Picture:
    """A mask of so many straight strokes and arcs."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (2 * _SIDE, 2 * _SIDE))
    pen = ImageDraw.Draw(mask)
    for _ in range(count):
        left, top, right, bottom = (int(value) for value in rng.integers(0, 2 * _SIDE, 4))
        if rng.random() < 0.5:
            pen.line((left, top, right, bottom), fill=255, width=width)
        else:
            box = (min(left, right), min(top, bottom), max(left, right) + 1, max(top, bottom) + 1)
            pen.arc(box, float(rng.uniform(0, 360)), float(rng.uniform(0, 360)), fill=255, width=width)
    return mask


def _over(image: np.ndarray, mask: Picture, colour: np.ndarray, opacity: float) -> np.ndarray:
    """The colour laid over the image `[height, width, 3]` where the mask, of twice its size, is."""
    alpha = opacity * np.asarray(mask.reduce(2), dtype=np.float64)[..., None] / 255
    return image * (1 - alpha) + colour * alpha


def cifar10(root: str | Path = "uoft-cs/cifar10", limit: int | None = None) -> TrainTest:
    """CIFAR-10, `[rows, 3, 32, 32]`. Arguments as `hub_images`."""
    return hub_images(root, image="img", label="label", size=32, limit=limit, name="cifar10")


def cifar100(root: str | Path = "uoft-cs/cifar100", limit: int | None = None, coarse: bool = False) -> TrainTest:
    """CIFAR-100, `[rows, 3, 32, 32]`; `coarse` takes its 20 superclasses. Other arguments as `hub_images`."""
    label = "coarse_label" if coarse else "fine_label"
    return hub_images(root, image="img", label=label, size=32, limit=limit, name="cifar100")


def svhn(root: str | Path = "ufldl-stanford/svhn", limit: int | None = None) -> TrainTest:
    """Street view house numbers, single digits, `[rows, 3, 32, 32]`. Arguments as `hub_images`."""
    config = None if Path(root).is_dir() else "cropped_digits"
    return hub_images(root, config, image="image", label="label", size=32, limit=limit, name="svhn")


def celeba(
    root: str | Path = "flwrlabs/celeba", attribute: str = "Smiling", size: int = 32, limit: int | None = None
) -> TrainTest:
    """CelebA faces, class = one attribute, identity = the person. Other arguments as `hub_images`."""
    return hub_images(root, image="image", label=attribute, identity="celeb_id", size=size, limit=limit, name="celeba")


def faces_by_age(root: str | Path, size: int = 32, limit: int | None = None) -> TrainTest:
    """AgeDB-like: target = the column `age`, identity = the column `identity`. Other arguments as `hub_images`.

    Args:
        root: AgeDB itself needs its authors' agreement, so there is no default.
    """
    return hub_images(root, image="image", target="age", identity="identity", size=size, limit=limit, name="ages")


def hub_images(
    root: str | Path,
    config: str | None = None,
    *,
    image: str = "image",
    label: str | None = None,
    target: str | None = None,
    identity: str | None = None,
    size: int = 32,
    limit: int | None = None,
    splits: tuple[str, str] = ("train", "test"),
    name: str | None = None,
) -> TrainTest:
    """Images through `datasets.load_dataset`.

    Args:
        root: a Hub id, or a local folder of the same format (Parquet files, or images with metadata.csv, in `train/`
            and `test/`).
        config: the data set's configuration.
        image, label, target, identity: the columns; label for classification, or target for regression.
        size: height and width; the middle square of other images is scaled to it. Pixels are brought to 0..1 by the
            range of their storage: see `picture_rows`.
        limit: at most so many rows of each split, the first ones.
        splits: their names, the training rows first.
        name: in messages and reports; the folder's or data set's by default.

    Raises:
        DataError: it can't be loaded, or lacks a column; the columns that are there are named. Pictures that can't be
            decoded, values that are missing; file and row are named.
        MissingExtra: Pillow, which decodes images, isn't installed.
    """
    _need_pillow()
    columns = {"labels": label, "targets": target, "identity": identity}
    if Path(root).is_dir():
        check_metadata(Path(root), [column for column in columns.values() if column is not None], target)
    tables = [_table(str(root), config, split, limit) for split in splits]
    name = name or Path(str(root)).name
    pictures: list[list[StoredPicture]] = []
    parts: list[dict[str, Any]] = []
    for table, split in zip(tables, splits, strict=True):
        for column in (image, *columns.values()):
            if column is not None and column not in table.column_names:
                raise DataError(f"{name}@{split}: {unknown('column', column, table.column_names)}")
        parts.append({kind: complete(table, column, f"{name}@{split}") for kind, column in columns.items() if column})
        pictures.append(decoded(table, image, f"{name}@{split}", size))
    pixels = torch.from_numpy(scaled([one for part in pictures for one in part]))
    parts[0]["pixels"], parts[1]["pixels"] = pixels[: len(tables[0])], pixels[len(tables[0]) :]
    names = {
        "classes": _numbered(parts, "labels", tables[0].features.get(label)),
        "identities": _numbered(parts, "identity", tables[0].features.get(identity)),
    }
    first = len(tables[0])
    numbers = torch.arange(first), torch.arange(first, first + len(tables[1]))
    train, test = (
        Images(**part, **names, index=index, name=f"{name} {split}")
        for part, index, split in zip(parts, numbers, splits, strict=True)
    )
    return TrainTest(train, test)


def _need_pillow() -> None:
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtra("pillow", "vision")


def _table(root: str, config: str | None, split: str, limit: int | None) -> Dataset:
    table = load(root, config, split)
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no rows. Give at least 1.")
    table = table if limit is None else table.select(range(min(limit, len(table))))
    if len(table) == 0:
        raise DataError(f"{root}@{split} has no rows. Give at least one.")
    return table


def _numbered(parts: list[dict[str, Any]], column: str, feature: object) -> tuple[str, ...]:
    """The names of a column's values, which become numbers: the data set's own names, or every value in order."""
    if column not in parts[0]:
        return ()
    if names := getattr(feature, "names", None):
        return tuple(names)
    values = [value for part in parts for value in part[column]]
    known = sorted(set(values))
    number = {value: i for i, value in enumerate(known)}
    for part in parts:
        part[column] = [number[value] for value in part[column]]
    return tuple(map(str, known))
