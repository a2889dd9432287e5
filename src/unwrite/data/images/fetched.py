"""Pictures that are fetched when they are asked for, never by an import: Fashion-MNIST and coloured emoji, from Debian's packages.

`unwrite data add fashion-mnist` has apt download the package by its own sources and checks, which takes no root, and unpacks the
files that are wanted of it; or it takes them from a folder. They lie in the cache.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ... import hub
from ...errors import DataError, setting, unknown
from ...runs import fetched_dir, new_folder, progress, scratch_folder
from .emoji import EMOJI_FONT, check_font
from .idx import IDX_FILES, idx_images, idx_path, read_idx
from .sets import TrainTest

__all__ = ["FETCHED", "FetchedSet", "add_data", "data_folder", "fashion_mnist"]

GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_DEB, _HEADER = b"!<arch>\n", 60
_UNPACKERS = {"": lambda data: data, ".xz": lzma.decompress}


@dataclass(frozen=True)
class FetchedSet:
    """A data set that a Debian package brings.

    Args:
        package: its name.
        about: what it is, in a line.
        licence: of the pictures.
        files: names of what is kept of it.
        holds: the files in words, for messages.
        found: those files in a folder, read and checked.
    """

    package: str
    about: str
    licence: str
    files: frozenset[str]
    holds: str
    found: Callable[[Path], list[Path]]


def _idx_files(home: Path) -> list[Path]:
    paths = [idx_path(home, split, what) for split, what in IDX_FILES]
    for path, (_, what) in zip(paths, IDX_FILES, strict=True):
        read_idx(path, 3 if what == "images" else 1)
    return paths


def _emoji_font(home: Path) -> list[Path]:
    check_font(path := home / EMOJI_FONT)
    return [path]


FETCHED: Mapping[str, FetchedSet] = {
    "fashion-mnist": FetchedSet(
        package="dataset-fashion-mnist",
        about="70,000 grey 28x28 pictures of clothes, 10 classes (31 MB)",
        licence="MIT",
        files=frozenset(f"{name}{ending}" for name in IDX_FILES.values() for ending in ("", ".gz")),
        holds="idx files",
        found=_idx_files,
    ),
    "emoji": FetchedSet(
        package="fonts-noto-color-emoji",
        about="coloured pictures of hands with skin tones, as identities (11 MB)",
        licence="OFL-1.1",
        files=frozenset({EMOJI_FONT}),
        holds=EMOJI_FONT,
        found=_emoji_font,
    ),
}


def fashion_mnist(root: str | Path | None = None, limit: int | None = None, test_limit: int | None = None) -> TrainTest:
    """Fashion-MNIST: 28x28 grey pictures of clothes, `[rows, 1, 28, 28]`, 10 classes, 60,000 to train on and 10,000 to test.

    Args:
        root: the folder of its four idx files; None for what `unwrite data add fashion-mnist` fetched.
        limit, test_limit: at most so many rows of each, the first of every class alike; an image's index doesn't depend on it.

    Raises:
        DataError: it wasn't fetched, or its files are damaged.
    """
    folder = data_folder("fashion-mnist") if root is None else Path(root)
    first = len(read_idx(idx_path(folder, "train", "labels"), 1))
    return TrainTest(
        idx_images(folder, "train", GARMENTS, limit, name="fashion train"),
        idx_images(folder, "test", GARMENTS, test_limit, first=first, name="fashion test"),
    )


def data_folder(name: str) -> Path:
    """Where a fetched data set lies.

    Raises:
        DataError: an unknown name, or one that wasn't fetched.
    """
    _record(name)
    folder = fetched_dir("data") / name
    if not folder.is_dir():
        raise DataError(f"{name} is not here. Run: unwrite data add {name}")
    return folder


def add_data(name: str, source: str | Path | None = None) -> Path:
    """Fetches a data set, or copies it from where it lies, and gives its folder.

    Args:
        source: a folder of its files, or the package's .deb file; None has apt download the package.

    Raises:
        DataError: an unknown name, nothing that can be fetched, or files that are damaged.
    """
    record = _record(name)
    target = fetched_dir("data") / name
    with scratch_folder() as scratch:
        if source is not None and Path(source).is_dir():
            home = Path(source)
        else:
            home = scratch / "files"
            home.mkdir()
            package = Path(source) if source is not None else _downloaded(record.package, scratch)
            _unpack(package, home, record)
        paths = record.found(home)
        with new_folder(target) as fresh:
            for path in paths:
                shutil.copyfile(path, fresh / path.name)
    return target


def _record(name: str) -> FetchedSet:
    if name not in FETCHED:
        raise DataError(unknown("data set", name, FETCHED))
    return FETCHED[name]


def _downloaded(package: str, folder: Path) -> Path:
    """The package as apt fetches it by the machine's own sources; apt checks its signature."""
    where = f"or give its folder or .deb file: {setting('source')}"
    if hub.is_set(hub.SWITCH):
        raise DataError(
            f"{package} is fetched from the network, and nothing may be ({hub.SWITCH} is set). Allow it, {where}."
        )
    if shutil.which("apt-get") is None:
        raise DataError(
            f"{package} is a package of Debian, and this machine has no apt-get. Fetch it elsewhere, {where}."
        )
    with progress(None, f"apt-get downloads {package}"):
        done = subprocess.run(
            ["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False, timeout=1800
        )
    files = list(folder.glob("*.deb"))
    if done.returncode != 0 or len(files) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise DataError(
            f"{package} could not be downloaded: {lines[-1] if lines else 'apt-get failed'}. Does apt-get update help? Fetch it "
            f"elsewhere, {where}."
        )
    return files[0]


def _unpack(package: Path, folder: Path, record: FetchedSet) -> None:
    """Writes the wanted files of a .deb file into a folder, by their names alone; nothing else of it is written.

    Raises:
        DataError: it is no Debian package, or one that can't be read.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(_data_of(package, record.holds)), mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in record.files and (content := archive.extractfile(member)) is not None:
                    (folder / name).write_bytes(content.read())
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise DataError(f"{package} can't be unpacked: {error}. Fetch it again.") from None


def _data_of(package: Path, holds: str) -> bytes:
    """The tar archive of a .deb file: an ar archive of members with headers of 60 bytes, at even places."""
    try:
        content = package.read_bytes()
    except OSError as error:
        raise DataError(
            f"{package} can't be read: {error.strerror}. Give a folder of {holds}, or a .deb file."
        ) from None
    if not content.startswith(_DEB):
        raise DataError(f"{package} is no Debian package. Give a folder of {holds}, or a .deb file.")
    place = len(_DEB)
    while place + _HEADER <= len(content):
        name = content[place : place + 16].decode("ascii", "replace").strip().rstrip("/")
        size = int(content[place + 48 : place + 58])
        data = content[place + _HEADER : place + _HEADER + size]
        if name.startswith("data.tar"):
            ending = name.removeprefix("data.tar")
            if ending not in _UNPACKERS:
                raise DataError(
                    f"{package} is packed as {ending}, which is not read here. Unpack it and give its folder."
                )
            return bytes(_UNPACKERS[ending](data))
        place += _HEADER + size + size % 2
    raise DataError(f"{package} has no data in it. Fetch it again.")
