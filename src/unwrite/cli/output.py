"""What every command prints with: a console for people, JSON for programs, quiet libraries."""

from __future__ import annotations

import contextlib
import json as jsonlib
import logging
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from ..errors import Notice


@lru_cache(maxsize=1)
def console() -> Any:
    """The terminal, by rich."""
    from rich.console import Console

    return Console()


@lru_cache(maxsize=1)
def progress_console() -> Any:
    """Where progress goes, beside the output: standard error."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(value: Any) -> None:
    """JSON on standard output, for `--json`."""
    print(jsonlib.dumps(value, indent=2, ensure_ascii=False, sort_keys=False))


@contextlib.contextmanager
def plain_notices() -> Iterator[None]:
    """Within the block a `Notice` is one line on standard error, each message once; other warnings stay as they are."""
    before, shown = warnings.showwarning, set()

    def one_line(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        text = " ".join(str(message).split())
        if not issubclass(category, Notice):
            before(message, category, *place, **options)
        elif text not in shown:
            shown.add(text)
            print(f"unwrite: {text}", file=sys.stderr)

    warnings.showwarning = one_line  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def quiet_libraries() -> None:
    """Keeps transformers' and torch's own bars and notices out of a command's output."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("torch").setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    from transformers.utils import logging as hf

    hf.set_verbosity_error()
    hf.disable_progress_bar()
