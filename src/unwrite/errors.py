"""Every refusal a user can meet: what was wrong, with what value, and what to do about it.

The command line turns any of these into one line and exit code 2. A message names settings by `setting(...)`: the flag on the
command line, the field in Python.
"""

from __future__ import annotations

import contextlib
import difflib
import shlex
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal


class UnwriteError(Exception):
    """Base of all refusals."""


class DataError(UnwriteError):
    """A row, file or split that can't be used; the message names file and line."""


class ModelError(UnwriteError):
    """A model, tokenizer or checkpoint that can't be used."""


class MethodError(UnwriteError):
    """A method, field or combination that has no meaning."""


class RunError(UnwriteError):
    """A run folder that is broken, incomplete or belongs to something else."""


class NotFinite(UnwriteError):
    """A loss, or what a token is drawn from, is no number."""


class MissingExtra(UnwriteError):
    """An optional dependency isn't installed.

    Args:
        package: its name.
        extra: of unwrite, which brings it.
        also: what else has to be typed, behind the command.
    """

    def __init__(self, package: str, extra: str, *, also: str = "") -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'unwrite[{extra}]'{also}")


class Notice(UserWarning):
    """What a user should know of a result that is given all the same: rows cut, rows twice, nothing changed."""


Style = Literal["python", "flags", "settings"]
_style: Style = "python"

# What the command line calls differently.
_ON_COMMAND_LINE = {
    "peft_config": "lora",
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "resume_from_checkpoint": "resume",
    "folder": "out",
    "file": "out",
}
SWITCHES = ("allow_overlap", "allow_pickle", "overwrite", "resume", "trust_remote_code")  # flags without a value
_UNSET = object()


@contextlib.contextmanager
def naming(style: Style) -> Iterator[None]:
    """How the messages made inside name settings: `layers` (python), `--layers` (flags), or as `unwrite sweep` writes them."""
    global _style
    before, _style = _style, style
    try:
        yield
    finally:
        _style = before


_otherwise: dict[str, str] = {}


@contextlib.contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Inside, messages call these settings by other names, as where two models are loaded and each has its `base`.

    >>> with renamed(base="draft_base"), naming("flags"):
    ...     setting("base")
    '--draft-base'
    """
    global _otherwise
    before, _otherwise = _otherwise, {**_otherwise, **names}
    try:
        yield
    finally:
        _otherwise = before


def setting(name: str, value: Any = _UNSET) -> str:
    """A setting as its reader writes it, alone or with a value: every message names fields and arguments by this.

    Args:
        name: of the field or argument in Python.
        value: what to write for it.

    >>> setting("layers"), setting("retain_loss", "none"), setting("peft_config")
    ('layers', "retain_loss='none'", 'peft_config')
    >>> with naming("flags"):
    ...     setting("layers"), setting("retain_loss", "none"), setting("peft_config"), setting("overwrite", True)
    ('--layers', '--retain-loss none', '--lora', '--overwrite')
    """
    name = _otherwise.get(name, name)
    if _style == "python":
        return name if value is _UNSET else f"{name}={value!r}"
    known = _ON_COMMAND_LINE.get(name, name)
    given = "" if value is _UNSET else shlex.quote(str(value).lower() if isinstance(value, bool) else str(value))
    if _style == "settings":
        return f"{known}={given}" if given else known
    flag = f"--{known.replace('_', '-')}"
    return f"{flag} {given}" if given and not (known in SWITCHES and value is True) else flag


_listening: list[list[str]] = []


def notice(message: str) -> None:
    """Warns with a `Notice`; every `noticing()` block around the call keeps the message, once."""
    for messages in _listening:
        if message not in messages:
            messages.append(message)
    warnings.warn(message, Notice, stacklevel=3)


@contextlib.contextmanager
def noticing() -> Iterator[list[str]]:
    """The list of what is noticed within the block, in order, for `run.json` and the report."""
    messages: list[str] = []
    _listening.append(messages)
    try:
        yield messages
    finally:
        _listening[:] = [kept for kept in _listening if kept is not messages]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for an unknown name, with the nearest known ones.

    >>> unknown("method", "npoo", ["npo", "uld"])
    "unknown method 'npoo'. Did you mean 'npo'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return f"unknown {kind} {name!r}. {hint}"
