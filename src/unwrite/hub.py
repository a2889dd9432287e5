"""Which names are of the Hugging Face Hub, and whether it may be asked: nothing is fetched that was not named.

    org/name       of the Hub, unless it has the shape of a path or its first part is here
    hf:org/name    of the Hub, whatever is here

A path that is mistyped must not be looked up there: whoever has taken that name would answer.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PREFIX", "SWITCH", "closed", "is_explicit", "is_set", "offline", "path_reason", "repository"]

PREFIX = "hf:"
SWITCH = "UNWRITE_OFFLINE"  # what --offline sets, for the processes that a command starts, too
_VARIABLES = (SWITCH, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SHORT = re.compile(r"\w[\w.-]*")  # the Hub's oldest models and sets have no owner; they are named by the prefix alone
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_ENDINGS = frozenset(
    [
        ".jsonl",
        ".json",
        ".csv",
        ".tsv",
        ".parquet",
        ".arrow",
        ".txt",
        ".md",
        ".gz",
        ".zip",
        ".tar",
        ".zst",
        ".gguf",
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".onnx",
        ".h5",
        ".npy",
        ".npz",
        ".pkl",
        ".pickle",
        ".toml",
        ".yaml",
        ".yml",
        ".html",
        ".py",
    ]
)


def is_explicit(name: str) -> bool:
    """Whether a name says by its prefix that it is of the Hub."""
    return name.startswith(PREFIX)


def repository(name: str) -> str | None:
    """The id behind a name of the Hub, without the prefix; None where no id has that form."""
    if is_explicit(name):
        name = name.removeprefix(PREFIX)
        return name if _ID.fullmatch(name) or _SHORT.fullmatch(name) else None
    return name if _ID.fullmatch(name) else None


def path_reason(name: str) -> str | None:
    """Why a name that nothing here answers to is a path all the same; None for a name of the Hub, or of nothing."""
    if is_explicit(name):
        return None
    if name.startswith((".", "/", "~", "\\")) or _DRIVE.match(name) or "\\" in name:
        return "that is a path"
    if name.endswith("/"):
        return "it ends as a folder does"
    ending = Path(name).suffix.lower()
    if ending in _ENDINGS:
        return f"{ending} is the ending of a file"
    parent = os.path.dirname(name)
    return f"{parent} is here" if parent and os.path.lexists(parent) else None


def offline(*more: str) -> bool:
    """Whether the user said that nothing may be fetched: by --offline or one of the usual variables.

    Args:
        more: further variables, such as that of one library.
    """
    return any(map(is_set, (*_VARIABLES, *more)))


def is_set(variable: str) -> bool:
    """Whether a variable of the environment says yes."""
    return os.environ.get(variable, "").strip().upper() in ("1", "TRUE", "YES", "ON")


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """No library asks the Hub inside, whether it was imported before or not."""
    held = [(sys.modules[name], "HF_HUB_OFFLINE") for name in _CONSTANTS if name in sys.modules]
    before = [getattr(module, constant) for module, constant in held]
    variable = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module, constant in held:
        setattr(module, constant, True)
    try:
        yield
    finally:
        for (module, constant), value in zip(held, before, strict=True):
            setattr(module, constant, value)
        os.environ.pop("HF_HUB_OFFLINE") if variable is None else os.environ.update(HF_HUB_OFFLINE=variable)


_CONSTANTS = ("huggingface_hub.constants", "datasets.config")  # where the libraries keep what they read on import
