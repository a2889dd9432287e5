"""Every refusal a user can meet: what was wrong, with what value, and what to do about it.

The command line turns any of these into one line and exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    """An optional dependency isn't installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'unwrite[{extra}]'")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for an unknown name, with the nearest known ones.

    >>> unknown("method", "npoo", ["npo", "uld"])
    "unknown method 'npoo'. Did you mean 'npo'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return f"unknown {kind} {name!r}. {hint}"
