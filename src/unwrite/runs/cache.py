"""What was computed once, kept on disk by a hash of what made it, and never trusted without a look.

    <cache>/<kind>/<key>         the entry: a folder, or a JSON file
    <cache>/<kind>/<key>.sums    sizes and hashes of a folder's files, written after them
    <cache>/<kind>/<key>.lock    held while one process makes the entry and others wait

An entry whose bytes aren't those that were written, or that can't be read, is dropped and made again, with a notice. A
cache that can't be written slows a run, it doesn't stop it: then a value is computed each time, and files lie in a temporary
folder until the process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from ..errors import notice
from .atomic import beside, cache_dir, left_behind, lock, new_folder, write_json, write_text
from .hashing import canonical_json

T = TypeVar("T")
# What a disk that can't be written answers.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE)


def _same(value: Any) -> Any:
    return value


def cached_json(place: tuple[str, ...], name: str, compute: Callable[[], T], read: Callable[[Any], T] = _same) -> T:
    """A value that is plain JSON: from the disk, or computed and kept there.

    Args:
        place: folders within the cache.
        name: of the file, without ending: a hash of what the value depends on.
        compute: makes the value.
        read: what the stored JSON stands for; any error says that this is no such value.
    """
    for stored in _stored(place, name, read):
        return stored
    value = compute()
    store_json(place, name, value, read)
    return value


def stored_json(place: tuple[str, ...], name: str, read: Callable[[Any], T] = _same) -> T | None:
    """The value that `store_json` kept, or None where there is none; a damaged one is dropped, with a notice."""
    return next(iter(_stored(place, name, read)), None)


def _stored(place: tuple[str, ...], name: str, read: Callable[[Any], T]) -> tuple[T, ...]:
    """The value, or nothing: a value may be None."""
    folder = _folder(*place)
    if folder is None:
        return ()
    file = folder / f"{name}.sealed.json"
    try:
        return (read(_unsealed(file.read_bytes())),)
    except FileNotFoundError:
        return ()
    except Exception as error:  # whatever a damaged file leads a reader to
        _drop(file, error)
        return ()


def store_json(place: tuple[str, ...], name: str, value: Any, read: Callable[[Any], object] = _same) -> None:
    """Keeps a value that is plain JSON; where the cache can't be written that is said, and no reason to fail."""
    text = canonical_json(value)
    # Read before it is kept: what can't be read back would be computed again in every run, with a notice each time.
    read(json.loads(text))
    folder = _folder(*place)
    if folder is not None:
        with _unwritable_is_slow(folder):
            write_text(folder / f"{name}.sealed.json", _sealed(text))


def _sealed(text: str) -> str:
    return f'{{"sum":"{_sum(text.encode())}","value":{text}}}'


def _unsealed(data: bytes) -> Any:
    """The value of a sealed text; its sum is taken over the bytes, so that nothing is written twice to compare."""
    start, end = len(_sealed("")) - 1, len(data) - 1
    if data != _sealed(data[start:end].decode("utf-8")).encode():
        raise ValueError("it is not as it was written")
    return json.loads(data[start:end])


def cached_files(kind: str, key: str, make: Callable[[Path], object], read: Callable[[Path], T]) -> T:
    """What `read` makes of a folder that `make` fills: filled once for a key, whole or absent.

    Of several processes the first fills it, the others wait and read.

    Args:
        kind: a folder within the cache.
        key: a hash of all that the files depend on.
        make: writes the files into the fresh, empty folder it is given.
        read: what the folder stands for.
    """
    home = _folder(kind)
    if home is None:
        return _without_cache(key, make, read)
    entry = home / key
    with entry_lock(home / f"{key}.lock"):
        if entry.exists():
            try:
                _check(entry)
                return read(entry)
            except Exception as error:  # whatever a damaged file leads a reader to
                _drop(entry, error)
        try:
            clean(entry)
            with new_folder(entry) as fresh:
                make(fresh)
            seal(entry)
        except Exception as error:
            if not unwritable(error):
                raise
            say_unwritable(home, error)
            return _without_cache(key, make, read)
        return read(entry)


