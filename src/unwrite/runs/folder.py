"""The run folder: what was asked, what happened, and whether it is whole.

    run.json       arguments, hashes, seed, versions, status (running | done | failed | stopped)
    metrics.jsonl  one line a logged step
    model/         the unlearned model as safetensors, with unwrite.json
    report.html    the audit

`run.json` says "running" until everything else is in place, so a killed run is never mistaken for a whole one.
"""

from __future__ import annotations

import json
import platform
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


@dataclass
class Run:
    """One run folder. Use `Run.start`, `Run.open`."""

    folder: Path
    record: dict[str, Any]

    @classmethod
    def start(cls, folder: str | Path, arguments: Mapping[str, Any], *, resume: bool = False) -> Run:
        """A new run, or, with `resume`, the unfinished one in `folder`.

        Raises:
            RunError: the folder holds another run, a finished one, or is not empty.
        """
        folder = Path(folder)
        key = hash_json(dict(arguments))
        if (folder / "run.json").exists():
            run = cls.open(folder)
            if run.record["status"] == "done":
                raise RunError(f"{folder} holds a finished run. Choose another --out folder.")
            if not resume:
                raise RunError(f"{folder} holds an unfinished run. Pass --resume to go on, or choose another folder.")
            if run.record["key"] != key:
                raise RunError(f"{folder} was started with other arguments, so it can't be resumed with these.")
            return run
        if folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder} is not empty and holds no run. Choose another --out folder.")
        if resume:
            raise RunError(f"{folder} holds no run to resume.")
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, {"key": key, "arguments": dict(arguments), "versions": versions(), "started": time.time()})
        run.update(status="running")
        return run

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
        return cls(Path(folder), record)

    def update(self, **fields: Any) -> None:
        """Adds to `run.json`, in one step."""
        self.record |= fields
        write_json(self.folder / "run.json", self.record)

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line), sort_keys=True) + "\n")

    def need_done(self) -> Run:
        """This run, if it is whole.

        Raises:
            RunError: it is not, and says what to do.
        """
        if self.record["status"] != "done":
            raise RunError(
                f"{self.folder} is {self.record['status']}, not done. Run the same command with --resume to finish it."
            )
        return self
