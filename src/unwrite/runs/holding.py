"""A folder that belongs to one process at a time: its lock names the process, and is free when that ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import RunError, notice, setting

LOCK = ".lock"


@contextlib.contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Within the block the folder, made if it isn't there, is this process's alone, as a run's is.

    Raises:
        RunError: another process works in it; which one, and where.
    """
    folder = Path(folder)
    was_there = folder.exists()
    lock = made_and_held(folder)
    try:
        yield
    finally:
        free(lock, folder)
        if not was_there:
            with contextlib.suppress(OSError):  # where something was written, it stays
                folder.rmdir()


def made_and_held(folder: Path) -> IO[str]:
    """As `hold`, of a folder that is made if it isn't there."""
    for _ in range(100):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its last holder has just removed it, empty
            return hold(folder)
    raise RunError(f"{folder} is removed each time it is made. Choose another {setting('folder')}.")


def hold(folder: Path) -> IO[str]:
    """The folder's lock, until the file is closed or the process ends.

    Raises:
        RunError: another process holds it; which one, and where.
    """
    file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - closing it frees the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_there(file, folder / LOCK):  # its holder has removed it since it was opened
            file.close()
            return hold(folder)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            holder = _signed(file)
            file.close()
            raise RunError(
                f"{folder} is in use by {holder}. Wait for it, stop it, or choose another {setting('folder')}."
            ) from None
        notice(
            f"{folder} lies on a file system without locks ({error.strerror}), so a second run in it at the same time "
            "can't be told. Start none."
        )
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _signed(file: IO[str]) -> str:
    """Who holds the lock; whoever has just taken it gets a moment to write that down."""
    for _ in range(100):
        file.seek(0)
        if (holder := file.read()).endswith("\n"):
            return holder.strip()
        time.sleep(0.01)
    return "another process"


def free(file: IO[str], folder: Path) -> None:
    """Removes the lock, and frees it after that: so whoever gets a removed file sees that it is none any more."""
    if is_there(file, folder / LOCK):
        (folder / LOCK).unlink()
    file.close()


def is_there(file: IO[str], path: Path) -> bool:
    """Whether the open file is still the one that stands at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