def cache_folder(*parts: str) -> Path:
    """A folder within the cache, or, where that can't be written, a temporary one that goes when the process ends."""
    return _folder(*parts) or spare_folder()


def spare_folder() -> Path:
    """A temporary folder that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="unwrite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def clean(entry: Path) -> None:
    """Removes what killed processes left of an entry or a file: its half-written siblings that nobody writes any more."""
    begins = f".{entry.name[:80]}."
    # No glob: pathlib keeps what it compiles for a pattern, and every entry would be one.
    for left in list(entry.parent.iterdir()) if entry.parent.exists() else ():
        if not left.name.startswith(begins) or not left_behind(left):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def seal(entry: Path) -> None:
    """Writes down sizes and hashes of the files of an entry, beside it."""
    write_json(_sums_file(entry), _sums(entry))


def sound(entry: Path) -> bool:
    """Whether an entry is there with the bytes that were written; a damaged one is dropped, with a notice.

    One without sums, as earlier versions and kills leave it, gets them now.
    """
    if not entry.exists():
        return False
    try:
        _check(entry)
    except (OSError, ValueError) as error:
        _drop(entry, error)
        return False
    return True


def _check(entry: Path) -> None:
    file = _sums_file(entry)
    if not file.exists():
        with contextlib.suppress(OSError):
            seal(entry)
        return
    then, now = json.loads(file.read_text(encoding="utf-8")), _sums(entry)
    other = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if other:
        raise ValueError(f"{other[0]} is not as it was written")


def _sums_file(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.sums")


def _sums(entry: Path) -> dict[str, list[Any]]:
    return {
        str(path.relative_to(entry)): [path.stat().st_size, _file_sum(path)]
        for path in sorted(entry.rglob("*"))
        if path.is_file()
    }


def _file_sum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _sum(data: bytes) -> str:
    return xxhash.xxh3_128(data).hexdigest()


def drop(entry: Path) -> None:
    """Removes an entry and its sums. It loses its name in one step: half an entry is never taken for one."""
    aside = beside(entry)
    with contextlib.suppress(FileNotFoundError):  # another process may have dropped it
        os.replace(entry, aside)
    _sums_file(entry).unlink(missing_ok=True)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)


def _drop(entry: Path, error: Exception) -> None:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    notice(f"{entry} in the cache was damaged ({reason}). It is dropped and computed again.")
    with _unwritable_is_slow(entry.parent):
        drop(entry)


def _folder(*parts: str) -> Path | None:
    try:
        return cache_dir(*parts)
    except OSError as error:
        say_unwritable(Path(error.filename or "the cache"), error)
        return None


@contextlib.contextmanager
def entry_lock(path: Path) -> Iterator[None]:
    """The lock, or nothing where the folder can't be written: then no other process makes the entry either."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(lock(path))
        yield


@contextlib.contextmanager
def _unwritable_is_slow(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        say_unwritable(folder, error)


def unwritable(error: BaseException) -> bool:
    """Whether an error, or what led to it, is a disk's: full, read-only, another user's, failing."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    # safetensors gives the system's number in words, and torch no more than that writing failed.
    messages = ("(os error ", "PytorchStreamWriter failed", "file write failed")
    return any(getattr(one, "errno", None) in _DISK or any(words in str(one) for words in messages) for one in causes)


def say_unwritable(folder: Path, error: Exception) -> None:
    """Says that, and why, the cache is of no use now."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    notice(
        f"the cache can't be written ({reason}, {folder}), so its results are computed each time. "
        "Make room, or set UNWRITE_CACHE to another folder."
    )


def _without_cache(key: str, make: Callable[[Path], object], read: Callable[[Path], T]) -> T:
    entry = spare_folder() / key
    entry.mkdir()
    make(entry)
    return read(entry)
