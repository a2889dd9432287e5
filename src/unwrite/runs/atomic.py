"""Files and folders that are either whole or absent: write beside, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import RunError, notice, setting
from .strict import strings_flaw

PART = "UNWRITE_CACHE_PART"  # set while what is computed is kept apart: the folder within the cache


def cache_dir(*parts: str) -> Path:
    """A folder in the user's cache (`UNWRITE_CACHE`, else `XDG_CACHE_HOME/unwrite`), created for the user alone.

    Raises:
        RunError: its name is no UTF-8, which not every library can open.
    """
    return fetched_dir(*os.environ.get(PART, "").split(), *parts)


def fetched_dir(*parts: str) -> Path:
    """The same for what is fetched and not computed: it is the same on one thread and on many.

    Raises:
        RunError: as `cache_dir`.
    """
    root = os.environ.get("UNWRITE_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "unwrite"
    if flaw := strings_flaw(str(base)):
        raise RunError(
            f"the cache folder {base} holds {flaw}: its name is no UTF-8 text. Set UNWRITE_CACHE to another."
        )
    if not base.is_dir():
        base.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            base.mkdir(0o700)
    folder = base.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def need_free(*paths: str | Path, overwrite: bool = False) -> None:
    """Refuses to replace what is there, before the work whose result would be written.

    Raises:
        RunError: one of the files exists and `overwrite` wasn't asked for; one is a folder, which is never replaced.
    """
    for path in map(Path, paths):
        if path.is_dir():
            raise RunError(f"{path} is a folder. Name a file.")
        if path.exists() and not overwrite:
            raise RunError(
                f"{path} exists. Choose another {setting('file')}, or pass {setting('overwrite', True)} to replace it."
            )


def write_text(path: str | Path, text: str) -> None:
    """Replaces `path` by `text` in one step, with the user's umask; a full disk or a kill leaves the old file.

    What a killed write of this file left beside it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    for last in (False, False, True):
        try:
            _replace(path, text)
            break
        except (
            FileNotFoundError
        ):  # another writer of `path`, which could not see the lock, took our file for a dead one's
            if last:
                raise
    _sync(path.parent)


def _replace(path: Path, text: str) -> None:
    """Writes a file beside `path`, locked as long as it is open, so that others see that it has a writer, and renames it."""
    temporary = beside(path)
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            with contextlib.suppress(OSError):  # a file system without locks: there a killed writer's file stays
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _remove_left(path: Path) -> None:
    """Removes temporary files of `path` whose writers are gone."""
    left = re.compile(re.escape(_hidden(path)) + "[0-9a-f]{12}")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if left.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError), open(entry.path, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)


def write_json(path: str | Path, value: Any) -> None:
    """As `write_text`, with sorted, indented JSON. NaN is refused: it isn't JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A temporary sibling of `target` that becomes `target` when the block ends without an error.

    An existing `target` is replaced; on an error nothing of the new folder stays.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target)
    temporary.mkdir()
    handle = os.open(temporary, os.O_RDONLY)
    try:
        _mark(handle)
        yield temporary
        sync(temporary)
        if target.exists():
            old = temporary.with_name(temporary.name + ".old")
            os.replace(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _mark(handle: int) -> None:
    """Locks what is being written, so that others can tell it from what a killed process left: see `left_behind`."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def left_behind(temporary: Path) -> bool:
    """Whether nobody is writing this half-written file or folder any more; no, where that can't be told."""
    try:
        handle = os.open(temporary, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


@contextlib.contextmanager
def scratch_folder(prefix: str = "unwrite-", inside: str | Path | None = None) -> Iterator[Path]:
    """A folder that is there for the block alone, of this user's.

    Args:
        prefix: of its name.
        inside: the folder it is made in; None for the system's own for temporary files.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=inside))
    try:
        yield folder
    finally:
        remove_folder(folder)


def remove_folder(folder: str | Path) -> None:
    """Removes a folder that nobody needs any more. A disk that fails once is asked again; one that fails twice ends nothing."""
    for _ in range(2):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            last = error
        else:
            return
    notice(
        f"the temporary folder {folder} could not be removed ({last.strerror or last}). It is of no use to anyone: remove it."
    )


def sync(folder: Path) -> None:
    """Everything in `folder` is on the disk when this returns, so that a rename after it can't come before it."""
    for path in [*sorted(folder.rglob("*")), folder]:
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems can't sync a folder; a file that can't be synced is not written.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def beside(target: Path) -> Path:
    """A name of our own in the folder of `target`, hidden, and short whatever the target's is."""
    return target.with_name(f"{_hidden(target)}{secrets.token_hex(6)}")


def _hidden(target: Path) -> str:
    return f".{target.name[:80]}."


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """An exclusive lock between processes; freed when the holder ends, however it ends."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
