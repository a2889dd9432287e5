"""The run folder: what was asked, what happened, and whether it is whole.

    run.json       kind (the command), arguments, hashes, seed, versions, notices and status:
                   running | done | unchanged (done, and not one weight moved) | failed | stopped
    metrics.jsonl  one line a logged step
    model/         the unlearned model as safetensors, with unwrite.json
    report.html    the audit, and report.json

While a process works in the folder it holds `.lock`, which names it. `run.json` says "running" until everything else is
in place, so a killed run is never mistaken for a whole one. It is also the marker by which a run may be replaced: only by
the same command, only when asked, and only if nothing but what a run writes lies in its folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from ..errors import RunError, notice, setting
from .atomic import beside, write_json
from .hashing import hash_json
from .holding import LOCK, free, hold, made_and_held
from .strict import parse_json, read_json

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of unwrite, Python and the packages that results depend on."""
    numbers = {"python": platform.python_version()}
    for package in ("unwrite", *PACKAGES):
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers


ENTRIES = ("run.json", "metrics.jsonl", "model", "checkpoints", "report.json", "report.html")
FINISHED = ("done", "unchanged")


@dataclass
class Run:
    """One run folder. Use `Run.start`, `Run.open`."""

    folder: Path
    record: dict[str, Any]
    _held: IO[str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def check(
        cls,
        folder: str | Path,
        arguments: Mapping[str, Any],
        *,
        kind: str = "forget",
        resume: bool | None = False,
        overwrite: bool = False,
    ) -> Run | None:
        """What `start` would go on with or replace, None where it would make a new run; nothing is written.

        Args:
            arguments: what was asked; a run is resumed with the same ones only.
            kind: the command that writes the run; only its own runs are resumed or replaced.
            resume: go on with the unfinished run in `folder`; None for a command that can't.
            overwrite: replace the run in `folder`.

        Raises:
            RunError: the folder holds another run, a finished one, one that another process works on, or is not empty.
        """
        folder = Path(folder)
        if resume and overwrite:
            raise RunError(
                f"{setting('resume')} goes on with a run and {setting('overwrite')} replaces it. Pass one of them."
            )
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file. Choose another {setting('folder')}.")
        if (folder / LOCK).exists():
            with contextlib.suppress(FileNotFoundError):  # its holder has just removed an empty folder
                free(hold(folder), folder)
        return cls._check(folder, arguments, kind, resume, overwrite)

    @classmethod
    def _check(
        cls, folder: Path, arguments: Mapping[str, Any], kind: str, resume: bool | None, overwrite: bool
    ) -> Run | None:
        if not (folder / "run.json").exists():
            if folder.exists() and any(entry.name != LOCK and not _left(entry) for entry in folder.iterdir()):
                raise RunError(f"{folder} is not empty and holds no run. Choose another {setting('folder')}.")
            if resume:
                raise RunError(f"{folder} holds no run to resume.")
            return None
        run = cls.open(folder)
        if overwrite:
            run._need_own(kind)
            return run
        if run.record["status"] in FINISHED:
            raise RunError(
                f"{folder} holds a finished run. Choose another {setting('folder')}, or pass {setting('overwrite', True)}."
            )
        if not resume:
            replace = setting("overwrite", True)
            ways = (
                f"Pass {setting('resume', True)} to go on, {replace} to replace it"
                if resume is False
                else f"Pass {replace}"
            )
            raise RunError(f"{folder} holds an unfinished run. {ways}, or choose another {setting('folder')}.")
        if run.record["key"] != hash_json([kind, dict(arguments)]):
            raise RunError(f"{folder} was started with other arguments, so it can't be resumed with these.")
        return run

    @classmethod
    def start(
        cls,
        folder: str | Path,
        arguments: Mapping[str, Any],
        *,
        kind: str = "forget",
        resume: bool | None = False,
        overwrite: bool = False,
    ) -> Run:
        """A new run, in an empty folder or in the place of an old one, or the unfinished one; as `check` finds it.

        The folder is this process's until the run has another status than "running", or the process ends.

        Raises:
            RunError: as `check`.
        """
        folder = Path(folder)
        cls.check(folder, arguments, kind=kind, resume=resume, overwrite=overwrite)
        lock = made_and_held(folder)
        try:
            # Looked at again: another process may have come first.
            existing = cls._check(folder, arguments, kind, resume, overwrite)
            for entry in [entry for entry in folder.iterdir() if _left(entry)]:
                _remove(entry)
            if existing is not None and resume:
                existing._held = lock
                existing._compare_threads()
                existing.update(status="running")
                return existing
            if existing is not None:
                existing.remove()
            key = hash_json([kind, dict(arguments)])
            record = {"kind": kind, "key": key, "arguments": dict(arguments), "versions": versions()}
            run = cls(folder, {**record, "threads": threads(), "started": time.time()}, lock)
            run.update(status="running")
        except BaseException:
            free(lock, folder)
            raise
        return run

    def _compare_threads(self) -> None:
        then, now = self.record.get("threads"), threads()
        if then is not None and then != now:
            notice(
                f"{self.folder} was started with {_in_words(then)} and goes on with {_in_words(now)}: sums are taken in "
                "another order, so its last bits may differ from those of a run that was never stopped."
            )

    def _need_own(self, kind: str) -> None:
        """Refuses to replace a run of another command, or a folder that holds anything a run didn't write.

        Raises:
            RunError: it isn't `kind`'s own, or has other entries; the first is named.
        """
        written_by = self.record.get("kind")
        if written_by != kind:
            by = f"unwrite {written_by}" if written_by else "an unknown command"
            raise RunError(f"{self.folder} holds a run of {by}, which unwrite {kind} does not replace. Choose another.")
        for entry in sorted(self.folder.iterdir()):
            if entry.name not in (*ENTRIES, LOCK) and not _left(entry):
                raise RunError(
                    f"{entry} was not written by the run in {self.folder}, so it is not removed. Move it, or choose "
                    f"another {setting('folder')}."
                )
        model = self.folder / "model"
        if model.exists() and not (model / "unwrite.json").exists():
            raise RunError(
                f"{model} was not written by unwrite, so it is not removed. Move it, or choose another {setting('folder')}."
            )

    def remove(self) -> None:
        """Removes what a run writes, the record last, so that a stopped removal can be repeated; the folder stays."""
        entries = sorted(self.folder.iterdir(), key=lambda entry: entry.name == "run.json")
        for entry in [entry for entry in entries if entry.name != LOCK]:
            _remove(entry)

    def drop_checkpoints(self) -> None:
        """Removes the checkpoints of a run that is whole; what a failing disk keeps is tried again, and then said."""
        folder, aside = self.folder / "checkpoints", beside(self.folder / "checkpoints")
        with contextlib.suppress(OSError):
            os.replace(folder, aside)  # in one step: half of them are never gone on from
        for left in (folder, aside, folder, aside):
            shutil.rmtree(left, ignore_errors=True)
        for left in (folder, aside):
            if left.exists():
                notice(f"{left} could not be removed. The run is whole without it; remove it by hand.")

    def discard_if_empty(self) -> bool:
        """Removes the folder of a run that made nothing: no step was logged, no checkpoint, model or report written."""
        entries = [entry for entry in self.folder.iterdir() if entry.name not in ("run.json", "checkpoints", LOCK)]
        checkpoints = self.folder / "checkpoints"
        if entries or (checkpoints.exists() and any(checkpoints.glob("checkpoint-*"))):
            return False
        self.remove()
        self._release()
        with contextlib.suppress(OSError):  # another process may have come already
            self.folder.rmdir()
        return True

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """An existing run.

        Raises:
            RunError: no `run.json`, or a damaged one.
        """
        path = Path(folder) / "run.json"
        if not path.exists():
            raise RunError(f"{folder} is no run folder: it has no run.json.")
        record = read_json(path, RunError, f"Choose another {setting('folder')}, or restore it.")
        if not isinstance(record.get("status"), str):
            raise RunError(f"{path} is no record of a run: it has no status.")
        return cls(Path(folder), record)

    def update(self, **fields: Any) -> None:
        """Adds to `run.json`, in one step. With another status than "running" the folder is free again."""
        self.record |= fields
        status = self.record.get("status")
        if status in ("running", *FINISHED):
            self.record.pop("error", None)
        try:
            write_json(self.folder / "run.json", self.record)
        finally:
            if status != "running":
                self._release()

    def _release(self) -> None:
        if self._held is not None:
            free(self._held, self.folder)
            self._held = None

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`; what is no finite number is written as null."""
        text = json.dumps(_finite(dict(line)), sort_keys=True, allow_nan=False)
        with open(self.folder / "metrics.jsonl", "a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = end > 0 and file.read(1) != b"\n"  # by a kill, or a full disk
            file.write(("\n" if torn else "").encode() + text.encode() + b"\n")

    def logged(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; those that were cut off are left out."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        logged = []
        for line in lines:
            with contextlib.suppress(ValueError):
                logged.append(parse_json(line))
        return [line for line in logged if isinstance(line, dict)]

    def need_done(self) -> Run:
        """This run, if it is whole.

        Raises:
            RunError: it is not, and says what to do.
        """
        status = self.record["status"]
        if status == "unchanged":
            raise RunError(
                f"{self.folder} changed nothing: its model is the one before. Choose other settings and run it again."
            )
        if status != "done":
            again = "again" if self.record.get("kind") == "demo" else f"with {setting('resume', True)} to finish it"
            raise RunError(f"{self.folder} is {status}, not done. Run the same command {again}.")
        return self


def _left(entry: Path) -> bool:
    """Whether a killed write left this behind, such as ".run.json.0a1b2c3d4e5f"."""
    return entry.name.startswith(tuple(f".{name}." for name in ENTRIES))


def _remove(entry: Path) -> None:
    """Removes a file or a folder. A folder loses its name in one step: half of one is never taken for somebody else's."""
    if not entry.is_dir() or entry.is_symlink():
        entry.unlink()
        return
    aside = entry if _left(entry) else beside(entry)
    if aside != entry:
        os.replace(entry, aside)
    shutil.rmtree(aside)


def threads() -> dict[str, Any]:
    """How many threads sums are taken on, which decides their last bits."""
    import torch

    return {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def _in_words(of: Mapping[str, Any]) -> str:
    omp = of.get("OMP_NUM_THREADS")
    return f"{of.get('torch')} threads" + (f" (OMP_NUM_THREADS={omp})" if omp else "")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
