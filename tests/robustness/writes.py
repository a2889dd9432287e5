"""The writes of a command, counted as they happen, in it and in its workers; one of them can be its last, or fail.

Python says before it opens, renames, links, removes, cuts or makes a file or folder (`sys.addaudithook`). It says nothing of a sync, and
libraries in other languages say nothing at all: the writers of tensors and tokenizers, and `os.fsync`, are wrapped. A file that is
written by none of these would be missing in `Writes.names`, which a test compares with what a run leaves.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
import safetensors.torch
import tokenizers
import torch

# By event: at which argument the path stands that is written, and the folder it is relative to.
EVENTS = {
    "os.rename": (1, 3), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.mkdir": (0, 2), "os.link": (1, 3), "os.symlink": (1, 2),
    "os.truncate": (0, None), "os.chmod": (0, 2), "os.utime": (0, 3),
}  # fmt: skip
ASIDE = ".tmpa1B2c3"  # where the writer of safetensors writes first
TORN = b'{"loss": 1.2'  # what a kill leaves of a line of a log


@dataclass(frozen=True)
class Stop:
    """Which write isn't made.

    Args:
        at: its number, from 0.
        fault: an error number: the write fails with it, once; None kills.
        alone: kill the process that writes, which may be a worker, and not the whole command.
    """

    at: int
    fault: int | None = None
    alone: bool = False


class Writes:
    """Counts the writes under a folder of this process and those it forks.

    Args:
        root: the folder.
        names: a file outside it that gets a line for each.
    """

    def __init__(self, root: Path, names: Path, stop: Stop | None = None) -> None:
        self.root, self.stop, self._stopped = str(root), stop, False
        self._names = os.open(names, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        # A byte a write: processes take them from one pipe, in whichever order they come, and none holds a lock when it is killed.
        self._left, self._fed = os.pipe2(os.O_NONBLOCK)
        if stop is not None:
            os.write(self._fed, b"." * stop.at + b"!")

    def watch(self) -> None:
        """From here on; for the rest of the process."""
        sys.addaudithook(self._hear)
        os.fsync = self._synced(os.fsync)
        for module in (safetensors.torch, safetensors.numpy):
            module.serialize_file = self._tensor_file(module.serialize_file)
        torch.save = self._whole_file(
            torch.save, lambda words: RuntimeError(f"[enforce fail] PytorchStreamWriter failed writing file: {words}")
        )
        tokenizers.Tokenizer.save = self._whole_file(tokenizers.Tokenizer.save, Exception)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, folder = arguments[0], None
            if isinstance(path, int) or not _writes(arguments[1], arguments[2]):
                return
        elif event in EVENTS:
            place, relative_to = EVENTS[event]
            path, folder = arguments[place], None if relative_to is None else arguments[relative_to]
        else:
            return
        target = _absolute(path, folder)
        if os.path.isdir(target) if event == "os.mkdir" else event == "os.remove" and not os.path.lexists(target):
            return  # it is asked for in case, and changes nothing
        if self._is_last(event, target):
            if event == "open" and target.endswith("metrics.jsonl"):
                with open(target, "ab") as file:
                    file.write(TORN)
            self._end(lambda words: OSError(self._fault, words, target))

    def _synced(self, sync: Callable[[Any], None]) -> Callable[[Any], None]:
        def told(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            target = _absolute(number, None)
            if self._is_last("sync", target):
                if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_APPEND:
                    _tear(target)
                self._end(lambda words: OSError(self._fault, words, target))
            sync(file)

        return told

    def _whole_file(self, write: Callable[..., Any], error: Callable[[str], Exception]) -> Callable[..., Any]:
        """A writer in another language: where it is stopped, half of its file is there."""

        def half_or_whole(*arguments: Any, **options: Any) -> Any:
            given = [one for one in (*arguments[:2], *options.values()) if isinstance(one, str | os.PathLike)]
            target = os.path.abspath(given[0]) if given else ""
            if not self._is_last("file", target):
                return write(*arguments, **options)
            write(*arguments, **options)
            os.truncate(target, os.path.getsize(target) // 2)
            return self._end(lambda words: error(f"I/O error: {words} (os error {self._fault})"))

        return half_or_whole

    def _tensor_file(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """The writer of safetensors: a kill leaves half of its file, in place as older versions do or aside; an error nothing."""

        def half_or_whole(tensors: Any, target: Any, metadata: Any = None) -> Any:
            if not self._is_last("file", os.path.abspath(target)):
                return write(tensors, target, metadata)
            assert self.stop is not None
            if self.stop.fault is None:
                half = Path(target).with_name(ASIDE) if self.stop.at % 2 else Path(target)
                write(tensors, half, metadata)
                os.truncate(half, half.stat().st_size // 2)
            return self._end(lambda words: safetensors.SafetensorError(
                f"Error while serializing: I/O error: {words} (os error {self._fault})"
            ))  # fmt: skip

        return half_or_whole

    def _is_last(self, event: str, target: str) -> bool:
        """Counts a write; whether it is the one to stop at."""
        if self._stopped or (target != self.root and not target.startswith(f"{self.root}/")):
            return False
        os.write(self._names, f"{event} {os.path.relpath(target, self.root)}\n".encode())
        with contextlib.suppress(BlockingIOError):
            self._stopped = os.read(self._left, 1) == b"!"  # then what is torn by hand is no write of the command's
        return self._stopped

    @property
    def _fault(self) -> int:
        assert self.stop is not None
        assert self.stop.fault is not None
        return self.stop.fault

    def _end(self, error: Callable[[str], Exception]) -> None:
        assert self.stop is not None
        if self.stop.fault is not None:
            raise error(os.strerror(self.stop.fault))
        if self.stop.alone:
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(0, signal.SIGKILL)


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _absolute(path: Any, folder: Any) -> str:
    """Where a path leads, which may be an open file's number, or relative to an open folder."""
    if isinstance(path, int):
        return _of_number(path)
    name = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(name):
        return os.path.normpath(f"{_of_number(folder)}/{name}")
    return os.path.abspath(name)


def _of_number(number: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{number}")
    return ""


def _tear(path: str) -> None:
    """Cuts the last line of a log in its middle."""
    content = Path(path).read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    os.truncate(path, start + (len(content) - start) // 2)
