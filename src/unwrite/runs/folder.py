"""The run folder: what was asked, what happened, and whether it is whole.

    run.json       kind (the command), arguments, hashes, seed, versions, notices and status:
                   running | done | unchanged (done, and not one weight moved) | failed | stopped
    metrics.jsonl  one line a logged step
    model/         the unlearned model as safetensors, with unwrite.json
    report.html    the audit, and report.json

`run.json` says "running" until everything else is in place, so a killed run is never mistaken for a whole one. It is
also the marker by which a run may be replaced: only by the same command, only when asked, and only if nothing but what
a run writes lies in its folder.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import RunError
from .atomic import write_json
from .hashing import hash_json

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of unwrite, Python and the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("unwrite", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


ENTRIES = ("run.json", "metrics.jsonl", "model", "checkpoints", "report.json", "report.html")
FINISHED = ("done", "unchanged")


@dataclass
class Run:
    """One run folder. Use `Run.start`, `Run.open`."""

    folder: Path
    record: dict[str, Any]

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
            RunError: the folder holds another run, a finished one, or is not empty.
        """
        folder = Path(folder)
        if resume and overwrite:
            raise RunError("--resume goes on with a run and --overwrite replaces it. Pass one of them.")
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file. Choose another --out folder.")
        if not (folder / "run.json").exists():
            if folder.exists() and any(folder.iterdir()):
                raise RunError(f"{folder} is not empty and holds no run. Choose another --out folder.")
            if resume:
                raise RunError(f"{folder} holds no run to resume.")
            return None
        run = cls.open(folder)
        if overwrite:
            run._need_own(kind)
            return run
        if run.record["status"] in FINISHED:
            raise RunError(f"{folder} holds a finished run. Choose another --out folder, or pass --overwrite.")
        if not resume:
            ways = "Pass --resume to go on, --overwrite to replace it" if resume is False else "Pass --overwrite"
            raise RunError(f"{folder} holds an unfinished run. {ways}, or choose another --out folder.")
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

        Raises:
            RunError: as `check`.
        """
        folder = Path(folder)
        existing = cls.check(folder, arguments, kind=kind, resume=resume, overwrite=overwrite)
        if existing is not None and resume:
            existing.update(status="running")
            return existing
        if existing is not None:
            existing.remove()
        folder.mkdir(parents=True, exist_ok=True)
        key = hash_json([kind, dict(arguments)])
        record = {"kind": kind, "key": key, "arguments": dict(arguments), "versions": versions()}
        run = cls(folder, {**record, "started": time.time()})
        run.update(status="running")
        return run

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
            # A killed write leaves ".run.json.x1y2" behind.
            if entry.name not in ENTRIES and not entry.name.startswith(tuple(f".{name}." for name in ENTRIES)):
                raise RunError(
                    f"{entry} was not written by the run in {self.folder}, so it is not removed. Move it, or choose "
                    "another --out folder."
                )
        model = self.folder / "model"
        if model.exists() and not (model / "unwrite.json").exists():
            raise RunError(
                f"{model} was not written by unwrite, so it is not removed. Move it, or choose another --out."
            )

    def remove(self) -> None:
        """Removes what a run writes, the record last, so that a stopped removal can be repeated; the folder stays."""
        entries = sorted(self.folder.iterdir(), key=lambda entry: entry.name == "run.json")
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def discard_if_empty(self) -> bool:
        """Removes the folder of a run that made nothing: no step was logged, no checkpoint, model or report written."""
        made = [entry for entry in self.folder.iterdir() if entry.name not in ("run.json", "checkpoints")]
        checkpoints = self.folder / "checkpoints"
        if made or (checkpoints.exists() and any(checkpoints.glob("checkpoint-*"))):
            return False
        self.remove()
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
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}).") from None
        if not isinstance(record, dict) or not isinstance(record.get("status"), str):
            raise RunError(f"{path} is no record of a run: it has no status.")
        return cls(Path(folder), record)

    def update(self, **fields: Any) -> None:
        """Adds to `run.json`, in one step."""
        self.record |= fields
        write_json(self.folder / "run.json", self.record)

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line), sort_keys=True) + "\n")

    def logged(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a last one that was cut off is left out."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

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
            again = "again" if self.record.get("kind") == "demo" else "with --resume to finish it"
            raise RunError(f"{self.folder} is {status}, not done. Run the same command {again}.")
        return self
